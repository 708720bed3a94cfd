"""Keys and values in 8 or 4 bits: the setting, and the layers that follow it.

Only layers that keep all of the past do. Windows and states are small whatever happens.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from ..config import KVBits
from ..errors import ConfigError
from .kv_layout import KVLayout, LayerKind, LayerSpec

logger = logging.getLogger(__name__)

# Numbers along a head's vector that share a scale and a bias, by preference; what MLX has kernels
# for. Of 128 the bits saved are few and the error is larger.
_GROUP_SIZES = (64, 32)


def quantize_layout(layout: KVLayout, bits: KVBits) -> KVLayout:
    """The same layers with fewer bits where they keep all of the past.

    Raises:
        ConfigError: There is no layer that this could be done to.
    """
    layers = [_quantize(layer, bits) for layer in layout.layers]
    if not any(layer.is_quantized for layer in layers):
        raise ConfigError(
            f"kv-bits {bits} cannot be used with this model: no layer keeps all of the past in "
            f"heads of a multiple of {_GROUP_SIZES[-1]} numbers ({layout.describe()})"
        )
    left_out = sum(it.kind is LayerKind.FULL and not it.is_quantized for it in layers)
    if left_out:
        logger.warning(
            "kv-bits %s leaves %d layers as they are: their heads are no multiple of %d numbers",
            bits,
            left_out,
            _GROUP_SIZES[-1],
        )
    return KVLayout(layers, layout.tree)


def _quantize(layer: LayerSpec, bits: KVBits) -> LayerSpec:
    dims = layer.key_dim, layer.value_dim
    size = next((size for size in _GROUP_SIZES if not any(dim % size for dim in dims)), None)
    if layer.kind is not LayerKind.FULL or size is None:
        return layer
    return replace(layer, key_bits=bits.keys, value_bits=bits.values, group_size=size)
