"""Opens an image from anything: a path, a URL, base64, a file's bytes or a PIL image.

Its size is read at once, its pixels when they are needed. Metadata never costs an image: broken metadata is
ignored, and the orientation is applied to the pixels alone.
"""

import base64
import io
import re
import warnings
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image

from r1ov.common.fetch import fetch
from r1ov.common.files import one_line, shown
from r1ov.data.image import LazyImage
from r1ov.errors import UserError

# A data: URL, or the beginning of a PNG, JPEG, GIF, WEBP, TIFF or BMP file in base64: a path may begin like
# it, but is shorter.
ENCODED = re.compile(r"(?i:data:)|(?=(?s:.{64}))(iVBORw0KGgo|/9j/|R0lGOD|UklGR|SUkqA|TU0AK|Qk.{6}AAAA)")
FILE_URL = r"(?i)file:(//(localhost(?=/))?)?"
# Formats whose header gives the size that decoding gives; None: an image made in memory. Images of other
# formats are decoded to be measured: TIFF turns itself, ICO chooses among its images, and so on.
MEASURED_BY_HEADER = (None, "JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP")
PNG = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x112  # among EXIF's tags
# Its value -> the turn that makes the image upright; 1 needs none.
TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
TURNS = dict(enumerate(TURNS.split(), 2))


def anywhere(place: str) -> Path | bytes:
    """Follows a path to its file on this machine, or an http(s) URL to its bytes."""
    if "://" not in place:
        return Path(place)
    if place.lower().startswith(("http://", "https://")):
        return fetch(place)
    expected = "a file is given by its path or a file:// URL"
    raise UserError(f"{shown(place)}: only http:// and https:// URLs are fetched; {expected}")


def lazy_image(
    source: Any, name: str = "the picture", locate: Callable[[str], Path | bytes] = anywhere
) -> LazyImage:
    """Opens an image: upright, on white where it is transparent, 8 bits a channel, mode RGB, the first frame.

    A missing file, or one that is no image, raises at once; pixels that cannot be decoded raise in `load`.

    Args:
        source: a path; a file:, http(s): or data: URL; base64; a file's bytes; {"bytes", "path"} as
            `datasets` writes it; or a PIL image.
        name: the name in errors of an image that has no path or URL.
        locate: opens paths and URLs, for instance only those within one folder.
    Raises: UserError, one line that names the image.
    Source: transformers 5 image_transforms.py `convert_to_rgb`. Different here: EXIF orientation is always
        applied, and grey images of 16 and 32 bits are scaled to 8 bits, where Pillow's convert("RGB") clips
        every value above 255 to white.
    """
    if isinstance(source, LazyImage):
        return source
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, str) and ENCODED.match(source):
        source = _decoded(source, name)
    elif isinstance(source, str | Path) and str(source):
        place = str(source)
        name = shown(place)
        if url := re.match(FILE_URL, place):
            place = unquote(place[url.end() :])
        source = locate(place)
    if not isinstance(source, bytes | bytearray | Path | Image.Image):
        raise UserError(
            f"{name}: without a source, or its path is empty, or in no form that is known: found a "
            f"{type(source).__name__}; expected a path, a URL, bytes, base64 or a PIL image"
        )
    return LazyImage(_look(source, name, _upright_size), partial(_look, source, name, _to_rgb), name)


def _look(source: bytes | Path | Image.Image, name: str, see: Callable[[Image.Image], Any]) -> Any:
    """Applies `see` to the opened image; every failure is a UserError that begins with its name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: of large images, and of broken EXIF
            if isinstance(source, Image.Image):
                source.load()  # of a PNG file, it is only then that all EXIF is known
                return see(source)
            if isinstance(source, Path) and not source.is_file():
                raise UserError(
                    "is a folder or a device, not an ordinary file" if source.exists() else "no such file"
                )
            with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
                is_png = file.read(len(PNG)) == PNG
                with Image.open(io.BytesIO(PNG + _without_notes(file.read())) if is_png else file) as image:
                    return see(image)
    except Exception as error:  # on broken files Pillow raises anything: struct.error, KeyError, ...
        raise UserError(f"{name}: {_fault(error)}") from error


def _without_notes(png: bytes) -> bytes:
    """What follows a PNG file's signature, its EXIF before the pixels and no other note: a broken one would
    cost the image, and one behind the pixels is found only by decoding them.
    """
    chunks, place = dict.fromkeys(b"IHDR PLTE tRNS eXIf IDAT IEND".split(), b""), 0
    while place < len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4])  # length, kind, the data, their checksum
        body = png[place + 4 : end - 4]
        kind = body[:4]
        if kind in chunks and (kind != b"eXIf" or png[end - 4 : end] == zlib.crc32(body).to_bytes(4)):
            chunks[kind] += png[place:end]
        place = end
    return b"".join(chunks.values())


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """The (width, height) that `_to_rgb` gives, from the header alone if it tells."""
    if image.format == "EPS":
        raise UserError("an EPS file is a program, which is not run; convert it to PNG")
    if 0 in image.size:
        raise UserError(f"the picture is {image.width}x{image.height} pixels")
    if image.format not in MEASURED_BY_HEADER:
        return _to_rgb(image).size
    return image.size[::-1] if _orientation(image) in (5, 6, 7, 8) else image.size


def _orientation(image: Image.Image) -> int | None:
    try:
        # Not the PNG class's own, which decodes the image first.
        return Image.Image.getexif(image).get(ORIENTATION)
    except Exception:  # on broken EXIF Pillow raises anything, and the pixels are sound
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if turn := TURNS.get(_orientation(image)):
        image = image.transpose(Image.Transpose[turn])
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (I;16), 32 bits (I) or floats (F), as grey of 8 bits.

    16 bits are divided by 257. I is read as 0..255, or 0..65535 if a value exceeds 255; F as 0..1, or 0..255
    if a value exceeds 1. Values outside all of these widen the range: the smallest is then black, the largest
    white.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError("the picture has values that are not finite")
    low, high = values.min(initial=0), values.max(initial=0)
    scales = {"F": (1, 255), "I": (255, 65535)}.get(image.mode, (65535,))
    high = next((scale for scale in scales if high <= scale), high)
    return Image.fromarray(np.rint((values - low) * (255 / (high - low))).astype(np.uint8))


# For sources that cannot be opened directly.


def _decoded(text: str, name: str) -> bytes:
    """The bytes in a data: URL or a base64 text, folded over lines or not."""
    header, comma, body = text.partition(",")
    if not comma:
        header, body = "data:;base64", text
    if "base64" not in header.lower().replace(" ", "").split(";"):
        raise UserError(f"{name}: not base64; expected data:image/...;base64,..., found {header[:60]!r}")
    body = "".join(unquote(body).split())
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except ValueError as error:
        raise UserError(f"{name}: the base64 is broken ({error})") from error


def _fault(error: Exception) -> str:
    match error:
        case UserError():
            return str(error)
        case Image.DecompressionBombError():
            return f"too large a picture ({one_line(str(error))})"
        case Image.UnidentifiedImageError():
            return "not a picture in any format that Pillow knows, or the file is empty; convert it to PNG"
        case OSError(errno=int()):
            return f"cannot be read ({error.strerror})"
        case _:
            return f"the picture cannot be decoded ({one_line(str(error)) or type(error).__name__})"
