"""A llama whose weights are a script: it says given texts token by token, then its end token.

What it says hangs on two things only: the marker token that was put last into the prompt, and how
many tokens have come since. What those are makes no difference, so that a script may repeat itself,
and an answer goes on in step even where a grammar forced another token.

How it counts, in two layers of one attention head each:

1. Every token looks for a marker; behind one, it has a flag that says which.
2. Every token attends to all flagged tokens alike, and takes in 1 from the marker and 0 from the
   others. The d-th token behind the marker so gets 1 / (d + 1), which the MLP compares with a
   threshold for each position of each script: each that is passed takes the script's former token
   off the output and puts its next one there.

Float32 on the CPU or on Metal can tell some thousand positions apart, TF32 cannot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from byte_tokenizer import EOS, make_byte_tokenizer
from numpy.typing import NDArray

from pippin.core.backend import mx

MARKER = "<|script-{}|>"
# ChatML that shows tools as the Hermes and Qwen templates do.
TOOL_CHATML = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}\n{{ tool | tojson }}"
    "{% endfor %}\n</tools>\nAnswer with <tool_call>\n"
    '{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HEAD_DIM = 64
# Of a logit: the script's token, and what a grammar that forbids it gets instead, so that what is
# open is soon closed.
_ON_SCRIPT = 40.0
_OFF_SCRIPT = {EOS: 16.0, '"': 14.0, "}": 12.0, "]": 12.0, ":": 10.0, "{": 8.0, "1": 8.0, ",": 6.0}
# e to this over any prompt's length is far beyond float32's precision.
_ATTEND = 40.0
_STEEPNESS = 80.0
_OUTPUT_GAIN = 3.0

Weights = dict[str, NDArray[np.float32]]


def write_scripted_model(
    folder: Path,
    scripts: Mapping[str, str],
    *,
    chat_template: str = TOOL_CHATML,
    tokens: Sequence[str] = (),
    special_tokens: Sequence[str] = (),
    opening: str = "",
) -> Path:
    """Write a model folder that any loader of llama models takes.

    Args:
        scripts: What to say if the last message of a conversation holds the key, by key; the first
            that fits, else the very first, is said. A plain prompt selects the script number ``i``
            by ending with ``MARKER.format(i)``.
        chat_template: Any; the choice of the script is put behind what it renders.
        opening: Where the template begins the answer with it, such as with ``<think>``, the choice
            is put before it, so that the prompt still ends with it.
        tokens: Texts to be tokens of their own, such as ``<tool_call>``.
        special_tokens: The same, but not shown in an answer's text.

    Returns:
        The folder.
    """
    texts = [*scripts.values()]
    if opening:
        texts += [opening + text for text in texts]
    assert 0 < len(texts) <= _HEAD_DIM
    markers = [MARKER.format(index) for index in range(len(texts))]
    tokenizer = make_byte_tokenizer(chat_template=_choosing(chat_template, scripts, opening))
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_tokens([*special_tokens, *markers], special_tokens=True)
    marker_ids = tokenizer.convert_tokens_to_ids(markers)
    spoken = [
        [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        for text in texts
    ]
    config, weights = _compile(marker_ids, spoken, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    arrays = {name: mx.array(array) for name, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "mlx"})
    return folder


def _choosing(template: str, scripts: Mapping[str, str], opening: str) -> str:
    """The template, and the marker of the script that the last message asks for."""
    choice = "".join(
        f"{{% elif {json.dumps(key)} in said %}}{{% set chosen = {index} %}}"
        for index, key in enumerate(scripts)
    )
    head, tail = MARKER.split("{}")
    return (
        f"{{% set shown %}}{template.removesuffix(chr(10))}{{% endset %}}"
        "{% set said = messages[-1].content | string %}{% set opening = "
        f"{json.dumps(opening)} if shown.endswith({json.dumps(opening)}) else '' %}}"
        f"{{% if false %}}{choice}{{% else %}}{{% set chosen = 0 %}}{{% endif %}}"
        f"{{% if opening %}}{{% set chosen = chosen + {len(scripts)} %}}{{% endif %}}"
        "{{ shown[: shown | length - opening | length] }}{% if add_generation_prompt %}"
        f"{head}{{{{ chosen }}}}{tail}{{% endif %}}{{{{ opening }}}}"
    )


@dataclass(frozen=True)
class _Dims:
    """Dimensions of the residual stream.

    `other` is 1 where `is_marker` is not, so that all tokens have one norm.
    """

    is_marker: slice
    seen: slice
    const: int
    other: int
    count: int
    out: dict[int, int]  # by token of the scripts
    size: int


def _compile(
    marker_ids: Sequence[int], spoken: Sequence[Sequence[int]], tokenizer: Any
) -> tuple[dict[str, Any], Weights]:
    num, num_neurons = len(spoken), 2 * sum(map(len, spoken))
    out_tokens = sorted({token for ids in spoken for token in ids})
    out = {token: 2 * num + 3 + index for index, token in enumerate(out_tokens)}
    dims = _Dims(
        is_marker=slice(num),
        seen=slice(num, 2 * num),
        const=2 * num,
        other=2 * num + 1,
        count=2 * num + 2,
        out=out,
        size=2 * num + 3 + len(out),
    )
    embedding = np.zeros((len(tokenizer), dims.size), np.float32)
    embedding[:, [dims.const, dims.other]] = 1
    embedding[marker_ids, dims.other] = 0
    embedding[marker_ids, dims.is_marker] = np.eye(num)
    weights = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": np.ones(dims.size, np.float32),
        "lm_head.weight": _head(dims, tokenizer),
    }
    which, any_of = np.eye(num), np.ones((1, num))
    count = slice(dims.count, dims.count + 1)
    layers = (
        _attention(dims, 2, dims.is_marker, which, dims.seen) | _silence(dims, num_neurons),
        _attention(dims, 3, dims.seen, any_of, count) | _steps(dims, spoken, num_neurons),
    )
    for index, layer in enumerate(layers):
        weights |= {f"model.layers.{index}.{name}.weight": array for name, array in layer.items()}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dims.size,
        "intermediate_size": num_neurons,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": 1 << 17,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e15,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return config, weights


def _attention(
    dims: _Dims, norm_square: int, marked: slice, value: NDArray[np.float64], written: slice
) -> Weights:
    """Attend to what is `marked`, and write the mean of `value` times `is_marker`."""
    scale = np.sqrt(dims.size / norm_square)  # of the normed input, whose square norm is given
    query, key, values = np.zeros((3, _HEAD_DIM, dims.size), np.float32)
    # This pair of dimensions turns with the position, but so slowly that it stands still.
    still = _HEAD_DIM // 2 - 1
    query[still, dims.const] = key[still, marked] = np.sqrt(_ATTEND * np.sqrt(_HEAD_DIM)) / scale
    values[: len(value), dims.is_marker] = value / scale
    output = np.zeros((dims.size, _HEAD_DIM), np.float32)
    output[written, : len(value)] = np.eye(len(value))
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    arrays = {
        f"self_attn.{name}": array
        for name, array in zip(names, (query, key, values, output), strict=True)
    }
    norms = ("input_layernorm", "post_attention_layernorm")
    return arrays | {name: np.ones(dims.size, np.float32) for name in norms}


def _silence(dims: _Dims, num_neurons: int) -> Weights:
    gate, up = np.zeros((2, num_neurons, dims.size), np.float32)
    return {"mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": gate.T.copy()}


def _steps(dims: _Dims, spoken: Sequence[Sequence[int]], num_neurons: int) -> Weights:
    """At each position of each script, put its token in the place of the one before."""
    arrays = _silence(dims, num_neurons)
    gate, up, down = arrays.values()
    up[:, dims.const] = 1
    neuron = 0
    for script, ids in enumerate(spoken):
        for position, token in enumerate(ids):
            here, before = 1 / (position + 1), 1 / position if position else 2.0
            steepness = _STEEPNESS / (before - here)
            # Two ramps, begun a quarter and three quarters of the way: their difference is 0
            # before this position, and half of `_STEEPNESS` from it on.
            for part, sign in ((0.75, 1), (0.25, -1)):
                threshold = steepness * (here + part * (before - here))
                mute = 3 * threshold  # more than the rest can outweigh, in any other script
                gate[neuron, dims.count] = -steepness
                gate[neuron, dims.const] = threshold - mute
                gate[neuron, dims.seen.start + script] = mute
                down[dims.out[token], neuron] += sign
                if position:
                    down[dims.out[ids[position - 1]], neuron] -= sign
                neuron += 1
    # The normed input, whose square norm is 3 but for the count's, enters by gate and by up.
    down *= _OUTPUT_GAIN / (_STEEPNESS / 2 * dims.size / 3)
    return arrays


def _head(dims: _Dims, tokenizer: Any) -> NDArray[np.float32]:
    head = np.zeros((len(tokenizer), dims.size), np.float32)
    scale = np.sqrt(dims.size / (3 + _OUTPUT_GAIN**2))
    for token, index in dims.out.items():
        head[token, index] = _ON_SCRIPT / (_OUTPUT_GAIN * scale)
    for text, logit in _OFF_SCRIPT.items():
        head[tokenizer.convert_tokens_to_ids(text), dims.const] = logit / scale
    return head
