"""`pippin models show`: what a model is, and what of it fits this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pippin.core.engine.memory_fit import MemoryFit, find_memory_fit
from pippin.core.errors import ModelLoadError
from pippin.core.models.download import find_downloaded
from pippin.core.models.loader import local_folder
from pippin.core.models.model_facts import ModelFacts, WeightFacts, read_facts, read_weight_facts
from pippin.core.models.model_folder import read_config
from pippin.core.models.source import SourceKind, resolve_source

from ..byte_size import format_bytes
from ..console import make_data_console, make_talk_console
from ..load_display import LoadDisplay
from .output import fact_table, print_json, say


def run_show(model: str, *, as_json: bool) -> None:
    """Print everything that can be told without loading weights.

    Raises:
        PippinError: It is not on this disk, or no model.
    """
    source = resolve_source(model)
    if source.kind is SourceKind.HUB:
        folder = find_downloaded(source.model_id)
    else:
        with LoadDisplay(make_talk_console()) as display:
            folder = local_folder(source, display)
    facts, weights = read_facts(folder), read_weight_facts(folder)
    fit, problem = None, None
    try:
        fit = find_memory_fit(folder, weights, model_id=source.model_id, context=facts.context)
    except ModelLoadError as error:
        problem = str(error)
    if as_json:
        print_json(_to_json(source.model_id, folder, facts, weights, fit, problem))
        return
    console = make_data_console()
    console.print(fact_table(_facts(source.model_id, folder, facts, weights)))
    if fit is None:
        say(f"layers unknown: {problem}")
        return
    console.print()
    console.print(fact_table(_memory_facts(fit)))
    if fit.costs and fit.cache_bytes > 0:
        console.print()
        _print_costs(console, fit)


def _facts(
    model_id: str, folder: Path, facts: ModelFacts, weights: WeightFacts
) -> dict[str, str | None]:
    dtypes = ", ".join(f"{name} {format_bytes(n)}" for name, n in weights.bytes_by_dtype.items())
    files = "file" if weights.num_files == 1 else "files"
    return {
        "model": model_id,
        "folder": str(folder),
        "type": ", ".join(filter(None, (facts.model_type, facts.architecture))),
        "parameters": f"{weights.num_parameters:,}",
        "weights": f"{facts.quantization or 'plain'}, {weights.bits_per_weight:.2f} bits each",
        "on disk": f"{format_bytes(weights.num_bytes)} in {weights.num_files} {files} ({dtypes})",
        "context": None if facts.context is None else f"{facts.context:,} tokens",
        "takes": facts.modality,
        "licence": facts.licence,
    }


def _memory_facts(fit: MemoryFit) -> dict[str, str | None]:
    left = (
        f"about {format_bytes(fit.cache_bytes)} for keys and values"
        if fit.cache_bytes > 0
        else "nothing: the weights do not fit this machine"
    )
    return {
        "layers": fit.layout.describe(),
        "device": f"{fit.device}, {format_bytes(fit.memory_bytes)}",
        "loaded": f"{format_bytes(fit.weight_bytes)} of weights",
        "left": left,
    }


def _print_costs(console: Console, fit: MemoryFit) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("--kv-bits")
    for cost in fit.costs:
        table.add_column(cost.kv_bits, justify="right", no_wrap=True)
    rows: dict[str, list[str]] = {"bytes a token": [f"{it.bytes_per_token:,}" for it in fit.costs]}
    if any(it.fixed_bytes for it in fit.costs):
        rows["bytes a sequence, besides"] = [format_bytes(it.fixed_bytes) for it in fit.costs]
    rows["longest sequence"] = [f"{it.longest:,}" for it in fit.costs]
    for length in fit.costs[0].streams:
        rows[f"sequences of {length:,} tokens"] = [f"{it.streams[length]:,}" for it in fit.costs]
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)


def _to_json(
    model_id: str,
    folder: Path,
    facts: ModelFacts,
    weights: WeightFacts,
    fit: MemoryFit | None,
    problem: str | None,
) -> dict[str, Any]:
    memory = None
    if fit is not None:
        memory = {
            "device": fit.device,
            "memory_bytes": fit.memory_bytes,
            "weight_bytes": fit.weight_bytes,
            "cache_bytes": fit.cache_bytes,
            "kv_costs": [asdict(cost) for cost in fit.costs],
        }
    return {
        "model": model_id,
        "folder": str(folder),
        **asdict(facts),
        "weights": {**asdict(weights), "bits_per_weight": weights.bits_per_weight},
        "layers": None if fit is None else fit.layout.describe(),
        "memory": memory,
        "problem": problem,
        "config": read_config(folder),
    }
