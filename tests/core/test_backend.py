"""What the preparation does to a fresh process; it cannot be undone in this one."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from pippin.core import backend
from pippin.core.backend import device_kind, exp2, mx, nn, stock_silu

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or device_kind() != "cpu",
    reason="the BLAS is replaced on Linux without a GPU only",
)


def run_python(code: str, **env: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stderr == ""
    return finished.stdout.strip()


PRINT_BLAS = "from pippin.core.backend import blas_name; print(blas_name())"


def test_an_openblas_is_found_without_importing_cv2() -> None:
    code = f"import sys; {PRINT_BLAS}; print('cv2' in sys.modules)"
    blas, cv2_imported = run_python(code).splitlines()
    assert blas.startswith("OpenBLAS (")
    assert cv2_imported == "False"


@pytest.mark.parametrize("library", ["none", "/nowhere/libopenblas.so", "libm.so.6"])
def test_without_a_usable_library_the_reference_is_named(library: str) -> None:
    assert run_python(PRINT_BLAS, PIPPIN_BLAS=library).startswith("reference")


def test_importing_mlx_first_is_noticed() -> None:
    assert "before pippin" in run_python(f"import mlx.core; {PRINT_BLAS}")


def test_products_are_the_same_with_either_library() -> None:
    code = (
        "from pippin.core.backend import mx; mx.random.seed(1); "
        "a, b = mx.random.normal((64, 96)), mx.random.normal((96, 48)); print((a @ b).sum().item())"
    )
    with_openblas, with_reference = run_python(code), run_python(code, PIPPIN_BLAS="none")
    assert float(with_openblas) == pytest.approx(float(with_reference), abs=1e-3)


@pytest.mark.parametrize("own", [{}, {"MLX_MAX_MB_PER_BUFFER": "50"}])
def test_cuda_gets_defaults_that_the_environment_overrules(
    own: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environ: dict[str, str] = {**own}
    monkeypatch.setattr(backend, "_has_cuda_backend", lambda: True)
    monkeypatch.setattr(os, "environ", environ)
    assert backend._prepare() is None
    assert environ == {**backend._CUDA_DEFAULTS, **own}
    assert environ["MLX_ENABLE_CACHE_THRASHING_CHECK"] == "0"


def test_compilation_is_off() -> None:
    # A compiled function runs its Python once per shape, a plain one at every call.
    code = (
        "from pippin.core.backend import mx; calls = []\n"
        "def double(x):\n    calls.append(1)\n    return x + x\n"
        "compiled = mx.compile(double)\n"
        "for _ in range(3): mx.eval(compiled(mx.ones(4)))\n"
        "print(len(calls))"
    )
    assert run_python(code) == "3"


def test_a_thread_count_that_is_set_is_left_alone() -> None:
    code = (
        "import pippin.core.backend as backend\n"
        "backend._blas_threads = lambda: 1 / 0\n"
        "print(backend._preload_openblas())"
    )
    assert run_python(code, OPENBLAS_NUM_THREADS="1").startswith("OpenBLAS")


def test_the_replaced_gate_is_as_exact_as_the_stock_one() -> None:
    x = mx.concatenate([mx.random.uniform(-30, 30, (20_000,)), mx.array([0.0, -100.0, 100.0])])
    wide = np.asarray(x).astype(np.float64)
    gate: Any = getattr(nn, "silu")  # noqa: B009 - unknown to mlx's stubs
    want = wide / (1 + np.exp(-wide))
    errors = [
        np.abs(np.asarray(silu(x)).astype(np.float64) - want).max() for silu in (gate, stock_silu)
    ]
    assert errors[0] <= 2 * errors[1]
    assert np.isnan(np.asarray(gate(mx.array([float("nan")]))))[0]


def test_exp2_is_exact_to_a_few_units_in_the_last_place() -> None:
    x = mx.random.uniform(-120, 20, (20_000,))
    want = np.exp2(np.asarray(x).astype(np.float64))
    assert (np.abs(np.asarray(exp2(x)) - want) / want).max() < 5e-7
    assert exp2(mx.array([-float("inf")])).item() == 0.0
