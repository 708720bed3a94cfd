"""A source string to an engine that serves it, with everything there is to say about the model."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..backend import blas_name, device_kind
from ..config import EngineConfig, Speculation
from ..models.loader import LoadedModel, load_model
from ..models.mtp_head import load_drafter
from ..models.progress import Progress
from .client import ModelCard
from .engine import Engine
from .factory import BuiltEngine, build_engine
from .prompt_builder import PromptBuilder
from .reply_dialect import ReplyDialect, check_parser_names


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the engine thread needs to begin."""

    engine: Engine
    card: ModelCard
    prompts: PromptBuilder


def load_engine(
    source: str, config: EngineConfig, *, served_model_name: str | None, progress: Progress
) -> ServedModel:
    """Fetch, load and probe a model and build its engine, on the calling thread.

    Raises:
        PippinError: Any of that failed.
    """
    check_parser_names(config.tool_call_parser, config.reasoning_parser)
    loaded = load_model(source, progress=progress)
    draft = drafter = None
    if config.speculation is Speculation.MTP:
        drafter = load_drafter(loaded, config.draft_model, progress=progress)
    elif config.draft_model is not None:
        draft = load_model(config.draft_model, progress=progress)
    progress.start("warm-up", "checking the paged cache")
    built = build_engine(loaded, config, draft=draft, drafter=drafter)
    if built.paging_problem is not None:
        progress.note(f"one request at a time: {built.paging_problem}")
    progress.finish()
    dialect = ReplyDialect.of_model(
        built.tokenizer,
        loaded.model_type,
        tool_parser=config.tool_call_parser,
        reasoning_parser=config.reasoning_parser,
    )
    prompts = PromptBuilder(
        built.tokenizer,
        max_model_len=built.max_model_len,
        vocab_size=loaded.vocab_size,
        dialect=dialect,
    )
    card = _card(loaded, built, dialect, config, served_model_name)
    return ServedModel(built.engine, card, prompts)


def _card(
    loaded: LoadedModel,
    built: BuiltEngine,
    dialect: ReplyDialect,
    config: EngineConfig,
    served_model_name: str | None,
) -> ModelCard:
    model_id = served_model_name or loaded.model_id
    paged = built.paging_problem is None
    return ModelCard(
        model_id=model_id,
        aliases=() if model_id == loaded.model_id else (loaded.model_id,),
        created_unix=int(time.time()),
        max_model_len=built.max_model_len,
        vocab_size=loaded.vocab_size,
        default_sampling=loaded.default_sampling,
        chat_template=built.tokenizer.chat_template_text,
        details={
            "model_type": loaded.model_type,
            "device": device_kind(),
            "blas": blas_name() if device_kind() == "cpu" else None,
            "dtype": loaded.dtype,
            "quantization": loaded.quantization,
            "num_parameters": loaded.num_parameters,
            "weight_bytes": loaded.weight_bytes,
            "layers": built.layout.describe(),
            "attention": "paged" if paged else "sequential",
            "attention_kernel": built.attention if paged else None,
            "linear_layers": built.linear.splitlines(),
            "speculation": config.speculation.value if paged else Speculation.OFF.value,
            "draft_tokens": config.draft_tokens,
            "tool_parser": dialect.tools,
            "reasoning_parser": dialect.reasoning,
            "max_num_seqs": config.scheduler.max_num_seqs,
            "paging_problem": built.paging_problem,
            "kv_capacity_tokens": built.kv_capacity_tokens,
        },
    )
