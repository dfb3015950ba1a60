"""A row of other people's data files to a `Record`, by what its columns mean, in any of the usual layouts."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from reprlib import repr as shortened
from typing import Any

from r1ov.common.files import split_reply
from r1ov.data.formats.choices import LETTERS, gold_letter, lettered, take_options, with_options
from r1ov.data.formats.columns import Columns, is_dialogue, is_place, unwritten
from r1ov.data.formats.records import BadRow, Record, text_of
from r1ov.data.messages import read_part
from r1ov.errors import UserError
from r1ov.reward import BOX_UNITS, KINDS

Part = dict  # of a message's content; an image's may lack its source
Turn = tuple[str, list[Part], bool]  # role, parts, is it trained?

ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
# The names under which rows are counted, each with the columns that it has; the first that fits.
LAYOUTS = """verl prompt reward_model, r1-onevision conversations, vlm-r1 conversations,
    sharegpt conversations, messages messages, alpaca instruction output, trl prompt, easyr1 problem answer,
    r1-v problem solution, question-answer"""
LAYOUTS = {name: columns for name, *columns in map(str.split, LAYOUTS.split(","))}
# Who answers there, about the column `image`.
SPEAKERS = {"r1-onevision": "assistant", "vlm-r1": "gpt"}
# The place of an image in a text, in the spellings of several projects, with its number where it has one.
PLACE = r"(?i)<\|?(?:image|image_placeholder|imagehere)[ _]?(\d+)?\|?\s*/?>"
# Written in a text, these would become the tokens that frame turns and images ...
FRAME = r"<\|(?:im_start|im_end|endoftext|vision_start|vision_end|vision_pad|image_pad|video_pad)\|>"
# ... and these would be trained as letters.
UNFILLED = (
    r"(?s)<\|?(?i:video|audio|img|bbox(?!>\s*[\[(])|ref-object)[ _]?\d*\|?\s*/?>|</image>|<im_patch>"
    r"|<cot-process>|\[(?:IMAGE|IMG|VIDEO)\]"
    r"|(?<![A-Za-z0-9_])<(?P<name>region|mask|point|object|obj|picture|sound|speech)[ _]?\d*>"
    r"(?!.*?</(?P=name)>)"
)
# Keys of a message that change what is trained of it.
CHANGES = re.compile(r"train|loss|mask|weight|learn|ignore|reasoning|think|thought")


def read_row(row: Any, where: str = "") -> Record:
    """The record in a row of any layout; images stay as the row gives them.

    Where a row names no gold answer, it is the reply's `<answer>`, or else a reply of one line without a
    thought.
    Raises:  BadRow.
    """
    if not isinstance(row, Mapping):
        raise BadRow("the row is not an object", f"a {type(row).__name__}")
    columns = Columns(row)
    layout = _layout(columns)
    images = columns.images()
    label = columns.one_of(*(name for name in ("id", "index") if isinstance(columns.get(name), str | int)))
    kind = columns.one_of(*(name for name in ("kind", "accu_reward_method") if columns.get(name) in KINDS))
    box_unit = columns.pop("box_unit") if columns.get("box_unit") in BOX_UNITS else None
    # A label beside a conversation may be anything.
    answers = ("answer",) if columns.has("conversation", "prompt") else ("answer", "label")
    unread = []  # names of columns and keys
    turns = _dialogue(columns, unread)
    unread += ["messages.image_url.detail" for _, parts, _ in turns for one in parts if one.pop("detail", "")]
    options = take_options(columns)
    gold = None
    if (given := _gold_column(columns, turns, answers)) is not None:
        gold = given if options and isinstance(given, int) else _gold(given)
    if options:
        if "A" not in options and turns[-1][0] == "assistant":
            raise BadRow("numbered choices beside a reply, which may name one by its number")
        # A line for each, such as "(A) red", after the last question, unless it shows them.
        question = next(parts for role, parts, _ in reversed(turns) if role == "user")
        shown, texts = "".join(part.get("text", "") for part in question), [*options.values()]
        if LETTERS[len(texts) - 1] not in lettered(shown) or not all(text in shown for text in texts):
            last = question.pop() if question[-1]["type"] == "text" else {"text": ""}
            question.append({"type": "text", "text": with_options(last["text"], texts)})
        gold = None if gold is None else gold_letter(gold, options)
    messages = _messages(turns, images)
    if gold is None and turns[-1][0] == "assistant":
        # A reply's answer, or else all of it, if that is one line, or VLM-R1's, and no thought.
        reply = messages[-1]["content"]
        is_answer = "think>" not in reply and (layout == "vlm-r1" or "\n" not in reply.strip())
        gold = split_reply(reply)[1] or (reply.strip() if is_answer else None)
        if options and gold:
            with suppress(BadRow):  # a reply may say more than a choice
                gold = gold_letter(gold, options)
    text = "\n".join(text_of(parts) for _, parts, _ in turns)
    return Record(
        messages=messages,
        solution=gold,
        kind=kind,
        box_unit=box_unit,
        id=None if label is None else str(label),
        format=layout,
        where=where,
        unread=tuple(dict.fromkeys((*unread, *columns.rest(text, images)))),
    )


def _layout(columns: Columns) -> str:
    """The name of the row's layout. Raises BadRow that lists the columns if there is nothing to ask."""
    if not columns.has("conversation", "prompt", "question", "input"):
        for name, value in columns.items():
            if isinstance(value, list) and value and isinstance(value[0], Mapping):
                raise BadRow("the row is a list of rows", f"in its {name}; write one row a line")
        keys = ", ".join(sorted(columns))[:200]
        raise BadRow(
            "the format is not known",
            f"keys {keys}; expected one of {', '.join(LAYOUTS)} (the last: image, question, answer)",
        )
    turns, speakers = columns.get("conversations"), [None]
    if {"image", "accu_reward_method"} & columns.keys() and is_dialogue(turns):
        speakers += [turn.get("from") for turn in turns if isinstance(turn, Mapping)]
    fits = (name for name, needed in LAYOUTS.items() if {*needed} <= columns.keys())
    return next(name for name in fits if SPEAKERS.get(name) in speakers)


def _dialogue(columns: Columns, unread: list[str]) -> list[Turn]:
    """The row's turns. Keys of the messages that were not read are added to `unread`."""
    said = columns.take("conversation", "prompt")
    if said is not None:
        turns = _turns(said, unread)
    else:
        asked = [columns.text(meaning) for meaning in ("hint", "question", "input")]
        turns = _turns("\n".join(filter(None, asked)), unread)
    if (reply := columns.take("reply")) is not None:
        turns += [("assistant", _parts(reply), True)] if isinstance(reply, str) else _turns(reply, unread)
    if system := columns.text("system text"):
        turns.insert(0, ("system", _parts(system), True))
    return turns


def _turns(value: Any, unread: list[str]) -> list[Turn]:
    """Messages as {role, content}, {from, value} or {user, assistant}, also in JSON text; other text is one
    message of the user's.
    """
    if is_dialogue(found := unwritten(value)):
        value = found
    if isinstance(value, str):
        if re.match(r"\s*[\[{]", value) and re.search(r"[\"'](role|from)[\"']\s*:", value):
            raise BadRow("the messages are in no form that is known", shortened(value))
        return [("user", _parts(value), True)]
    if not isinstance(value, list) or not value:
        raise BadRow("the messages are not a list", shortened(value))
    turns = []
    for message in value:
        if not isinstance(message, Mapping):
            raise BadRow("a message is not an object", shortened(message))
        keys = Columns(message)
        weight = keys.take("weight")
        if weight not in (None, 0, 1):
            raise BadRow("a message's weight is neither 0 nor 1", shortened(weight))
        if "assistant" in keys:
            said = [("user", keys.one_of("user", "human")), ("assistant", keys.pop("assistant"))]
        else:
            said = [(keys.one_of("role", "from"), keys.one_of("content", "value"))]
        for role, content in said:
            if str(role) not in ROLES:
                expected = f"expected one of {', '.join(ROLES)}"
                raise BadRow("a message's role is not known", f"{shortened(role)}; {expected}")
            turns.append((ROLES[role], _parts(content), weight != 0))
        rest = keys.rest()
        if changes := next(filter(CHANGES.search, rest), None):
            raise BadRow("a message has a key that changes what is trained, and is not read", changes)
        unread += [f"messages.{name}" for name in rest]
    return turns


def _parts(content: Any) -> list[Part]:
    if isinstance(content, int | float) and not isinstance(content, bool):  # VLM-R1 labels
        content = str(content)
    if not isinstance(content, str | list):
        raise BadRow("a message's content is neither a text nor a list of parts", shortened(content))
    try:
        return [
            {"type": "text", "text": part} if isinstance(part, str) else read_part(part)
            for part in ([content] if isinstance(content, str) else content)
        ]
    except UserError as error:
        raise BadRow("a part of a message is neither text nor picture alone", str(error)) from error


def _gold_column(columns: Columns, turns: list[Turn], answers: Sequence[str]) -> Any:
    """The gold answer as the row gives it. A solution with a thought in it is also a reply to learn from."""
    gold = columns.take(*answers)
    if (model := columns.take("reward model")) is not None:
        gold = model.get("ground_truth") if isinstance(model, Mapping) else None
        if gold is None:
            raise BadRow("reward_model has no ground_truth", shortened(model))
    solution = columns.get("solution")
    if isinstance(solution, str) and "<think>" in solution and turns[-1][0] == "user":
        turns.append(("assistant", _parts(columns.pop("solution")), True))
    elif gold is None:
        columns.pop("solution", None)
    return solution if gold is None else gold


def _gold(value: Any) -> str:
    """The gold answer as text: `<answer>` tags and GSM8K's `#### ` are taken off, four numbers are a box."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list) and len(value) == 4:
        return f"[{', '.join(map(_gold, value))}]"
    if isinstance(value, str):
        text = split_reply(value)[1] if "<answer>" in value else value.rsplit("\n#### ", 1)[-1].strip()
        if not text:
            raise BadRow("the gold answer is empty, or its tags do not pair", shortened(value))
        return text
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise BadRow("the gold answer is neither a text, nor a number, nor a box", shortened(value))
    return str(value)


def _messages(turns: Sequence[Turn], images: Sequence) -> list[dict]:
    """The turns as messages, each image of the row's own columns in its place.

    The columns fill the {"type": "image"} without a source, or else the marks such as `<image>`, one for one;
    without any mark all images come before the first question. Where the messages hold their images
    themselves, the columns may only repeat them.
    """
    parts = [part for _, content, _ in turns for part in content]
    slots = [part["image"] for part in parts if part["type"] == "image"]
    marks = [] if slots else [mark for part in parts for mark in re.findall(PLACE, part["text"])]
    numbers = sorted({int(mark) for mark in marks}) if all(marks) else []
    indices = [part["index"] for part in parts if "index" in part and not part["image"]]
    if indices != [*range(len(indices))]:
        raise BadRow("the messages take the row's pictures out of order, or one twice", shortened(indices))
    # Slots that hold their images themselves count where the row's columns repeat them.
    places = slots.count(None) or len((images and slots) or numbers or marks or images)
    if places != len(images) or (numbers and numbers[-1] - numbers[0] >= places):
        counts = f"{len(images)} pictures, {places} places"
        raise BadRow("the number of pictures differs from that of their places", counts)
    for own, repeated in zip(slots, images, strict=False) if None not in slots else ():
        if isinstance(repeated, Mapping):
            repeated = repeated.get("bytes") or repeated.get("path")
        names = [str(one).split("/")[-1] for one in (own, repeated)]
        # In two forms, or two files of one name.
        if (is_place(own) == is_place(repeated) or isinstance(repeated, list)) and names[0] != names[1]:
            raise BadRow("the messages show other pictures than the row's column", shortened(images))

    left, numbered = iter(images), dict(zip(numbers, images, strict=False))
    messages = []
    for role, content, is_trained in turns:
        placed = []  # the message's parts
        if role == "user" and not (slots or marks):
            placed += [{"type": "image", "image": image} for image in left]
        for part in content:
            match part:
                case {"image": None}:
                    placed.append(part | {"image": next(left)})
                case {"text": text} if marks:
                    placed += _at_marks(text, lambda mark: numbered[int(mark)] if numbers else next(left))
                case _:
                    placed.append(part)
        message = {"role": role, "content": _content(role, placed)}
        messages.append(message if is_trained or role != "assistant" else message | {"weight": 0})
    roles = [message["role"] for message in messages]
    if "system" in roles[1:] or "user" not in roles or roles[roles[0] == "system"] != "user":
        expected = "expected an optional system, then user first"
        raise BadRow("the turns are out of order", f"{', '.join(roles)[:100]}; {expected}")
    return messages


def _at_marks(text: str, image_of: Callable[[str], Any]) -> Iterator[Part]:
    """The text's parts, an image at each mark; no white space between leading images and the first words."""
    said = ""  # the last words
    for place, piece in enumerate(re.split(PLACE, text)):  # text, mark, text, mark, ..., text
        if place % 2:
            yield {"type": "image", "image": image_of(piece)}
        elif piece := piece if said or not place else piece.lstrip():
            said = piece
            yield {"type": "text", "text": piece}


def _content(role: str, parts: list[Part]) -> str | list[Part]:
    """A text where there is no image, else the parts."""
    text = "".join(part.get("text", "") for part in parts)
    if found := re.search(FRAME, text):
        raise BadRow("a text holds one of the model's own frame tokens", found[0])
    if found := re.search(UNFILLED, text):
        raise BadRow("a text has a place that nothing fills", found[0])
    if re.search("[\ud800-\udfff]", text):
        raise BadRow("a text is not valid Unicode")
    if any(part["type"] == "image" for part in parts):
        if role != "user":
            raise BadRow(f"a picture in a message of the {role}'s")
        return parts
    if not text.strip():
        raise BadRow(f"a message of the {role}'s is empty")
    return text
