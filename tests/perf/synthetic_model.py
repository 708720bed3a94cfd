"""Writes a checkpoint with the shape of a known model, a real tokenizer and made-up weights.

Speed does not depend on the values of weights. Greedy answers never end by themselves: special
tokens have embeddings and outputs of zero. Where the output layer is not tied to the embeddings, a
model with these weights goes through a cycle of thousands of words (`workloads.read_cycle`) from
whatever word it is at: each word's output is the embedding of the word before, which is loud enough
that layers of noise do not matter.

``gpu_comparison.py`` runs it; by hand::

    python tests/perf/synthetic_model.py large --tokenizer DIR FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from workloads import read_cycle

from pippin.core.backend import mx
from pippin.core.models.cache_folder import publish_folder

# isort: split
from mlx.nn.layers.quantized import quantize  # noqa: TID251
from mlx_lm.models.qwen3 import Model, ModelArgs

_SMALL = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "small": _SMALL,  # Qwen3-0.6B
    "small-untied": {**_SMALL, "tie_word_embeddings": False},
    "large": {  # Qwen3-8B
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "tie_word_embeddings": False,
    },
}
_BITS, _GROUP_SIZE = 4, 64
_LOUDNESS = 8.0
_TOKENIZER_FILES = ("tokenizer", "special_tokens", "chat_template", "vocab", "merges")


def write_model(shape: str, tokenizer: Path, target: Path) -> None:
    """Make the folder, unless it is there."""
    publish_folder(target, lambda folder: _write(SHAPES[shape], tokenizer, folder))


def _write(shape: dict[str, Any], tokenizer: Path, folder: Path) -> None:
    for path in tokenizer.iterdir():
        if path.name.startswith(_TOKENIZER_FILES):
            shutil.copy(path, folder)
    table = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    special = [token["id"] for token in table["added_tokens"]]
    vocab: dict[str, int] = table["model"]["vocab"]
    config = {
        "model_type": "qwen3",
        **shape,
        "vocab_size": max(*vocab.values(), *special) + 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 40960,
    }
    mx.random.seed(0)
    model = Model(ModelArgs(**config))
    model.set_dtype(mx.bfloat16)
    embeddings = model.model.embed_tokens.weight
    embeddings[mx.array(special)] = 0
    if not shape["tie_word_embeddings"]:
        cycle = [vocab[f"\u0120{word}"] for word in read_cycle(tokenizer / "tokenizer.json")]
        outputs = mx.zeros_like(embeddings)
        outputs[mx.array(cycle[1:] + cycle[:1])] = embeddings[mx.array(cycle)]
        model.lm_head.weight = outputs
        # They have a variance of 1 / hidden_size.
        embeddings = embeddings * (_LOUDNESS * shape["hidden_size"] ** 0.5)
    model.model.embed_tokens.weight = embeddings
    quantize(model, _GROUP_SIZE, _BITS)
    config["quantization"] = {"group_size": _GROUP_SIZE, "bits": _BITS}
    model.save_weights(str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of tokenizer.json")
    args = parser.parse_args()
    write_model(args.shape, args.tokenizer, args.folder)


if __name__ == "__main__":
    main()
