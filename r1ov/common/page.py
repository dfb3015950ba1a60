"""For people to look at: one HTML file that needs no other, images included; a table in Markdown."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
section{display:flex;gap:1.5em;border-top:1px solid #ddd;padding:1em 0}
section>img{width:168px;align-self:flex-start;image-rendering:pixelated}
pre{white-space:pre-wrap;background:#f6f7f9;padding:.6em .8em;border-radius:4px;margin:.4em 0}
.right{border-left:4px solid #2a9d4e}
.wrong{border-left:4px solid #c8453b}.numbers{color:#667;font-size:13px}"""
SIDE = 360  # pixels of an image, wide or high: a page of hundreds of images must still open
EXACT_SIDE = 200  # images up to this size are kept as they are


def page(title: str, body: str, style: str = "") -> str:
    """Returns the whole file. `body` is HTML already; `style` is added to the house's own."""
    title = html.escape(title)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title>'
        f"<style>{_STYLE}{style}</style><h1>{title}</h1>{body}</html>"
    )


def picture(image: Image.Image) -> str:
    """Returns the image as an <img>."""
    return f'<img alt="picture" src="{data_url(image)}">'


def data_url(image: Image.Image) -> str:
    """Returns a data: URL of the image, as PNG if it is small, else shrunk, as WebP."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    kind = "png" if max(image.size) <= EXACT_SIDE else "webp"
    return f"data:image/{kind};base64,{base64_image(small, kind)}"


def base64_image(image: Image.Image, kind: str = "png", quality: int = 75) -> str:
    """Returns the encoded file as base64 text."""
    file = io.BytesIO()
    image.save(file, kind, quality=quality, method=1)
    return base64.b64encode(file.getvalue()).decode()


def markdown_table(rows: Sequence[Sequence[str]], aligned: Sequence[str] | None = None) -> str:
    """Returns a table in GitHub's Markdown; its cells are one line each, with nothing that would break it.

    Args: rows: the head first. aligned: a column's "---" (left) or "---:" (right); None: the first column
        left, the others right.
    """
    head, *lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    aligned = aligned or ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join([head, f"|{'|'.join(aligned)}|", *lines])


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
