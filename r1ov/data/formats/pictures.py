"""The pictures of data files: in the row itself or in files beside it, never from the network, never from
outside the data's folder.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from r1ov.common.text import shown
from r1ov.data.formats.open_image import lazy_image
from r1ov.data.formats.records import BadRow
from r1ov.data.image import LazyImage
from r1ov.errors import UserError

MAX_BASE64 = 128 * 1024 * 1024  # letters
# How PNG, JPEG, GIF, WEBP, TIFF and BMP files begin, in base64. Paths may look like base64, but not begin so
# and be as long.
_BASE64 = re.compile(r"iVBORw0KGgo|/9j/|R0lGOD|UklGR|SUkqA|TU0AK|Qk.{6}AAAA")
_SHORTEST_BASE64 = 64

T = TypeVar("T")


def picture(source: Any, folder: Path, inside: Path | None, name: str = "the picture") -> Image.Image:
    """The picture of one of the forms in which data sets keep it, upright and RGB. Arguments and errors are
    `lazy_picture`'s.
    """
    return lazy_picture(source, folder, inside, name).load()


def lazy_picture(source: Any, folder: Path, inside: Path | None, name: str = "the picture") -> LazyImage:
    """The same, found and measured but not yet decoded; its `load` raises BadRow where that fails.

    Args:
        source: a path, a file's bytes, {"bytes", "path"} as `datasets` writes it, base64, a data: URL, or a
            PIL picture.
        folder: where relative paths begin. inside: where a path must lead, symbolic links followed; None:
            anywhere.
    Raises:  BadRow.
    """
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, Image.Image):
        return _lazy(source, name)
    if isinstance(source, bytes | bytearray):
        return _lazy(bytes(source), name)
    if not isinstance(source, str) or not source:
        raise BadRow(
            "a picture in no form that is known",
            f"a {type(source).__name__}; expected a path, bytes, base64 or a data: URL",
        )
    if source[:5].lower() == "data:":
        header, _, body = source.partition(",")
        if not header.lower().endswith(";base64"):
            raise BadRow("a picture's data: URL is not base64", f"{header[:60]!r}")
        return _lazy(_decoded(body), name)
    if len(source) >= _SHORTEST_BASE64 and _BASE64.match(source):
        return _lazy(_decoded(source), name)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", source):
        raise BadRow(
            "a picture is given by its URL, and nothing is fetched",
            f"{shown(source)}; download it and give its path",
        )
    return _lazy(_confined(source, folder, inside), shown(source))


def _decoded(text: str) -> bytes:
    if len(text) > MAX_BASE64:
        raise BadRow("a picture's base64 is too long", f"{len(text):,} letters, the limit is {MAX_BASE64:,}")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRow("a picture's base64 is broken", str(error)) from error


def _confined(path: str, folder: Path, inside: Path | None) -> Path:
    try:
        place = (folder / path).resolve()
        if inside is not None and not place.is_relative_to(inside.resolve()):
            raise BadRow("a picture lies outside the data's folder", f"{shown(path)} leads out of {inside}")
        if not place.exists():
            raise BadRow("a picture's file is missing", f"{shown(path)} in {folder}")
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL in it, links in a ring
        if isinstance(error, BadRow):
            raise
        raise BadRow(
            "a picture's path cannot be read", f"{shown(path)} ({getattr(error, 'strerror', None) or error})"
        ) from error
    return place


def _lazy(source: Path | bytes | Image.Image, name: str) -> LazyImage:
    found = _or_bad_row(lambda: lazy_image(source, name))
    return LazyImage(found.size, lambda: _or_bad_row(found.load))


def _or_bad_row(opened: Callable[[], T]) -> T:
    try:
        return opened()
    except UserError as error:
        raise BadRow("a picture cannot be opened", str(error)) from error
