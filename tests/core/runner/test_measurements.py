"""Measurements are made once, and anew whenever the old ones cannot be trusted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pippin.core.runner.measurements import Measurements


def make(folder: Path, *, device: str = "card", mlx_version: str = "1.0") -> Measurements:
    return Measurements(folder, device=device, mlx_version=mlx_version)


def fail() -> Any:
    raise AssertionError("measured again")


def test_a_second_start_measures_nothing(tmp_path: Path) -> None:
    value = {"stock": {"1": 0.25}, "padded": [8, None]}

    assert make(tmp_path / "new").get("linear", "a", lambda: value) == value
    assert make(tmp_path / "new").get("linear", "a", fail) == value


@pytest.mark.parametrize(
    ("kind", "key", "identity"),
    [
        ("linear", "b", {}),
        ("chunk", "a", {}),
        ("linear", "a", {"device": "other card"}),
        ("linear", "a", {"mlx_version": "1.1"}),
    ],
)
def test_other_circumstances_are_measured_apart(
    tmp_path: Path, kind: str, key: str, identity: dict[str, str]
) -> None:
    make(tmp_path).get("linear", "a", lambda: 1)

    assert make(tmp_path, **identity).get(kind, key, lambda: 2) == 2
    assert make(tmp_path).get("linear", "a", fail) == 1


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b'{"identity": ',
        b"\xff\xfe",
        b"[]",
        b'{"value": 7}',
        b'{"identity": {"version": 0}, "value": 7}',
    ],
)
def test_a_damaged_or_older_file_is_measured_anew(tmp_path: Path, damage: bytes) -> None:
    make(tmp_path).get("linear", "a", lambda: 1)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)

    assert make(tmp_path).get("linear", "a", lambda: 2) == 2
    assert make(tmp_path).get("linear", "a", fail) == 2


def test_without_a_place_to_write_it_is_measured_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    measurements = make(tmp_path / "file" / "below")

    assert measurements.get("linear", "a", lambda: 1) == 1
    assert measurements.get("linear", "a", lambda: 2) == 2


def test_nothing_is_left_of_a_file_that_cannot_get_its_name(tmp_path: Path) -> None:
    make(tmp_path).get("linear", "a", lambda: 1)
    (file,) = tmp_path.iterdir()
    file.unlink()
    file.mkdir()

    assert make(tmp_path).get("linear", "a", lambda: 2) == 2
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_measurement_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        make(tmp_path).get("linear", "a", fail)
    with pytest.raises(TypeError):
        make(tmp_path).get("linear", "a", lambda: object())

    assert list(tmp_path.iterdir()) == []


WRITE_OFTEN = """
import sys
from pathlib import Path
from pippin.core.runner.measurements import Measurements

folder = Path(sys.argv[1])
measurements = Measurements(folder, device="card", mlx_version="1.0")
for i in range(200):
    value = measurements.get("linear", "a", lambda: [i] * 9999)
    assert len(value) == 9999 and len(set(value)) == 1, "torn"
    if i % 2:
        next(folder.glob("linear-*")).write_bytes(b"[")
"""


def test_two_processes_at_once_see_whole_files(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_OFTEN, str(tmp_path)]

    processes = [subprocess.Popen(command) for _ in range(2)]

    assert [process.wait() for process in processes] == [0, 0]
    assert list(tmp_path.glob(".part-*")) == []


def test_the_place_is_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPPIN_CACHE_DIR", str(tmp_path))

    Measurements.of_this_machine().get("linear", "a", lambda: 1)

    assert len(list((tmp_path / "measurements").glob("linear-*.json"))) == 1
