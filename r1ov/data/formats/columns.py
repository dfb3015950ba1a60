"""The columns of other people's rows by what they mean: each is read, or refused by its name, or listed."""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from PIL import Image

from r1ov.data.formats.open_image import ENCODED
from r1ov.data.formats.records import BadRow

EMPTY = (None, "", "nan", b"")  # parquet writes None for what a row has not
# Meaning: its widespread names; the first one that a row has is read. From "a video" on none is.
NAMES = {}
for _line in """
    conversation: messages conversations conversation message dialogue dialog texts
    prompt: prompt
    question: question problem query instruction question_text problem_text prefix
    input: input
    hint: hint context passage article paragraph background premise
    choices: options choices candidates option choice option_list choice_list answer_choices endings
    system text: system system_prompt system_message system_instruction sys_prompt
    reply: completion output response suffix
    reward model: reward_model
    weight: weight loss loss_mask loss_scale loss_weight train training trainable
    answer: answer ground_truth ground_truth_answer final_answer correct_answer gt_answer gold_answer
    answer: reference_answer answer_index answer_idx correct_option correct_choice correct_choice_idx cop
    label: label kto_tag
    solution: solution
    a video: video videos video_path video_paths
    sound: audio audios
    tool calls: tools functions tool_calls function_call
    earlier turns: history chat_history conversation_history dialog_history
    boxes: objects bbox bboxes box boxes gt_bbox gt_bboxes bbox_2d bounding_box bounding_boxes
    a unit of boxes that is not known: box_unit
    a thought apart from its reply: reasoning_content
    half of a preference pair: chosen rejected rejected_response rejected_answer
    wrong choices alone: distractors distractor1 incorrect_answers wrong_answers
""".strip().splitlines():
    _meaning, _, _names = _line.strip().partition(":")
    NAMES[_meaning] = NAMES.get(_meaning, "") + _names
MEANING = {name: meaning for meaning, names in NAMES.items() for name in names.split()}
BESIDE = (None, "answer", "label", "solution")  # of two such columns one is enough, and of no meaning

_IMAGE = re.compile(r"image|img|picture|photo|figure|screenshot")
_CHOICES = r"option|choice|candidate|alternative|possible_answers|(?:option|choice|ending|opt|ans)_?\d+$"
_FILE = """path file file_name filename file_path filepath local_path media media_path attachment attachments
    pic pics diagram jpg jpeg png webp"""
_SUFFIX = r"(?i)\.(?:png|jpe?g|webp|gif|bmp|tiff?|mp4|avi|mov|mkv|webm|mp3|wav|flac|ogg)(?:\?|$)"


class Columns(dict):
    """The columns of a row, or the keys of a message, that nobody has read yet; names in lower case.

    empty: those of images whose cell is empty.
    """

    def __init__(self, row: Mapping):
        self.empty = []
        for name, value in sorted(row.items(), key=lambda item: str(item[0]) != str(item[0]).lower()):
            name = str(name) if str(name).lower() in self else str(name).lower()
            is_no_talk = MEANING.get(name) == "conversation" and value == []
            if is_no_talk or any(leaf not in EMPTY for leaf in leaves(value)):
                self[name] = value
            elif _IMAGE.search(name):
                self.empty.append(name)

    def has(self, *meanings: str) -> bool:
        return any(MEANING.get(name) in meanings for name in self)

    def one_of(self, *names: str) -> Any:
        """The value of the first of these columns, which is read now."""
        return self.pop(next((name for name in names if name in self), None), None)

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

    def images(self) -> list:
        """The images of a column named after images or files, or of a series, such as image_1, image_2.

        Of several columns the one is read that holds the images themselves; see `rest` for the others.
        """
        found = {}
        for name, value in self.items():
            value = unwritten(value)
            if isinstance(value, Mapping) and not {"bytes", "path"} & value.keys():
                value = list(value.values())  # by their marks: {"<image_00>": path}
            is_named = name in ("images", "image") or (
                media(value) and (name in _FILE.split() or _IMAGE.search(name))
            )
            if value and is_named:
                found[name] = value if isinstance(value, list) else [value]
        series = sorted((int(match[0]), name) for name in found if (match := re.search(r"\d+$", name)))
        if series:
            stem = series[0][1].rstrip("0123456789")
            names = [name for _, name in series if name.rstrip("0123456789") == stem]
        else:
            names = sorted(found, key=lambda it: (is_place(found[it]), it not in ("images", "image")))[:1]
        return [image for name in names if self.pop(name) for image in found[name]]

    def rest(self, text: str = "", images: Sequence = ()) -> tuple[str, ...]:
        """The names of the columns that were not read.

        Raises BadRow for one whose meaning changes what the row shows, if neither the record's text nor its
        images show it.
        """
        unread, seen = [], media(images)
        for name, value in self.items():
            meaning, value = MEANING.get(name), unwritten(value)
            if meaning == "weight" and value == 1:
                continue
            if meaning == "label" and value is False:  # TRL's unpaired preferences
                meaning = "a mark of a bad reply"
            if meaning in BESIDE:
                # Beside an image itself, a place may be its name.
                found = [
                    leaf
                    for leaf in media(value)
                    if leaf not in seen and (is_place(seen) or not is_place(leaf))
                ]
                if found or (_IMAGE.search(name) and value and not images):
                    meaning = "an image or video"
                elif is_dialogue(value):
                    meaning = "a conversation"
                elif re.search(_CHOICES, name) and (isinstance(value, list | Mapping) or name[-1].isdigit()):
                    meaning = "choices"
            is_shown = all(isinstance(leaf, str) and leaf.strip() in text for leaf in leaves(value))
            if meaning not in BESIDE and not is_shown:
                raise BadRow(
                    f"the column {name} holds {meaning}, which is not used",
                    "leave it out, or write what it says into the question or the messages",
                )
            unread.append(name)
        return (*unread, *(f"{name} (empty)" for name in self.empty if not images))


def unwritten(value: Any) -> Any:
    """The list or object that a text writes as JSON or Python, else the value itself."""
    text = value.strip() if isinstance(value, str) else ""
    for read in (json.loads, ast.literal_eval) if text[:1] in ("[", "{") else ():
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return read(text)
    return value


def leaves(value: Any) -> Iterator:
    """What lists, objects and JSON in a text hold that is none of these; of messages, what they say."""
    value = unwritten(value)
    if isinstance(value, Mapping):
        value = [each for name, each in value.items() if name not in ("role", "from", "type")]
    if isinstance(value, list | tuple):
        for each in value:
            yield from leaves(each)
    else:
        yield value


def media(value: Any) -> list:
    """What in it looks like images or other media: bytes, base64, a file's path or URL."""
    return [
        leaf
        for leaf in leaves(value)
        if isinstance(leaf, bytes | Image.Image)
        or (isinstance(leaf, str) and (ENCODED.match(leaf) or re.search(_SUFFIX, leaf)))
    ]


def is_dialogue(value: Any) -> bool:
    """Whether it is a list of messages."""
    keys = {"role", "from", "assistant"}
    return isinstance(value, list) and any(isinstance(one, Mapping) and keys & one.keys() for one in value)


def is_place(value: Any) -> bool:
    """Whether it is the path or URL of an image, or a list of them, and not the image itself."""
    if isinstance(value, list):
        return all(map(is_place, value))
    return isinstance(value, str) and not ENCODED.match(value)
