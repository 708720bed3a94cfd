"""Files become OpenAI's content parts, and what is no such file is refused by name."""

import base64
from pathlib import Path

import pytest

from pippin.cli.chat.attachments import Attachment, Kind, read_attachment
from pippin.core.errors import PippinError

PNG = b"\x89PNG\r\n\x1a\n..."
WEBP = b"RIFF\x00\x00\x00\x00WEBP..."
WAV = b"RIFF\x00\x00\x00\x00WAVE..."


@pytest.mark.parametrize(
    ("kind", "content", "part"),
    [
        ("file", b"text", {"type": "text", "text": '<file name="a b">\ntext\n</file>'}),
        (
            "image",
            PNG,
            {
                "type": "image_url",
                "image_url": {"url": "data:image/png;base64," + base64.b64encode(PNG).decode()},
            },
        ),
        (
            "image",
            WEBP,
            {
                "type": "image_url",
                "image_url": {"url": "data:image/webp;base64," + base64.b64encode(WEBP).decode()},
            },
        ),
        (
            "audio",
            WAV,
            {
                "type": "input_audio",
                "input_audio": {"data": base64.b64encode(WAV).decode(), "format": "wav"},
            },
        ),
        (
            "audio",
            b"ID3",
            {"type": "input_audio", "input_audio": {"data": "SUQz", "format": "mp3"}},
        ),
    ],
)
@pytest.mark.parametrize("quoted", ["{}", "'{}'", '"{}"'])
def test_a_file_becomes_its_part(
    tmp_path: Path, kind: Kind, content: bytes, part: object, quoted: str
) -> None:
    path = tmp_path / "a b"
    path.write_bytes(content)
    assert read_attachment(kind, quoted.format(path)).to_part() == part
    assert read_attachment(kind, str(path).replace(" ", "\\ ")).name == "a b"


def test_an_address_of_an_image_is_left_to_the_server() -> None:
    attached = read_attachment("image", "https://example.com/cat.png")
    assert attached == Attachment("image", "cat.png", "https://example.com/cat.png")


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("file", b"\xff\xfe", "no text in UTF-8"),
        ("file", b"a\0b", "no text in UTF-8"),
        ("file", b"a" * (1024**2 + 1), "larger than 1.0 MiB"),
        ("image", b"text", "no PNG, JPEG, GIF or WebP"),
        ("image", WAV, "no PNG"),
        ("audio", WEBP, "no WAV or MP3"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, kind: Kind, content: bytes, said: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(PippinError, match=f"x is {said}"):
        read_attachment(kind, str(path))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for where, reason in (
        (tmp_path / "gone", "No such file"),
        (tmp_path, "Is a directory"),
        ("it's", "No such file"),
    ):
        with pytest.raises(PippinError, match=f"cannot be read: {reason}"):
            read_attachment("file", str(where))
