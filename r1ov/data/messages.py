"""Messages as users write them: the images are taken out, and the checkpoint's own chat template makes a text
of the rest, as in Hugging Face.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r1ov.common.files import one_line
from r1ov.data.formats.open_image import lazy_image
from r1ov.data.image import LazyImage
from r1ov.errors import UserError

Messages = Sequence[Mapping]
Render = Callable[[Messages, bool], str]  # (messages, add_generation_prompt) -> text

# Of an image, in Hugging Face's and OpenAI's messages.
SOURCES = ("image", "image_url", "url", "path", "base64")
LIMITS = ("min_pixels", "max_pixels", "resized_height", "resized_width")  # of one image, in Qwen's messages


def conversation(text: str, images: Sequence, system: str | None) -> list[dict]:
    """A question. Args: images: as parts of it."""
    # Without an image a plain text: servers of text models often know nothing else.
    content = [*images, {"type": "text", "text": text}] if images else text
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": content}]


def read_part(part: Any, where: str = "") -> dict:
    """Reads a part of a message's content, in Hugging Face's, OpenAI's or Qwen's form.

    Args:    where: the beginning of errors.
    Returns: {"type": "text", "text"}, or {"type": "image", "image"} with the image's own limits; "image" is
             None if the part has no source.
    Raises:  UserError that names what it cannot take.
    """
    items = part.items() if isinstance(part, Mapping) else ()
    given = {key: value for key, value in items if value is not None}
    index = given.pop("index", None)  # of an image in the row's column
    key = next((key for key in SOURCES if key in given), None)
    kind = given.pop("type", "text" if "text" in given else "image" if key else None)
    limits = {}
    if kind == "text" and isinstance(given.get("text"), str):
        read = {"type": "text", "text": given.pop("text")}
    elif kind in ("image", "image_url"):
        limits = {name: given.pop(name) for name in LIMITS if name in given}
        source = given.pop(key, None)
        if isinstance(source, Mapping) and "url" in source:
            given |= source
            source = given.pop("url")
        read = {"type": "image", "image": f"data:;base64,{source}" if key == "base64" else source, **limits}
        if index is not None:
            read["index"] = index
        if (detail := given.pop("detail", "auto")) != "auto":
            read["detail"] = detail  # OpenAI's, which nobody here uses
    elif kind in ("video", "video_url") or "video" in given:
        raise UserError(f"{where}videos are not supported; give pictures or text")
    else:
        expected = "expected an object of type 'text' or 'image'"
        raise UserError(f"{where}a part of its content is {part!r:.60}, {expected}")
    if given:
        known = ", ".join(("text",) if kind == "text" else (*SOURCES, *LIMITS))
        raise UserError(f"{where}a part of type {kind!r} has {', '.join(map(repr, given))}; known: {known}")
    for name, limit in limits.items():
        if type(limit) is not int or limit < 1:
            raise UserError(f"{where}a picture's {name} is {limit!r:.60}, expected a positive whole number")
    if ("resized_height" in limits) != ("resized_width" in limits):
        raise UserError(f"{where}a picture has resized_height or resized_width alone; give both")
    return read


def split_images(messages: Any, where: str) -> tuple[list[dict], list[tuple[LazyImage, dict[str, int]]]]:
    """Takes the images out of messages.

    Args:    where: the beginning of errors.
    Returns: the messages with bare {"type": "image"} in the place of each image, and the images in their
             order, each with its own limits.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise UserError(f"{where}expected a list of messages, found {messages!r:.60}")
    plain, images = [], []  # messages; (LazyImage, its limits)
    for turn, message in enumerate(messages, 1):
        at = f"{where}message {turn}"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"{at}: expected {{'role': ..., 'content': ...}}, found {message!r:.60}")
        content = message.get("content")
        if not isinstance(content, str | list | tuple):
            raise UserError(f"{at}: content is {content!r:.60}, expected a text or a list of parts")
        if not isinstance(content, str):
            parts = []
            for part in content:
                match part:
                    case {"type": "text", "text": str()} | {"type": "image", "image": _} if len(part) == 2:
                        pass  # as r1ov writes them itself
                    case _:
                        part = read_part(part, f"{at}: ")
                if part["type"] == "image":
                    if "detail" in part:
                        raise UserError(f"{at}: a picture's detail is not used; give its max_pixels")
                    image = part["image"]
                    if not isinstance(image, LazyImage):  # those of data sets and the playground are open
                        image = lazy_image(image, f"{where}picture {len(images) + 1}")
                    images.append((image, {name: part[name] for name in LIMITS if name in part}))
                    part = {"type": "image"}
                parts.append(part)
            content = parts
        try:
            # A template sees JSON data only: an object's methods would be open to it.
            plain.append(json.loads(json.dumps({**message, "content": content})))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{at}: it holds something besides text, numbers, lists and objects ({error})"
            ) from error
    return plain, images


class _Generation(Extension):
    """{% generation %} marks replies in templates made for training; it prints what is inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 wants a plain set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def compile_template(source: str, special_tokens: Mapping[str, str] | None = None) -> Render:
    """Compiles a template to a function (messages, add_generation_prompt) -> text.

    Args:    special_tokens: tokens that the template may use by name (bos_token, eos_token, ...).
    Raises:  UserError, then and whenever the template fails or calls raise_exception.
    Source:  transformers utils/chat_template_utils.py `_compile_jinja_template`, without tools, documents and
             masks.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    try:
        template = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template is broken: {one_line(str(error))[:300]}") from error
    known = dict(special_tokens or {}) | {"tools": None, "documents": None}

    def render(messages: Messages, add_generation_prompt: bool) -> str:
        try:
            return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **known)
        except Exception as error:  # the template is a program from the checkpoint: it can fail in any way
            raise UserError(
                f"the chat template refuses these messages: {one_line(str(error))[:300]}"
            ) from error

    return render


def default_template(value: Any) -> str:
    """The default of several templates: {name: template}, or a list of {"name", "template"}."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {item.get("name"): item.get("template") for item in value}
    if isinstance(value, dict) and isinstance(value.get("default"), str):
        return value["default"]
    raise UserError('chat_template is neither a text nor a list with one that is named "default"')
