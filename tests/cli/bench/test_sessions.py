"""What is sent: prompts of files and prompts that are made up."""

from __future__ import annotations

import base64
import io
import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pippin.cli.bench.images import make_data_url, make_png
from pippin.cli.bench.plan import Endpoint, Length, Workload, WorkloadKind
from pippin.cli.bench.prompt_files import file_digest, read_prompts, read_sharegpt
from pippin.cli.bench.sessions import SessionMaker, read_file
from pippin.cli.bench.words import WORDS, TokenScale, make_text
from pippin.core.errors import ConfigError


def make_workload(**changes: Any) -> Workload:
    fields: dict[str, Any] = {
        "kind": WorkloadKind.SYNTHETIC,
        "endpoint": Endpoint.CHAT,
        "input_tokens": Length(50, 10),
        "output_tokens": Length(8, 4),
        "prefix_tokens": 0,
        "num_prefixes": 1,
        "turns": 1,
        "file": None,
        "unique_prefix": True,
        "images": 0,
        "image_size": (64, 64),
        "inputs": 1,
        "ignore_eos": False,
        "temperature": 0.0,
        "extra_body": {},
    }
    return Workload(**{**fields, **changes})


def first(workload: Workload, count: int, *, seed: int = 0, part: str = "x") -> list[Any]:
    maker = SessionMaker(workload, read_file(workload), TokenScale(), seed)
    return list(islice(maker.make(part), count))


def test_lengths_spread_evenly_around_their_mean() -> None:
    turns = [turn for (turn,) in first(make_workload(), 500)]
    words = [len(turn.messages[0]["content"].split()) for turn in turns]
    assert (min(words), max(words)) == (40, 60)
    assert {turn.max_tokens for turn in turns} == set(range(4, 13))


def test_sessions_are_the_seeds_and_the_parts() -> None:
    workload = make_workload()
    assert first(workload, 3) == first(workload, 3)
    assert first(workload, 3) != first(workload, 3, seed=1)
    assert first(workload, 3) != first(workload, 3, part="y")


def test_words_come_to_the_wanted_tokens() -> None:
    scale = TokenScale(tokens_per_word=2.0, overhead=10.0)
    assert (scale.num_words(110), scale.num_more_words(100), scale.num_words(3)) == (50, 50, 1)
    assert len(set(WORDS)) == len(WORDS) > 250
    assert len(make_text(random.Random(0), 12).split()) == 12


def test_a_file_of_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n two \n")
    texts = [prompt.messages[0]["content"] for prompt in read_prompts(file)]
    assert texts == ["one", " two "]
    workload = make_workload(kind=WorkloadKind.PROMPTS, file=file, output_tokens=None)
    contents = [turn.messages[0]["content"] for (turn,) in first(workload, 4)]
    assert sorted(content.partition("\n\n")[2] for content in contents) == sorted(texts * 2)
    assert len({content.partition("\n\n")[0] for content in contents}) == 4


def test_a_file_of_objects(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    system = {"role": "system", "content": [{"type": "text", "text": "s"}]}
    user = {"role": "user", "content": "u"}
    lines: list[dict[str, Any]] = [
        {"messages": [system, user]},
        {"prompt": "p", "max_tokens": 3},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    conversation, prompt = read_prompts(file)
    assert conversation.messages == (system, user)
    assert (prompt.messages[0]["content"], prompt.max_tokens) == ("p", 3)
    workload = make_workload(kind=WorkloadKind.PROMPTS, file=file, output_tokens=None)
    turns = sorted((turn for (turn,) in first(workload, 2)), key=lambda turn: len(turn.messages))
    assert turns[0].max_tokens == 3
    assert turns[1].messages[0]["content"][1:] == system["content"]
    with pytest.raises(ConfigError, match="holds conversations"):
        read_file(make_workload(file=file, endpoint=Endpoint.COMPLETIONS))


def test_sharegpt_asks_first_questions(tmp_path: Path) -> None:
    file = tmp_path / "sharegpt.json"
    entries = [
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"conversations": [{"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "d"}]},
        {"conversations": []},
        {"conversations": [{"from": "human", "value": " "}]},
        "nonsense",
    ]
    file.write_text(json.dumps(entries))
    texts = [prompt.messages[0]["content"] for prompt in read_sharegpt(file)]
    assert texts == ["a", "c", "d"]
    assert file_digest(file) != file_digest(Path(__file__))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"\n \n", "holds no prompts"),
        ("a.txt", b"\xff", "is not UTF-8"),
        ("a.jsonl", b"{", "line 1 is not valid JSON"),
        ("a.jsonl", b'{"prompt": "a"}\n{"text": "a"}', "line 2: it must be an object with"),
        ("a.jsonl", b'{"messages": ["a"]}', "line 1: it must be an object with"),
        ("a.jsonl", b'{"prompt": "a", "max_tokens": 0}', "'max_tokens' must be a positive"),
    ],
)
def test_a_bad_file_of_prompts_is_refused(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_prompts(tmp_path / name)


def test_a_bad_sharegpt_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"conversations": []}')
    with pytest.raises(ConfigError, match="must hold a JSON list"):
        read_sharegpt(tmp_path / "a")


def test_pictures_are_real_and_differ() -> None:
    rng = random.Random(0)
    png, other = make_png(rng, 33, 17), make_png(rng, 33, 17)
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert (image.size, image.mode) == ((33, 17), "RGB")
        assert len(image.getcolors() or ()) == 64
    assert png != other
    head, _, data = make_data_url(png).partition(",")
    assert (head, base64.b64decode(data)) == ("data:image/png;base64", png)
