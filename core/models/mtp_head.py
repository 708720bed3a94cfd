"""A model's head for guessing further tokens, as mlx-vlm keeps it. Its only user of mlx-vlm's code.

mlx-lm leaves such heads out. mlx-vlm has them as models of their own, *drafters*, in a folder of
their own or among the tensors of an original checkpoint. A drafter there keeps what it knows of
one batch to itself; only its layers are of use here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..backend import mx  # first: what is below loads mlx

# isort: split
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import KVCache

from ..errors import ModelLoadError
from .loader import LoadedModel, local_folder, prepare_weights
from .model_folder import read_config
from .progress import Progress
from .source import resolve_source

# By drafter: the models that it was trained with, and how its layers are called with embeddings,
# hidden states, tokens and caches.
_TARGETS = {
    "qwen3_5_mtp": ("qwen3_5", "qwen3_5_moe", "qwen3_next"),
    "nemotron_h_mtp": ("nemotron_h",),
}
_FORWARD: dict[str, Callable[..., mx.array]] = {
    # Without positions its attention asks the cache.
    "qwen3_5_mtp": lambda forward, embedded, hidden, _, cache: forward(
        embedded, hidden, cache, None
    ),
    "nemotron_h_mtp": lambda forward, *inputs: forward(*inputs)[0],
}


class MtpHead(Module):
    """Layers that make hidden states of hidden states and tokens.

    Args:
        drafter: mlx-vlm's model.
        embed: The embedding of the model that it goes with.
    """

    def __init__(self, drafter: Any, embed: Callable[[mx.array], mx.array]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drafter = drafter
        # As a module it would be among the head's own.
        self._embed: Callable[[mx.array], mx.array] = lambda tokens: embed(tokens)
        self._forward = _FORWARD[drafter.config.model_type]

    @property
    def hidden_size(self) -> int:
        """Dimensions of hidden states."""
        return int(self.drafter.config.text_config.hidden_size)

    def make_cache(self) -> list[Any]:
        """mlx-lm's caches; mlx-vlm has others of the same name."""
        make: Any = KVCache
        return [make() for _ in self.drafter.make_cache()]

    def __call__(
        self, tokens: mx.array, cache: Any = None, hidden: mx.array | None = None
    ) -> mx.array:
        """Hidden states, ``[batch, length, dims]``, from which the token after next is drawn.

        Args:
            tokens: ``[batch, length]``, each the one behind a position.
            hidden: ``[batch, length, dims]``, what the model or this head made of that position;
                without it, as to try the layers, the embedding stands for that.
        """
        embedded = self._embed(tokens)
        hidden = embedded if hidden is None else hidden
        return self._forward(self.drafter._forward_hidden, embedded, hidden, tokens, cache)


def load_drafter(target: LoadedModel, source: str | None, *, progress: Progress) -> Any:
    """Load the drafter that goes with a model, in the model's dtype on a CPU.

    Args:
        source: Folder or hub id of a drafter or of an original checkpoint; ``None`` looks among
            the model's own tensors.

    Raises:
        DownloadError: It could not be fetched.
        ModelLoadError: There is none, or not one that can be run with this model.
    """
    folder = target.path
    if source is not None:
        folder = local_folder(resolve_source(source), progress)
    kind = _drafter_type(target, folder)
    if kind not in _TARGETS:
        raise ModelLoadError(
            f"MTP heads of type '{kind}' cannot be run, only {' and '.join(sorted(_TARGETS))}"
        )
    if target.model_type not in _TARGETS[kind]:
        raise ModelLoadError(
            f"an MTP head of type '{kind}' goes with {', '.join(_TARGETS[kind])}; "
            f"{target.model_id} is {target.model_type}"
        )
    progress.start("load", f"loading the MTP head of {target.model_id}")
    from mlx_vlm.speculative import drafters

    try:
        drafter, _ = drafters.load_drafter(str(folder), "mtp", lazy=True)
        prepare_weights(drafter, progress)
    # Foreign code on foreign files raises anything from KeyError to RuntimeError.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelLoadError(f"the MTP head in {folder} cannot be loaded: {reason}") from error
    progress.finish()
    return drafter


def _drafter_type(target: LoadedModel, folder: Path) -> str:
    from mlx_vlm.speculative.drafters import mtp_split

    config = read_config(folder)
    splitter: Any = mtp_split.get_mtp_splitter(source_config=config)
    if splitter is None:
        if folder == target.path:
            raise ModelLoadError(f"mlx-vlm has no MTP head for models of type {target.model_type}")
        return str(config["model_type"])
    if not any(splitter.iter_selected(folder, splitter.read_text_config(config))):
        raise ModelLoadError(
            f"{folder} holds no MTP head: most conversions leave it out. Name the original "
            "checkpoint, or what 'python -m mlx_vlm.split_mtp' made of it, as draft-model"
        )
    return str(splitter.output_model_type)
