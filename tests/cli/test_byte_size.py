import pytest
from hypothesis import given
from hypothesis import strategies as st

from pippin.cli.byte_size import exact_bytes, format_bytes, parse_bytes, parse_disk_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GiB", 2 * 1024**3),
        ("500MB", 500_000_000),
        ("1.5g", 1_500_000_000),
        ("1.5 GiB", 1_610_612_736),
        (" 64 ki ", 65_536),
        ("123", 123),
        ("7b", 7),
        ("0.1TiB", 109_951_162_777),
    ],
)
def test_sizes_are_read_as_written(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "GiB", "2XB", "-1GB", "1e9", "0", "0.1", "1,5GB", "2 G iB", "٣GB", "nan", "1..2"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"byte|size"):
        parse_bytes(text)


@given(st.integers(1, 10**15), st.sampled_from(["", "kB", "KiB", "mb", "GiB", "TB"]))
def test_whole_amounts_are_exact(amount: int, unit: str) -> None:
    assert parse_bytes(f"{amount}{unit}") == amount * parse_bytes(f"1{unit}")


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (200 * 1024**2, "200 MiB"),
        (5 * 1024**4, "5.0 TiB"),
    ],
)
def test_sizes_are_written_short(num_bytes: int, expected: str) -> None:
    assert format_bytes(num_bytes) == expected


@given(st.integers(0, 2**50) | st.integers(0, 2**20).map(lambda number: number << 30))
def test_exact_sizes_read_back_exactly(num_bytes: int) -> None:
    assert parse_disk_bytes(exact_bytes(num_bytes)) == num_bytes


@given(st.integers(1, 2**50))
def test_what_is_written_reads_back_nearly(num_bytes: int) -> None:
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.06)
