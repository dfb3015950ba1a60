"""Images in, patches out: an RGB image becomes what the vision encoder reads."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from r1ov.errors import UserError

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class LazyImage:
    """An image that is known by its size and decoded when it is needed."""

    size: tuple[int, int]  # (width, height), upright
    load: Callable[[], Image.Image]  # upright, mode RGB; raises UserError
    name: str = "the picture"  # what errors call it


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) in multiples of `factor`, within the pixel limits, the aspect ratio kept as nearly as
    possible.

    Raises:  UserError beyond an aspect ratio of 200.
    Source:  transformers qwen2_vl/image_processing_qwen2_vl.py `smart_resize`, whose quirk is kept: a side
             below half a factor rounds to 0, and the enlarging branch then ignores the other side's rounding
             (qwen-vl-utils clamps to one factor instead).
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
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """How images become patches, as `preprocessor_config.json` says; the defaults are Qwen2.5-VL's."""

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self):
        if not 1 <= self.min_pixels <= self.max_pixels < 2**31:
            raise UserError(_wrong_limits(self.min_pixels, self.max_pixels))

    def grid(
        self,
        size: tuple[int, int],
        name: str = "the picture",
        max_tokens: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        resized_height: int | None = None,
        resized_width: int | None = None,
    ) -> tuple[int, int, int]:
        """(1, rows, columns) of the patches that an image of this size, (width, height), is cut into.

        Args:
            max_tokens: an image of more merged tokens is refused, before it takes any memory.
            min_pixels, max_pixels: limits of this image. resized_height, resized_width: its size, to be
                rounded to whole merged patches.
        Raises: UserError that begins with `name`.
        Source: for the limits of one image, qwen_vl_utils `fetch_image`. Different here: they replace the
            processor's limits, which apply afterwards there.
        """
        factor = self.patch_size * self.merge_size
        least, most = min_pixels or self.min_pixels, max_pixels or self.max_pixels
        width, height = size
        if resized_height and resized_width:
            width, height, least, most = resized_width, resized_height, 4 * factor**2, 16384 * factor**2
        if least > most:
            raise UserError(f"{name}: {_wrong_limits(least, most)}")
        try:
            height, width = smart_resize(height, width, factor, least, most)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        tokens = height * width // factor**2
        if max_tokens is not None and tokens > max_tokens:
            size = f"at {width}x{height} pixels it is {tokens} tokens"
            raise UserError(f"{name}: {size}, above {max_tokens}, the model's most; lower max_pixels")
        return 1, height // self.patch_size, width // self.patch_size

    def patches(self, image: Image.Image, grid: tuple[int, int, int]) -> np.ndarray:
        """(P, 3 * temporal_patch_size * patch_size^2) float32: an RGB image resized to fill this grid,
        normalised, cut into patches.

        Source: transformers qwen2_vl/image_processing_pil_qwen2_vl.py. Different here: the resize runs as two
            one-axis calls.
        """
        m, p, t = self.merge_size, self.patch_size, self.temporal_patch_size
        _, rows, columns = grid
        # Width first: what Pillow up to 12 does in one call. Pillow 13 may take the height first, and rounds
        # differently.
        for size in ((columns * p, image.height), (columns * p, rows * p)):
            if image.size != size:
                image = image.resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(image).reshape(rows // m, m, p, columns // m, m, p, 3)
        # (3, P, p*p), patches in blocks of m x m
        pixels = pixels.transpose(6, 0, 3, 1, 4, 2, 5).reshape(3, rows * columns, p * p)
        # What each byte becomes in each channel, (3, 256), in Hugging Face's order and precision.
        scaled = (np.arange(256, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        mean, std = np.array([self.image_mean, self.image_std], dtype=np.float32)[..., None]  # (3, 1) each
        normalised = (scaled - mean) / std
        patches = np.empty((rows * columns, 3, t, p * p), dtype=np.float32)
        for channel in range(3):
            # A still image is a film of t equal frames.
            patches[:, channel] = normalised[channel][pixels[channel]][:, None]
        return patches.reshape(rows * columns, -1)


def _wrong_limits(least: int, most: int) -> str:
    for name, limit in (("min_pixels", least), ("max_pixels", most)):
        if not 1 <= limit < 2**31:
            return f"{name} is {limit}, expected a positive whole number"
    return f"min_pixels is {least}, above max_pixels, which is {most}; give both, or other ones"
