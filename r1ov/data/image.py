"""Pictures in, patches out: any picture that Pillow opens becomes what the vision encoder reads."""

import base64
import binascii
import io
import math
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from r1ov.common.fetch import fetch, shown
from r1ov.errors import UserError

if TYPE_CHECKING:
    import torch

MAX_ASPECT_RATIO = 200
# Their headers tell the size that decoding gives; None: a picture made in memory. The others are decoded to
# be measured: TIFF turns itself, ICO chooses among its pictures, and so on.
_MEASURED_BY_HEADER = (None, "JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP")

T = TypeVar("T")


@dataclass(frozen=True)
class LazyImage:
    """A picture that is known by its size and decoded when it is needed."""

    size: tuple[int, int]  # (width, height), upright
    load: Callable[[], Image.Image]  # the picture as `open_image` gives it; raises UserError, as that does


def open_image(source: str | Path | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """The picture upright, on white where it is transparent, 8 bits a channel, mode RGB; the first frame of
    an animation.

    Args:    source: a path, an http(s) URL, a data: URL, a file's bytes, or a picture already open.
             name: what errors call the picture; by default its path or URL.
    Raises:  UserError, one line that names the picture.
    Source:  transformers 5 image_transforms.py `convert_to_rgb`. Different here: EXIF orientation is always applied, and grey
             pictures of 16 and 32 bits are scaled to 8 bits, where Pillow's convert("RGB") clips every value
             above 255 to white.
    """
    return _read(*_found(source, name), _to_rgb)


def lazy_image(source: str | Path | bytes | Image.Image | LazyImage, name: str | None = None) -> LazyImage:
    """`open_image` in two parts: what is missing, or not a picture, is told at once; what cannot be decoded,
    by `load`.
    """
    if isinstance(source, LazyImage):
        return source
    source, name = _found(source, name)
    return LazyImage(_read(source, name, _upright_size), partial(_read, source, name, _to_rgb))


def _found(
    source: str | Path | bytes | Image.Image, name: str | None
) -> tuple[Path | bytes | Image.Image, str]:
    """What Pillow can open, and what errors call it."""
    if isinstance(source, Image.Image | bytes):
        return source, name or "the picture"
    if not isinstance(source, str | Path):
        raise UserError(
            f"{name or 'a picture'}: expected a path, a URL, bytes or a PIL image, found {type(source).__name__}"
        )
    scheme = source.partition(":")[0].lower() if isinstance(source, str) else ""
    if scheme == "data":
        return _data_url(source, name or "data: URL"), name or "data: URL"
    if str(source) == "":
        raise UserError("a picture's path is empty; expected a path or a URL")
    name = name or shown(str(source))
    if scheme in ("http", "https"):
        return fetch(source), name
    if scheme.isalnum() and source[len(scheme) :].startswith("://"):
        raise UserError(
            f"{name}: only http:// and https:// URLs are fetched; a file on this machine is given by its path"
        )
    return _existing_file(Path(source), name), name


def _data_url(text: str, name: str) -> bytes:
    header, comma, body = text.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise UserError(f"{name}: expected data:image/...;base64,..., found {header[:60]!r}")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{name}: the base64 text is broken ({error})") from error


def _existing_file(path: Path, name: str) -> Path:
    try:
        if path.is_dir():
            raise UserError(f"{name}: is a folder, not a picture")
        if not path.exists():
            raise UserError(f"{name}: no such file")
        if not path.is_file():
            raise UserError(f"{name}: is not an ordinary file")
        if path.stat().st_size == 0:
            raise UserError(f"{name}: the file is empty")
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return path


def _read(source: Image.Image | Path | bytes, name: str, look: Callable[[Image.Image], T]) -> T:
    """`look` at the opened picture; whatever goes wrong is a UserError that begins with its name."""
    if source == b"":
        raise UserError(f"{name}: the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 million pixels on and refuses from twice as many; its refusal is enough.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(source, Image.Image):
                return look(_not_empty(source))
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                if image.format == "EPS":
                    raise UserError("an EPS file is a program, which is not run; convert it to PNG")
                return look(_not_empty(image))
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: too large a picture ({error})".replace("\n", " ")) from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name}: not a picture in any format that Pillow knows") from error
    except Exception as error:  # on broken files Pillow's decoders raise whatever comes: struct.error, SyntaxError, KeyError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: the picture cannot be decoded ({reason})") from error


def _not_empty(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise UserError(f"the picture is {image.width}x{image.height} pixels")
    return image


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of what `_to_rgb` gives, without decoding where the header tells."""
    if image.format not in _MEASURED_BY_HEADER:
        return _to_rgb(image).size
    # Pillow's own getexif of a PNG decodes the whole of it, for the sake of a note that may stand after the
    # pixels.
    is_told = (
        image.format == "PNG" and getattr(image, "fp", None) is not None and not _has_afterword(image.fp)
    )
    exif = Image.Image.getexif(image) if is_told else image.getexif()
    return image.size[::-1] if exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8) else image.size


def _has_afterword(file: BinaryIO) -> bool:
    """Whether a PNG file has anything but its end after its pixels. The file's place stays where it was."""
    place, last, has_afterword = file.tell(), b"", False
    file.seek(8)
    while len(head := file.read(8)) == 8 and not has_afterword:
        length, kind = struct.unpack(">I4s", head)
        has_afterword = last == b"IDAT" and kind not in (b"IDAT", b"IEND")
        last = kind
        file.seek(length + 4, 1)  # over the data and their checksum
    file.seek(place)
    return has_afterword


def _to_rgb(image: Image.Image) -> Image.Image:
    # A picture made in memory: nothing to decode, nothing to turn.
    if image.mode == "RGB" and not image.info and not hasattr(image, "fp"):
        return image
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (I;16), 32 bits (I) or floats (F), as grey of 8 bits.

    16 bits are divided by 257. I is read as 0..255, or 0..65535 if a value exceeds 255; F as 0..1, or 0..255
    if a value exceeds 1.
    Values outside all of these widen the range: the smallest is then black, the largest white.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError("the picture has values that are not finite")
    low, high = values.min(initial=0), values.max(initial=0)
    scales = {"F": (1, 255), "I": (255, 65535)}.get(image.mode, (65535,))
    high = next((scale for scale in scales if high <= scale), high)
    return Image.fromarray(np.rint((values - low) * (255 / (high - low))).astype(np.uint8))


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) in multiples of `factor`, within the pixel limits, the aspect ratio kept as nearly as
    possible.

    Raises:  UserError beyond an aspect ratio of 200.
    Source:  transformers qwen2_vl/image_processing_qwen2_vl.py `smart_resize`, whose quirk is kept: a side below half a factor rounds
             to 0, and the enlarging branch then ignores the other side's rounding (qwen-vl-utils clamps to
             one factor instead).
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise UserError(
            f"one side of a {width}x{height} picture is more than {MAX_ASPECT_RATIO} times the other; crop it"
        )
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height, new_width = (
            math.ceil(height * grow / factor) * factor,
            math.ceil(width * grow / factor) * factor,
        )
    return new_height, new_width


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """Pictures to the vision encoder's patches, as `preprocessor_config.json` says; the defaults are
    Qwen2.5-VL's.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value < 2**31:
                raise UserError(f"{name} is {value!r}, expected a positive whole number")
        if self.min_pixels > self.max_pixels:
            raise UserError(
                f"min_pixels is {self.min_pixels}, above max_pixels, which is {self.max_pixels}; give both, or other ones"
            )
        if not _is_number(self.rescale_factor) or self.rescale_factor <= 0:
            raise UserError(f"rescale_factor is {self.rescale_factor!r}, expected a positive number")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if not isinstance(value, Sequence) or len(value) != 3 or not all(map(_is_number, value)):
                raise UserError(f"{name} is {value!r}, expected three numbers")
        if min(self.image_std) <= 0:
            raise UserError(f"image_std is {self.image_std!r}, expected three positive numbers")

    @cached_property
    def _normalised(self) -> np.ndarray:
        """(3, 256) float32: what each byte becomes in each channel, in Hugging Face's order of operations and
        precision.
        """
        scaled = (np.arange(256, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        mean, std = (
            np.array(values, dtype=np.float32)[:, None] for values in (self.image_mean, self.image_std)
        )
        return (scaled - mean) / std

    def grid(
        self, size: tuple[int, int], name: str = "the picture", max_tokens: int | None = None
    ) -> tuple[int, int, int]:
        """(1, rows, columns) of the patches that a picture of this size, (width, height), is cut into.

        Args:    max_tokens: a picture that would make more merged tokens is refused before memory is taken for it.
        Raises:  UserError that begins with `name`.
        """
        try:
            height, width = smart_resize(
                size[1], size[0], self.patch_size * self.merge_size, self.min_pixels, self.max_pixels
            )
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        tokens = height * width // (self.patch_size * self.merge_size) ** 2
        if max_tokens is not None and tokens > max_tokens:
            raise UserError(
                f"{name}: at {width}x{height} pixels it is {tokens} tokens, above {max_tokens}, the model's most; lower max_pixels"
            )
        return 1, height // self.patch_size, width // self.patch_size

    def patches(self, image: Image.Image, grid: tuple[int, int, int]) -> np.ndarray:
        """(P, 3 * temporal_patch_size * patch_size^2) float32: an RGB picture resized to fill this grid,
        normalised, cut into patches.
        """
        m, p, t = self.merge_size, self.patch_size, self.temporal_patch_size
        _, rows, columns = grid
        width, height = columns * p, rows * p
        # One axis a call, width first: what Pillow up to 12 does in one call. Pillow 13 may take the height
        # first, and rounds differently.
        if image.width != width:
            image = image.resize((width, image.height), Image.Resampling.BICUBIC)
        if image.height != height:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(image).reshape(rows // m, m, p, columns // m, m, p, 3)
        pixels = pixels.transpose(6, 0, 3, 1, 4, 2, 5).reshape(
            3, rows * columns, p * p
        )  # (3, P, p*p), patches in blocks of m x m
        patches = np.empty((rows * columns, 3, t, p * p), dtype=np.float32)
        for channel in range(3):
            # A still picture is a film of t equal frames.
            patches[:, channel] = self._normalised[channel][pixels[channel]][:, None]
        return patches.reshape(rows * columns, -1)

    def __call__(
        self, images: Sequence[Image.Image], names: Sequence[str] | None = None, max_tokens: int | None = None
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """(pixel_values (P, 1176) float32, image_grid_thw (N, 3) int64): resized, normalised, cut into
        patches.

        Args:    images: N >= 1 RGB pictures, as `open_image` gives them; names: what errors call them; max_tokens: see `grid`.
        Source:  transformers qwen2_vl/image_processing_pil_qwen2_vl.py. Different here: the resize runs as two one-axis calls.
        """
        import torch  # here, for it is slow to import, and whoever only opens pictures does without

        if not images:
            raise ValueError("no pictures were given")
        names = names or [f"picture {number}" for number in range(1, len(images) + 1)]
        grids = [self.grid(image.size, name, max_tokens) for image, name in zip(images, names, strict=True)]
        patches = [self.patches(image, grid) for image, grid in zip(images, grids, strict=True)]
        return torch.from_numpy(np.concatenate(patches)), torch.tensor(grids)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
