"""Files that go along with a message: read once, checked, and in the shape of OpenAI's parts."""

from __future__ import annotations

import base64
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from pippin.core.errors import PippinError

from ..byte_size import format_bytes

Kind: TypeAlias = Literal["file", "image", "audio"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_MAX_BYTES = {"file": 1024**2, "image": 20 * 1024**2, "audio": 25 * 1024**2}
# What a file begins with says what it is; its name may say anything.
_IMAGES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}
_MP3 = (b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")


@dataclass(frozen=True, slots=True)
class Attachment:
    """One of them.

    Attributes:
        value: Text of a file, URL of an image (``data:`` for one that was read), or ``wav,`` or
            ``mp3,`` and base64.
    """

    kind: Kind
    name: str
    value: str

    def to_part(self) -> dict[str, Any]:
        """Source: platform.openai.com/docs/api-reference/chat/create, content parts."""
        if self.kind == "file":
            return {"type": "text", "text": f'<file name="{self.name}">\n{self.value}\n</file>'}
        if self.kind == "image":
            return {"type": "image_url", "image_url": {"url": self.value}}
        form, _, data = self.value.partition(",")
        return {"type": "input_audio", "input_audio": {"data": data, "format": form}}


def read_attachment(kind: Kind, where: str) -> Attachment:
    """Read a file.

    Args:
        where: A path, perhaps quoted as shells and terminals do it; or an address of an image.

    Raises:
        PippinError: It cannot be read, is too large, or is something else.
    """
    if kind == "image" and where.startswith(("http://", "https://")):
        return Attachment(kind, where.rpartition("/")[2] or where, where)
    path = _find(where)
    try:
        # Not a byte more than is needed to know that it is too much.
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES[kind] + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PippinError(f"{where} cannot be read: {reason}") from error
    if len(content) > _MAX_BYTES[kind]:
        raise PippinError(f"{where} is larger than {format_bytes(_MAX_BYTES[kind])}")
    return Attachment(kind, path.name, _READERS[kind](content, where))


def _find(where: str) -> Path:
    path = Path(where).expanduser()
    if path.exists():
        return path
    try:
        [unquoted] = shlex.split(where)
    except ValueError:
        return path
    return Path(unquoted).expanduser()


def _text(content: bytes, where: str) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise PippinError(f"{where} is no text in UTF-8; /image and /audio take other files")
    return text


def _image(content: bytes, where: str) -> str:
    form = next((form for start, form in _IMAGES.items() if content.startswith(start)), None)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        form = "webp"
    if form is None:
        raise PippinError(f"{where} is no PNG, JPEG, GIF or WebP image")
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"


def _audio(content: bytes, where: str) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        form = "wav"
    elif content.startswith(_MP3):
        form = "mp3"
    else:
        raise PippinError(f"{where} is no WAV or MP3 file")
    return f"{form},{base64.b64encode(content).decode()}"


_READERS = {"file": _text, "image": _image, "audio": _audio}
