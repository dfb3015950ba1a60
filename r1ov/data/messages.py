"""Messages as users write them, taken apart into what the chat template sees and the images."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from r1ov.data.formats.open_image import lazy_image
from r1ov.data.image import LazyImage
from r1ov.errors import UserError

Messages = Sequence[Mapping[str, Any]]

SOURCES = (
    "image",
    "image_url",
    "url",
    "path",
    "base64",
)  # of an image, in Hugging Face's and OpenAI's messages
LIMITS = ("min_pixels", "max_pixels", "resized_height", "resized_width")  # of one image, in Qwen's messages


def read_part(part: Any) -> dict[str, Any]:
    """Returns a part of a message's content, in Hugging Face's, OpenAI's or Qwen's form, as {"type": "text", "text"}
    or as {"type": "image", "image"} with the image's own limits; "image" is None where it has no source.

    Raises: UserError that names what it cannot take.
    """
    given = (
        {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
    )
    key = next((key for key in SOURCES if key in given), None)
    kind = given.pop("type", "text" if "text" in given else "image" if key else None)
    if kind == "text" and isinstance(given.get("text"), str):
        read = {"type": "text", "text": given.pop("text")}
    elif kind in ("image", "image_url"):
        source = given.pop(key, None)
        if isinstance(source, Mapping) and "url" in source:
            source = source["url"]
        read = {"type": "image", "image": f"data:;base64,{source}" if key == "base64" else source}
        read |= {name: given.pop(name) for name in LIMITS if name in given}
    elif "video" in given or kind in ("video", "video_url"):
        raise UserError("videos are not supported; give pictures or text")
    else:
        expected = "expected an object of type 'text' or 'image'"
        raise UserError(f"a part of its content is {part!r:.60}, {expected}")
    given.pop("index", None)  # of an image in the row's own column: they stand in order
    if given:
        raise UserError(f"a part of type {kind!r} holds {', '.join(map(repr, given))}, which is not known")
    for name in LIMITS:
        if name in read and (type(read[name]) is not int or read[name] < 1):
            raise UserError(f"{name} is {read[name]!r:.60}, expected a positive whole number")
    if ("resized_height" in read) != ("resized_width" in read):
        raise UserError("a picture's resized_height and resized_width belong together; give both")
    return read


def split_images(
    messages: Any, where: str
) -> tuple[list[dict[str, Any]], list[tuple[LazyImage, dict[str, int]]]]:
    """Returns the messages with bare {"type": "image"} in the place of each image, and the images in their order,
    each with its own limits.

    Args:    where: what errors begin with.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise UserError(f"{where}expected a list of messages, found {messages!r:.60}")
    plain: list[dict[str, Any]] = []
    images: list[tuple[LazyImage, dict[str, int]]] = []
    for turn, message in enumerate(messages, 1):
        at = f"{where}message {turn}"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"{at}: expected {{'role': ..., 'content': ...}}, found {message!r:.60}")
        content = message.get("content")
        if isinstance(content, list | tuple):
            parts = [_part(part, at) for part in content]
            for part in parts:
                if part["type"] == "image":
                    image = lazy_image(part.pop("image"), f"{where}picture {len(images) + 1}")
                    images.append((image, {name: part.pop(name) for name in LIMITS if name in part}))
            content = parts
        elif not isinstance(content, str):
            raise UserError(f"{at}: content is {content!r:.60}, expected a text or a list of parts")
        more = {key: value for key, value in message.items() if key not in ("role", "content")}
        plain.append({"role": message["role"], **_plain_data(more, at), "content": content})
    return plain, images


def _part(part: Any, at: str) -> dict[str, Any]:
    try:
        read = read_part(part)
    except UserError as error:
        raise UserError(f"{at}: {error}") from None
    if read["type"] == "image" and read["image"] is None:
        expected = "{'type': 'image', 'image': path, URL, bytes or PIL image}"
        raise UserError(f"{at}: a picture without a source; expected {expected}")
    return read


def _plain_data(values: dict[str, Any], at: str) -> dict[str, Any]:
    """What a template may see: JSON data only, since an object's methods would be open to it."""
    try:
        return json.loads(json.dumps(values))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{at}: it holds something besides text, numbers, lists and objects ({error})"
        ) from error
