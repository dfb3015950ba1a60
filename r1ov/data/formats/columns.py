"""The columns of other people's rows by what they mean: each is read, or refused by its name, or listed."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from r1ov.data.formats.open_image import ENCODED
from r1ov.data.formats.records import BadRow

# Meaning -> its widespread names; the first one that a row has is read.
NAMES = {
    "conversation": "messages conversations conversation message dialogue texts",
    "prompt": "prompt",
    "question": "question problem query instruction question_text problem_text prefix",
    "input": "input",
    "hint": "hint context passage",
    "choices": "options choices candidates",
    "system text": "system system_prompt",
    "reply": "completion output response suffix",
    "reward model": "reward_model",
    "weight": "weight loss loss_mask",
    # What a record says apart from its messages.
    "answer": "answer ground_truth ground_truth_answer final_answer correct_answer gt_answer "
    "correct_choice_idx",
    "label": "label",
    "solution": "solution",
    # Never read.
    "a video": "video videos video_path video_paths",
    "sound": "audio audios",
    "tool calls": "tools functions tool_calls function_call",
    "earlier turns": "history",
    "boxes": "objects bbox bboxes box boxes",
    "a thought apart from its reply": "reasoning_content",
    "half of a preference pair": "chosen rejected rejected_response",
}
MEANING = {name: meaning for meaning, names in NAMES.items() for name in names.split()}
BESIDE = ("answer", "label", "solution")  # a row that has two of these shows no less with one

_IMAGE = re.compile(r"image|img|picture|photo|figure|screenshot")
_FILE = ("path", "file_name", "filename", "media")
_SUFFIX = re.compile(
    r"\.(?:png|jpe?g|webp|gif|bmp|tiff?|mp4|avi|mov|mkv|webm|mp3|wav|flac|ogg)$", re.IGNORECASE
)


class Columns(dict[str, Any]):
    """The columns of a row, or the keys of a message, that nobody has read yet; names in lower case."""

    def __init__(self, row: Mapping[Any, Any]):
        for name, value in sorted(row.items(), key=lambda item: str(item[0]) != str(item[0]).lower()):
            if value not in (None, "", "nan", b"", "[]", {}):  # parquet writes None for what a row has not
                self[str(name) if str(name).lower() in self else str(name).lower()] = value

    def has(self, *meanings: str) -> bool:
        return any(name in self for meaning in meanings for name in NAMES[meaning].split())

    def one_of(self, *names: str) -> Any:
        """The value of the first of these columns, which is read now; an empty list comes last."""
        found = sorted((name for name in names if name in self), key=lambda name: self[name] == [])
        return self.pop(found[0]) if found else None

    def take(self, *meanings: str) -> Any:
        """The value of the first column with one of these meanings, as `one_of`."""
        return self.one_of(*(name for meaning in meanings for name in NAMES[meaning].split()))

    def text(self, meaning: str) -> str:
        """The same, "" if there is none. Raises BadRow if it is not a text."""
        name = next((name for name in NAMES[meaning].split() if name in self), None)
        value = self.pop(name, "")
        if not isinstance(value, str):
            raise BadRow(f"{name} is not a text", f"a {type(value).__name__}")
        return value

    def images(self) -> list[Any]:
        """The images of a column named after images or files, or of a series, such as image_1, image_2.

        Of several columns the one is read that holds the images themselves; see `rest` for the others.
        """
        found = {}
        for name, value in self.items():
            if isinstance(value, Mapping) and not {"bytes", "path"} & value.keys():
                value = list(value.values())  # by their marks: {"<image_00>": path}
            is_named = name in ("images", "image") or (
                is_image(value) and (name in _FILE or _IMAGE.search(name))
            )
            if value and is_named:
                found[name] = value if isinstance(value, list) else [value]
        series = sorted((int(match[0]), name) for name in found if (match := re.search(r"\d+$", name)))
        if series:
            stem = series[0][1].rstrip("0123456789")
            names = [name for _, name in series if name.rstrip("0123456789") == stem]
        else:
            by_form = sorted(found, key=lambda name: (is_place(found[name]), name not in ("images", "image")))
            names = by_form[:1]
        return [image for name in names if self.pop(name) for image in found[name]]

    def rest(self, text: str = "", images: Sequence[Any] = ()) -> tuple[str, ...]:
        """The names of the columns that were not read.

        Raises BadRow for one whose meaning changes what the row shows, if neither the record's text nor its
        images show it.
        """
        unread = []
        for name, value in self.items():
            meaning = MEANING.get(name)
            if value == [] or (meaning == "weight" and value == 1):
                continue
            if meaning is None and (is_image(value) or (_IMAGE.search(name) and value and not images)):
                is_name = images and is_place(value) and not is_place(images)  # of an image that was read
                meaning = None if value in images or value == images or is_name else "an image or video"
            if meaning is not None and meaning not in BESIDE and not is_within(value, text):
                raise BadRow(f"the column {name} holds {meaning}, which is not used")
            unread.append(name)
        return tuple(unread)


def is_image(value: Any) -> bool:
    """Whether it looks like one or more images or other media: bytes, base64, a file's path or URL."""
    if isinstance(value, str):
        return bool(ENCODED.match(value) or _SUFFIX.search(value.partition("?")[0]))
    if isinstance(value, list):
        return bool(value) and all(map(is_image, value))
    return isinstance(value, bytes | Image.Image) or (isinstance(value, Mapping) and "bytes" in value)


def is_place(value: Any) -> bool:
    """Whether it is the path or URL of an image, or a list of them, and not the image itself."""
    if isinstance(value, list):
        return all(map(is_place, value))
    return isinstance(value, str) and not ENCODED.match(value)


def is_within(value: Any, text: str) -> bool:
    """Whether the text shows each of the texts that the value holds."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return all(is_within(each, text) for each in value)
    return isinstance(value, str) and value.strip() in text
