"""`pippin models convert`: the work, with a bar, and a line about what came out."""

from __future__ import annotations

from typing import Any

from pippin.core.models.convert import convert_model
from pippin.core.models.convert_options import ConvertOptions

from ..byte_size import format_bytes
from ..console import make_data_console, make_talk_console
from ..load_display import LoadDisplay
from .output import print_json


def run_convert(model: str, output: str | None, *, as_json: bool, **options: Any) -> None:
    """Convert a model.

    Args:
        options: See `ConvertOptions`.

    Raises:
        PippinError: The options do not go together, the model cannot be converted, or there is
            something where the new one would be.
    """
    wanted = ConvertOptions(**options)
    with LoadDisplay(make_talk_console()) as display:
        made = convert_model(model, wanted, display, output=output)
    if as_json:
        print_json(
            {
                "folder": str(made.folder),
                "bytes": made.num_bytes,
                "bits_per_weight": made.bits_per_weight,
            }
        )
        return
    name = made.folder.name if output is None or "/" not in output else output
    make_data_console().print(
        f"{name}: {format_bytes(made.num_bytes)}, {made.bits_per_weight:.2f} bits per weight; "
        f"try it with `pippin models check {name}`",
        markup=False,
        soft_wrap=True,
    )
