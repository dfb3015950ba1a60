"""A question with its picture, and a remote model in the place of a role."""

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

from PIL import Image

from r1ov.common.remote import Remote, Reply

MAX_PICTURE_BYTES = 4 << 20  # larger PNGs go as JPEG


@dataclass(frozen=True, kw_only=True)
class Question:
    prompt: str
    system: str | None = None
    image: Image.Image | None = None


class Endpoint(Remote):
    """A model behind a URL. Several threads may use it.

    Args:
        max_pixels: larger pictures are scaled down to this.
        price: (in, out) money for a million tokens.
    """

    is_metered = True

    def __init__(
        self,
        url: str,
        model: str,
        *,
        max_pixels: int = 2_000_000,
        price: tuple[float, float] = (0.0, 0.0),
        **more: Any,
    ):
        super().__init__(url, model, **more)
        self.max_pixels, self.price = max_pixels, price
        self.identity = {
            "url": url,
            "model": model,
            "max_tokens": self.max_tokens,
            "temperature": more.get("temperature"),
            "max_pixels": max_pixels,
        }

    def estimate(self, question: Question) -> tuple[int, int]:
        """The most tokens that this should take, (prompt, completion): for the budget, before the server
        tells.
        """
        letters = len(question.prompt) + len(question.system or "")
        pixels = min(self.max_pixels, question.image.width * question.image.height) if question.image else 0
        return 32 + letters // 3 + pixels // 28**2, self.max_tokens

    def attempt(self, question: Question) -> Reply:
        """Asks once. Raises: as `Remote.send`."""
        content: Any = question.prompt  # servers of text models often know texts alone
        if question.image is not None:
            url = data_url(question.image, self.max_pixels)
            content = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": question.prompt},
            ]
        system = [{"role": "system", "content": question.system}] if question.system else []
        return self.send([*system, {"role": "user", "content": content}], self.estimate(question)[0])


def data_url(image: Image.Image, max_pixels: int) -> str:
    """An RGB picture as a data URL: scaled down to `max_pixels`, PNG, or JPEG where that would be large."""
    if image.width * image.height > max_pixels:
        shrink = math.sqrt(max_pixels / (image.width * image.height))
        image = image.resize(
            (max(1, int(image.width * shrink)), max(1, int(image.height * shrink))), Image.Resampling.LANCZOS
        )
    file = io.BytesIO()
    image.save(file, "PNG")
    kind = "png"
    if file.tell() > MAX_PICTURE_BYTES:
        file, kind = io.BytesIO(), "jpeg"
        image.save(file, "JPEG", quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
