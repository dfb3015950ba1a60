"""A page to look at samples with: one HTML file that needs no other, pictures included."""

import base64
import html
import io

from PIL import Image

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
section{display:flex;gap:1.5em;border-top:1px solid #ddd;padding:1em 0}
section>img{width:168px;align-self:flex-start;image-rendering:pixelated}
pre{white-space:pre-wrap;background:#f6f7f9;padding:.6em .8em;border-radius:4px;margin:.4em 0}.right{border-left:4px solid #2a9d4e}
.wrong{border-left:4px solid #c8453b}.numbers{color:#667;font-size:13px}"""
_SHOWN_PIXELS = 448  # wide or high: a page of hundreds of pictures must still open


def page(title: str, body: str, style: str = "") -> str:
    """The whole file. `body` is HTML already; `style` is added to the house's own."""
    title = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
        f"<style>{_STYLE}{style}</style><h1>{title}</h1>{body}</html>"
    )


def picture(image: Image.Image) -> str:
    """The picture as an <img>, made smaller where it is large."""
    small = image.copy()
    small.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS))
    return f'<img alt="picture" src="data:image/png;base64,{png_base64(small)}">'


def png_base64(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
