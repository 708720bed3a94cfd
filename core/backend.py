"""The only door to mlx: prepares the process, then imports it.

Every module that needs mlx writes ``from ..backend import mx``, so that nothing can import mlx
before the preparation is done. The preparation matters on Linux without a GPU only, where the
mlx-cpu wheel is linked with the reference BLAS. An OpenBLAS that is loaded with global symbols
before ``mlx.core`` takes its place, because the dynamic linker looks in the global scope first.

Measured with mlx 0.32.4 on 2 virtual cores (AMD EPYC, OpenBLAS 0.3.15 of opencv-python with its
Haswell kernels, one thread), SmolLM2-135M as float32 through mlx-lm's ``generate_step``; best of
two runs:

===============================  ========================  ========================
what                             reference BLAS            OpenBLAS
===============================  ========================  ========================
matmul 512x576x1536, float32     127 ms (7 GFLOP/s)        8 ms (112 GFLOP/s)
prefill of 300 tokens            17 tokens/s               229 tokens/s
decode of one sequence           10.5 tokens/s             12.9 tokens/s
===============================  ========================  ========================

``mx.compile`` is switched off on the CPU. There it runs ``g++`` for every fused kernel, 0.6 to
1.4 s each the first time (and falls back to plain operations where there is no compiler), keeps
the shared objects in the world-writable ``/tmp/mlx`` and loads them from there. And it gains
nothing: prefill 226 to 232 and decode 12.7 to 13.6 tokens/s with it, 222 to 240 and 12.8 to 12.9
without.

On the CPU mlx's exponential takes 9.3 ns a number and its sigmoid 9.5 to 14.5, on one core and
without SIMD, while ``power(2, x)`` takes 3.2. So ``nn.silu``, the gate of nearly every model, is
replaced there by one that is built on it: 3.8 instead of 14.7 ns a number, greatest relative error
against float64 9.0e-7 instead of 9.3e-7. That is a quarter of a long prefill.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

DeviceKind: TypeAlias = Literal["metal", "cuda", "cpu"]

_OPENBLAS_SONAMES = ("libopenblas.so.0", "libopenblas.so")
# An idle OpenBLAS thread spins for 2^26 cycles, some 25 ms, before it sleeps: within a step it
# never does. That takes the core from the event loop and, where cores are shared, speed from
# mlx's own thread. With 2^20, on 2 cores: prefill 628 instead of 558 tokens/s, a decode step of
# 16 rows 90 instead of 96 ms.
_SPIN_LOG2_CYCLES = "20"
# What MLX's CUDA backend is told, where the user's environment does not say otherwise.
_CUDA_DEFAULTS = {
    # It sends kernels off whenever their inputs have come to so many Mi numbers. A KV store alone
    # is larger, so a layer went in three parts, a graph each: a step of 16 rows of 28 layers took
    # 4.2 instead of 3.1 ms.
    "MLX_MAX_MB_PER_BUFFER": "1000000",
    # Once its caches of plans and graphs have missed twice their size since the process began,
    # every further miss is an error: a server that has been up for long enough would fail all new
    # lengths. Without the check a miss costs time, and there is room for all that pippin's
    # buckets of lengths come to.
    "MLX_ENABLE_CACHE_THRASHING_CHECK": "0",
    "MLX_CUDA_SDPA_CACHE_SIZE": "4096",
    "MLX_CUDA_GRAPH_CACHE_SIZE": "1000",
}
# What libmlx calls. A build whose names carry a prefix or a suffix (numpy's and scipy's do) cannot
# stand in for the reference library.
_NEEDED_SYMBOLS = ("cblas_sgemm", "cblas_dgemm")


def _has_cuda_backend() -> bool:
    for name in ("mlx-cuda-12", "mlx-cuda-13"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return True
    return False


def _openblas_candidates() -> list[tuple[str, str]]:
    """Pairs of (what to call it, what to load), best first.

    ``PIPPIN_BLAS`` replaces the list: a path of a library, or ``none``.
    """
    chosen = os.environ.get("PIPPIN_BLAS")
    if chosen is not None:
        return [] if chosen in ("", "none") else [(chosen, chosen)]
    candidates = [("system", soname) for soname in _OPENBLAS_SONAMES]
    # find_spec does not run cv2, whose import costs far more than the library it brings.
    spec = importlib.util.find_spec("cv2")
    if spec is not None and spec.origin is not None:
        site = Path(spec.origin).parent.parent
        candidates += [
            ("opencv-python", str(path))
            for path in sorted(site.glob("opencv_python*.libs/libopenblas*.so*"))
        ]
    return candidates


def _blas_threads() -> int:
    """How many threads a matmul may use: the physical cores this process may run on.

    Leaving one core out for the event loop was tried: on 2 quiet cores it made decoding of 16 rows
    1.8 times and prefill 1.9 times slower, and helped only while other programs fought for them.
    """
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            cores.add(str(cpu))
    limit = len(cores)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        limit = min(limit, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or the quota reads "max"
        pass
    return max(1, limit)


def _preload_openblas() -> str | None:
    """Load an OpenBLAS for everybody; say which one, or ``None`` if there is none to be had."""
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", _SPIN_LOG2_CYCLES)
    for label, library in _openblas_candidates():
        try:
            # First for ourselves alone: a library of the wrong kind must not become global.
            probe = ctypes.CDLL(library)
            if not all(hasattr(probe, symbol) for symbol in _NEEDED_SYMBOLS):
                continue
            blas = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        if not {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"} & os.environ.keys():
            set_num_threads = getattr(blas, "openblas_set_num_threads", None)
            if set_num_threads is not None:
                set_num_threads(_blas_threads())
        return f"OpenBLAS ({label})"
    return None


def _prepare() -> str | None:
    """Do what must be done before mlx is imported; return the name of the BLAS, if known."""
    if sys.platform == "darwin":
        return "Accelerate"
    if not sys.platform.startswith("linux"):
        return None
    if _has_cuda_backend():
        for name, value in _CUDA_DEFAULTS.items():
            os.environ.setdefault(name, value)
        return None
    if "mlx.core" in sys.modules:
        return "reference (mlx was imported before pippin)"
    return _preload_openblas() or "reference (no OpenBLAS found)"


_BLAS_NAME = _prepare()

# Only now, see above.
import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402

__all__ = ["LOG2_E", "DeviceKind", "blas_name", "device_kind", "exp2", "mx", "nn", "stock_silu"]


def device_kind() -> DeviceKind:
    """The kind of device that arrays live on by default."""
    if mx.default_device().type != mx.gpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def blas_name() -> str | None:
    """The linear algebra library of the CPU device, for logs; ``None`` where it does not matter.

    A name that begins with ``reference`` means that the CPU device is some fifty times slower
    than it could be.
    """
    return _BLAS_NAME


def exp2(x: mx.array) -> mx.array:
    """Two to the power of ``x``: what softmax should be made of wherever mlx does not fuse it."""
    return mx.power(2.0, x)


def _cpu_silu(x: mx.array) -> mx.array:
    """``x * sigmoid(x)``."""
    return x / (1 + exp2(x * -LOG2_E))


LOG2_E = math.log2(math.e)

_activations: Any = nn  # mlx's stubs leave the functions of this module out
stock_silu: Callable[[mx.array], mx.array] = _activations.silu

if device_kind() == "cpu":
    mx.disable_compile()
    _activations.silu = _cpu_silu
