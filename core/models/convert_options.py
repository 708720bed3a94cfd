"""What a conversion is to make of a model's weights, and which of these wishes go together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..errors import ConfigError


class QuantMode(StrEnum):
    """Formats of quantised weights."""

    AFFINE = "affine"
    MXFP4 = "mxfp4"
    MXFP8 = "mxfp8"
    NVFP4 = "nvfp4"


class Recipe(StrEnum):
    """Ways to give some layers more bits than others."""

    MIXED_2_6 = "mixed_2_6"
    MIXED_3_4 = "mixed_3_4"
    MIXED_3_6 = "mixed_3_6"
    MIXED_4_6 = "mixed_4_6"

    @property
    def low_bits(self) -> int:
        """Bits of most layers."""
        return int(self.value.split("_")[1])


class WeightDtype(StrEnum):
    """Dtypes of plain weights."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


# By mode: bits that it may have, the usual number first, and the same of group sizes.
# Source: ml-explore.github.io/mlx, "mlx.core.quantize".
_MODES: dict[QuantMode, tuple[tuple[int, ...], tuple[int, ...]]] = {
    QuantMode.AFFINE: ((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    QuantMode.MXFP4: ((4,), (32,)),
    QuantMode.MXFP8: ((8,), (32,)),
    QuantMode.NVFP4: ((4,), (16,)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """What becomes of the weights.

    Attributes:
        bits: Of quantised weights; ``None`` for the mode's usual number, if anything else asks for
            quantisation.
        group_size: Weights that share a scale; ``None`` for the mode's usual number.
        mode: ``None`` for affine.
        recipe: Chooses the bits layer by layer.
        dtype: Of weights that are not quantised, and of scales; ``None`` keeps it.
        dequantize: Make plain numbers of quantised weights.
    """

    bits: int | None = None
    group_size: int | None = None
    mode: QuantMode | None = None
    recipe: Recipe | None = None
    dtype: WeightDtype | None = None
    dequantize: bool = False

    def __post_init__(self) -> None:
        mode = self.used_mode
        bits, sizes = _MODES[mode]
        if self.recipe is not None and (self.bits is not None or mode is not QuantMode.AFFINE):
            raise ConfigError("--recipe chooses bits and mode itself; give neither with it")
        if self.bits is not None and self.bits not in bits:
            raise ConfigError(f"{mode} weights have {_one_of(bits)} bits")
        if self.group_size is not None and self.group_size not in sizes:
            raise ConfigError(f"{mode} weights come in groups of {_one_of(sizes)}")
        if self.dequantize and self.quantizes:
            raise ConfigError("--dequantize does not go with quantisation: convert twice")

    @property
    def used_mode(self) -> QuantMode:
        """The mode, if weights are to be quantised."""
        return self.mode or QuantMode.AFFINE

    @property
    def used_bits(self) -> int:
        """Bits of all layers that no recipe gives others."""
        if self.recipe is not None:
            return self.recipe.low_bits
        return self.bits or _MODES[self.used_mode][0][0]

    @property
    def used_group_size(self) -> int:
        """Weights that share a scale."""
        return self.group_size or _MODES[self.used_mode][1][0]

    @property
    def quantizes(self) -> bool:
        """Whether weights are to be quantised."""
        asked = (self.bits, self.group_size, self.mode, self.recipe)
        return any(value is not None for value in asked)

    @property
    def suffix(self) -> str:
        """What the folder's name ends with."""
        if self.recipe is not None:
            return self.recipe.replace("_", "-")
        if self.quantizes:
            affine = self.used_mode is QuantMode.AFFINE
            return f"{self.used_bits}bit" if affine else self.used_mode.value
        return self.dtype or ("plain" if self.dequantize else "mlx")


def _one_of(values: tuple[int, ...]) -> str:
    *some, last = sorted(values)
    return f"{', '.join(map(str, some))} or {last}" if some else str(last)
