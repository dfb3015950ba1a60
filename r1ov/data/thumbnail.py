"""Pictures small enough for a page of hundreds of them, inside the page itself."""

import base64
import io

from PIL import Image


def thumbnail(image: Image.Image, side: int = 448, format: str = "PNG") -> str:
    """A data: URL of the picture, shrunk to at most `side` pixels wide or high."""
    small = image.copy()
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, format, **({"quality": 75, "method": 1} if format == "WEBP" else {}))
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
