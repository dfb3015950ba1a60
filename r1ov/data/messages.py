"""Messages as users write them, taken apart into what the chat template sees and the pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1ov.common.fetch import shown
from r1ov.data.image import LazyImage, lazy_image
from r1ov.errors import UserError

Messages = Sequence[Mapping[str, Any]]

SOURCE_KEYS = (
    "image",
    "image_url",
    "url",
    "path",
    "base64",
)  # of a picture, in Hugging Face's and OpenAI's messages


def split_pictures(messages: Any, where: str) -> tuple[list[dict[str, Any]], list[tuple[str, LazyImage]]]:
    """The messages with bare {"type": "image"} in the place of each picture, and (name, picture) in their
    order.

    Args:    where: what errors begin with.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise UserError(f"{where}expected a list of messages, found {messages!r:.60}")
    plain: list[dict[str, Any]] = []
    pictures: list[tuple[str, LazyImage]] = []
    for turn, message in enumerate(messages, 1):
        at = f"{where}message {turn}"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"{at}: expected {{'role': ..., 'content': ...}}, found {message!r:.60}")
        content = message.get("content")
        if isinstance(content, list | tuple):
            parts = []
            for part in content:
                kind, value = _part(part, at)
                if kind == "image":
                    name = f"{where}picture {len(pictures) + 1}"
                    is_named = isinstance(value, str | Path) and not str(value).startswith("data:")
                    name = shown(str(value)) if is_named else name
                    pictures.append((name, lazy_image(value, name)))
                parts.append({"type": "image"} if kind == "image" else {"type": "text", "text": value})
            content = parts
        elif not isinstance(content, str):
            raise UserError(f"{at}: content is {content!r:.60}, expected a text or a list of parts")
        plain.append(
            {
                **_plain_data({key: value for key, value in message.items() if key != "content"}, at),
                "content": content,
            }
        )
    return plain, pictures


def _part(part: Any, at: str) -> tuple[str, Any]:
    """("image", its source) or ("text", the text) of one part of a message's content."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return "text", part["text"]
    if kind in ("image", "image_url"):
        source = next((part[key] for key in SOURCE_KEYS if part.get(key) is not None), None)
        if isinstance(source, Mapping):
            source = source.get("url")
        if part.get("base64") is source and isinstance(source, str):
            source = f"data:;base64,{source}"
        if source is None:
            raise UserError(
                f"{at}: a picture without a source; expected {{'type': 'image', 'image': path, URL, bytes or PIL image}}"
            )
        return "image", source
    if kind in ("video", "video_url"):
        raise UserError(f"{at}: videos are not supported; give pictures or text")
    raise UserError(
        f"{at}: a part of its content is {part!r:.60}, expected an object of type 'text' or 'image'"
    )


def _plain_data(values: dict[str, Any], at: str) -> dict[str, Any]:
    """What a template may see: JSON data only, since an object's methods would be open to it."""
    if values.keys() == {"role"}:
        return values
    try:
        return json.loads(json.dumps(values))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{at}: it holds something besides text, numbers, lists and objects ({error})"
        ) from error
