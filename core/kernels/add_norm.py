"""An addition to the residual stream and the RMS norm after it, as one kernel: `add_norm.inc`."""

from __future__ import annotations

from ..backend import mx
from .launch import launch_all
from .paged_attention import float_bits

_MAX_DIMS = 16384  # of which a thread keeps 32 numbers
_FEW_DIMS = 2048


def supports(stream: mx.array, added: mx.array, weight: mx.array) -> bool:
    """Whether the kernel is written for such arrays."""
    alike = added.dtype == weight.dtype == stream.dtype and added.shape == stream.shape
    return alike and weight.shape == stream.shape[-1:] and 8 <= weight.size <= _MAX_DIMS


def add_norm(
    stream: mx.array, added: mx.array, weight: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    """``stream + added``, and that through the norm. May be part of a compiled graph.

    Args:
        stream: ``[..., dims]``.
        added: The same.
        weight: Of the norm, ``[dims]``.
    """
    dims = weight.size
    warps = 8 if dims <= _FEW_DIMS else 16
    sums, normed = launch_all(
        "add_norm",
        [stream, added, weight],
        {"T": stream.dtype, "DIMS": dims, "WARPS": warps, "EPS_BITS": float_bits(eps)},
        grid=(stream.size // dims, 1, 1),
        threads=32 * warps,
        outs=[(stream.shape, stream.dtype)] * 2,
    )
    return sums, normed
