"""Tiny random models through a GGUF file and back."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pippin.core.backend import mx
from pippin.core.errors import ModelLoadError
from pippin.core.models.convert import convert_model
from pippin.core.models.convert_options import ConvertOptions, WeightDtype
from pippin.core.models.gguf import convert_gguf, restore_rotary_rows
from pippin.core.models.loader import load_folder
from pippin.core.models.progress import NullProgress

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS, VOCAB = 32, 4, 2, 8, 48, 2, 280

GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ARCHITECTURES = ["llama", "qwen2", "qwen3"]


def make_weights(arch: str, *, tied: bool) -> dict[str, mx.array]:
    """Random weights under mlx-lm's names, in float16."""
    mx.random.seed(7)

    def normal(*shape: int) -> mx.array:
        return mx.random.normal(shape).astype(mx.float16)

    weights = {"model.embed_tokens.weight": normal(VOCAB, HIDDEN), "model.norm.weight": normal(32)}
    if not tied:
        weights["lm_head.weight"] = normal(VOCAB, HIDDEN)
    for layer in range(LAYERS):
        q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        parts = {
            "self_attn.q_proj.weight": normal(q, HIDDEN),
            "self_attn.k_proj.weight": normal(kv, HIDDEN),
            "self_attn.v_proj.weight": normal(kv, HIDDEN),
            "self_attn.o_proj.weight": normal(HIDDEN, q),
            "mlp.gate_proj.weight": normal(MLP, HIDDEN),
            "mlp.up_proj.weight": normal(MLP, HIDDEN),
            "mlp.down_proj.weight": normal(HIDDEN, MLP),
            "input_layernorm.weight": normal(HIDDEN),
            "post_attention_layernorm.weight": normal(HIDDEN),
        }
        if arch == "qwen2":
            parts |= {
                f"self_attn.{n}_proj.bias": normal(s)
                for n, s in zip("qkv", (q, kv, kv), strict=True)
            }
        if arch == "qwen3":
            parts |= {f"self_attn.{n}_norm.weight": normal(HEAD_DIM) for n in "qk"}
        weights |= {f"model.layers.{layer}.{name}": array for name, array in parts.items()}
    return weights


def interleave(array: mx.array, num_heads: int) -> mx.array:
    """A llama GGUF's row order, written out: even rows from the first half of a head."""
    half = HEAD_DIM // 2
    order = [
        head * HEAD_DIM + (row % 2) * half + row // 2
        for head in range(num_heads)
        for row in range(HEAD_DIM)
    ]
    return array[mx.array(order)]


def write_gguf(path: Path, arch: str, weights: dict[str, mx.array], **extra: Any) -> None:
    tensors = {}
    for name, array in weights.items():
        stem, part = name.rsplit(".", 1)
        if name.startswith("model.layers."):
            _, _, layer, rest = stem.split(".", 3)
            if arch == "llama" and rest.endswith(("q_proj", "k_proj")):
                array = interleave(array, HEADS if "q_proj" in rest else KV_HEADS)
            stem = f"blk.{layer}.{GGUF_NAMES[rest]}"
        else:
            stem = {
                "model.embed_tokens": "token_embd",
                "model.norm": "output_norm",
                "lm_head": "output",
            }[stem]
        tensors[f"{stem}.{part}"] = array.astype(mx.float32) if array.ndim == 1 else array
    metadata: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.embedding_length": HIDDEN,
        f"{arch}.feed_forward_length": MLP,
        f"{arch}.block_count": LAYERS,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.attention.key_length": HEAD_DIM,
        f"{arch}.context_length": 128,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [f"t{index}" for index in range(VOCAB)],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": 3,
        **extra,
    }
    # mlx's writer has no empty lists; one merge of two tokens that are there will do.
    metadata["tokenizer.ggml.tokens"][:3] = ["a", "b", "ab"]
    metadata["tokenizer.ggml.merges"] = ["a b"]
    kinds = {int: mx.uint32, float: mx.float32}
    packed = {
        key: mx.array(value, kinds[type(value)]) if type(value) in kinds else value
        for key, value in metadata.items()
        if value is not None
    }
    mx.save_gguf(str(path), tensors, packed)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_weights_come_back_exactly(tmp_path: Path, arch: str, tied: bool) -> None:
    weights = make_weights(arch, tied=tied)
    write_gguf(tmp_path / "tiny.gguf", arch, weights)
    folder = convert_gguf(tmp_path / "tiny.gguf", NullProgress())
    converted = mx.load(str(folder / "model.safetensors"))
    assert isinstance(converted, dict)
    assert converted.keys() == weights.keys()
    for name, array in weights.items():
        assert converted[name].dtype == array.dtype
        assert mx.array_equal(converted[name], array).item(), name
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied
    assert config["rms_norm_eps"] == 1e-5


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_converted_model_runs(tmp_path: Path, arch: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", arch, make_weights(arch, tied=True))
    folder = convert_gguf(tmp_path / "tiny.gguf", NullProgress())
    loaded = load_folder(folder, model_id="tiny", progress=NullProgress())
    logits = loaded.model(mx.array([[1, 2, 3]]))
    assert logits.shape == (1, 3, VOCAB)
    assert mx.isfinite(logits).all().item()
    assert (loaded.max_model_len, loaded.eos_token_ids) == (128, (3,))


def test_a_second_conversion_is_the_first_ones_folder(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, "llama", make_weights("llama", tied=True))
    first = convert_gguf(path, NullProgress())
    assert convert_gguf(path, NullProgress()) == first
    write_gguf(path, "llama", make_weights("llama", tied=False))
    assert convert_gguf(path, NullProgress()) != first


def test_convert_makes_a_model_with_a_name_of_it(tmp_path: Path, private_cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, "llama", make_weights("llama", tied=True))
    made = convert_model(str(path), ConvertOptions(dtype=WeightDtype.FLOAT32), NullProgress())
    folder = private_cache / "models" / "tiny-float32"
    assert made.folder == folder
    assert [p.name for p in folder.parent.iterdir() if p != folder] == [".tiny-float32.lock"]
    assert not [p for p in folder.iterdir() if p.is_dir()]
    loaded = load_folder(folder, model_id="tiny", progress=NullProgress())
    assert loaded.num_parameters


def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, "llama", make_weights("llama", tied=True))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pippin.core.models.gguf.write_tokenizer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(path, NullProgress())
    assert [entry for entry in (private_cache / "models").iterdir() if entry.is_dir()] == []


@pytest.mark.parametrize("trailing", [(), (5,)])
def test_rotary_rows_are_restored(trailing: tuple[int, ...]) -> None:
    array = mx.random.normal((HEADS * HEAD_DIM, *trailing))
    assert mx.array_equal(restore_rotary_rows(interleave(array, HEADS), HEADS), array).item()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"llama.expert_count": 8}, "with experts"),
        ({"llama.embedding_length": None}, "llama.embedding_length is missing"),
        ({"llama.block_count": "two"}, "llama.block_count is not"),
        ({"llama.rope.dimension_count": 4}, "over 4 of 8 dimensions"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope' cannot"),
        ({"tokenizer.ggml.model": "t5"}, "'t5' cannot"),
        ({"tokenizer.ggml.pre": "novel"}, "'novel' is not known"),
    ],
)
def test_what_cannot_be_converted_is_named(
    tmp_path: Path, extra: dict[str, Any], said: str
) -> None:
    write_gguf(tmp_path / "a.gguf", "llama", make_weights("llama", tied=True), **extra)
    with pytest.raises(ModelLoadError, match=said):
        convert_gguf(tmp_path / "a.gguf", NullProgress())


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    weights = make_weights("llama", tied=True)
    path = tmp_path / "a.gguf"
    write_gguf(path, "llama", weights)
    content: Any = mx.load(str(path), return_metadata=True)
    tensors, metadata = content
    tensors["blk.0.surprise.weight"] = mx.ones((4,))
    mx.save_gguf(str(path), tensors, dict(metadata))
    with pytest.raises(ModelLoadError, match=r"blk\.0\.surprise\.weight has no place"):
        convert_gguf(path, NullProgress())


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recognised_by_its_frequencies(tmp_path: Path, factor: float) -> None:
    freqs = []
    for index in range(HEAD_DIM // 2):
        wavelength = 2 * math.pi * 500000.0 ** (2 * index / HEAD_DIM)
        if wavelength < 8192 / 4:
            freqs.append(1.0)
        elif wavelength > 8192:
            freqs.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            freqs.append(1 / ((1 - smooth) / factor + smooth))
    path = tmp_path / "a.gguf"
    write_gguf(
        path, "llama", make_weights("llama", tied=True), **{"llama.rope.freq_base": 500000.0}
    )
    content: Any = mx.load(str(path), return_metadata=True)
    tensors, metadata = content
    mx.save_gguf(str(path), {**tensors, "rope_freqs.weight": mx.array(freqs)}, dict(metadata))
    folder = convert_gguf(path, NullProgress())
    scaling = json.loads((folder / "config.json").read_text())["rope_scaling"]
    assert (scaling["rope_type"], scaling["factor"]) == ("llama3", factor)
    mx.save_gguf(str(path), {**tensors, "rope_freqs.weight": mx.array(freqs) * 1.1}, dict(metadata))
    with pytest.raises(ModelLoadError, match="follow no known rule"):
        convert_gguf(path, NullProgress())
