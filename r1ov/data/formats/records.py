"""One row of other people's data files to a `Record`. The format is told by the row's keys, as each project
writes them.
"""

import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r1ov.common.text import one_line, split_reply
from r1ov.data.messages import Messages, read_part
from r1ov.errors import UserError
from r1ov.reward.accuracy import KINDS

Row = Mapping[str, Any]
Turn = tuple[str, list[dict[str, Any]]]  # (role, parts); a picture's part may still lack its source

ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
MARK = "<image>"
# Written in a text, these would become the tokens that frame turns and pictures.
_FRAMES = re.compile(
    r"<\|(?:im_start|im_end|endoftext|vision_start|vision_end|vision_pad|image_pad|video_pad)\|>"
)


class BadRow(UserError):
    """A row that cannot be used: raised while it is read, and given by a reader in the record's place.

    reason: the same text for every row with this fault, so that rows can be counted by it.
    dropped: the row was read, and then left out (by the cleaner, or as too long).
    """

    def __init__(self, reason: str, detail: str = "", dropped: bool = False):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.dropped = reason, detail, dropped

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BadRow) and vars(self) == vars(other)

    __hash__ = UserError.__hash__

    def at(self, where: str) -> "BadRow":
        """The same, its detail one line that names file, row and fault."""
        return BadRow(self.reason, one_line(f"{where}: {self}")[:500], self.dropped)


@dataclass(frozen=True, kw_only=True)
class Record:
    messages: (
        Messages  # as the processor takes them; the assistant's reply, where the row has one, is the last
    )
    solution: str | None = None  # the gold answer alone, without tags
    kind: str | None = None  # how the answer is compared, where the row says so
    id: str | None = None
    format: str
    where: str = ""  # file and row, for people
    repairs: tuple[str, ...] | None = None  # by the cleaner; None: it has not seen the record

    @property
    def prompt(self) -> Messages:
        return self.messages[:-1] if self.reply is not None else self.messages

    @property
    def reply(self) -> str | None:
        return self.messages[-1]["content"] if self.messages[-1]["role"] == "assistant" else None

    @property
    def images(self) -> list[Any]:
        return [
            part["image"]
            for message in self.messages
            for part in message["content"]
            if isinstance(part, dict) and "image" in part
        ]


def read_row(row: Any, where: str = "") -> Record:
    """The record in a row of any format below; pictures stay as the row gives them.

    Where a row names no gold answer, it is the reply's `<answer>`, or else a reply of one line without a
    thought.
    Raises:  BadRow.
    """
    if not isinstance(row, Mapping):
        raise BadRow("the row is not an object", f"a {type(row).__name__}")
    row = {
        key: value for key, value in row.items() if value is not None
    }  # parquet writes None for what a row has not
    name = sniff(row)
    for key, what in {
        "videos": "a video",
        "video": "a video",
        "audios": "sound",
        "tools": "tool calls",
    }.items():
        if row.get(key) not in (None, "", [], "[]"):
            raise BadRow(f"the row has {what}, which is not supported")
    turns, images, gold = FORMATS[name][1](row)
    messages = _messages(turns, images)
    if gold is None and messages[-1]["role"] == "assistant":
        reply = messages[-1]["content"]
        gold = split_reply(reply)[1] or (
            None if "think>" in reply or "\n" in reply.strip() else reply.strip()
        )
    kind = row.get("kind", row.get("accu_reward_method"))
    label = row.get("id", row.get("index"))
    return Record(
        messages=messages,
        solution=gold,
        kind=kind if isinstance(kind, str) and kind in KINDS else None,
        id=str(label) if isinstance(label, str | int) else None,
        format=name,
        where=where,
    )


def sniff(row: Row) -> str:
    """The name of the row's format, by its keys.

    Raises:  BadRow that lists the keys.
    """
    for name, (fits, _) in FORMATS.items():
        if fits(row):
            return name
    keys = ", ".join(sorted(map(str, row)))
    if "chosen" in row:
        raise BadRow(
            "the row is a preference pair, expected one reply or one gold answer", f"keys {keys[:200]}"
        )
    raise BadRow("the format is not known", f"keys {keys[:200]}; expected one of {', '.join(FORMATS)}")


# What the formats share: texts, turns, pictures, gold answers.


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{what} is not a text", f"a {type(value).__name__}")
    return value


def _part(part: Any) -> dict[str, Any]:
    """A text, or a part of a message's content, as `read_part` gives it. Raises BadRow."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    try:
        return read_part(part)
    except UserError as error:
        raise BadRow("a part of a message is neither text nor picture alone", str(error)) from error


def _turns(value: Any) -> list[Turn]:
    """Messages written as {role, content} or {from, value}; a bare text is the user's one message."""
    if isinstance(value, str):
        return [("user", [_part(value)])]
    if not isinstance(value, list) or not value:
        raise BadRow("the messages are not a list", reprlib.repr(value))
    turns = []
    for message in value:
        if not isinstance(message, Mapping):
            raise BadRow("a message is not an object", reprlib.repr(message))
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if not isinstance(role, str) or role not in ROLES:
            raise BadRow(
                "a message's role is not known", f"{reprlib.repr(role)}; expected one of {', '.join(ROLES)}"
            )
        if isinstance(content, int | float) and not isinstance(content, bool):  # VLM-R1 labels
            content = str(content)
        if not isinstance(content, str | list):
            raise BadRow("a message's content is neither a text nor a list of parts", reprlib.repr(content))
        turns.append(
            (ROLES[role], [_part(content)] if isinstance(content, str) else [_part(part) for part in content])
        )
    return turns


def _exchange(question: str, reply: str | None, row: Row) -> list[Turn]:
    turns = [("user", [_part(question)])] + ([("assistant", [_part(reply)])] if reply is not None else [])
    return _with_system(turns, row)


def _with_system(turns: list[Turn], row: Row) -> list[Turn]:
    return [("system", [_part(_text(row["system"], "system"))]), *turns] if row.get("system") else turns


def _images(row: Row) -> list[Any]:
    """The pictures of the column `images` or `image`: a list, one, or none."""
    value = row.get("images") or row.get("image")
    return value if isinstance(value, list) else [value] if value else []


def _gold(value: Any) -> str:
    """The gold answer as text: `<answer>` tags and GSM8K's `#### ` are taken off, four numbers are a box."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list) and len(value) == 4:
        return f"[{', '.join(_gold(number) for number in value)}]"
    if isinstance(value, str):
        text = split_reply(value)[1] if "<answer>" in value else value.rsplit("\n#### ", 1)[-1].strip()
        if not text:
            raise BadRow("the gold answer is empty, or its tags do not pair", reprlib.repr(value))
        return text
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow("the gold answer is neither a text, nor a number, nor a box", reprlib.repr(value))
    return str(value)


def _messages(turns: Sequence[Turn], images: Sequence[Any]) -> list[dict[str, Any]]:
    """The turns as messages, each picture of the row's own column in its place.

    Pictures that lie in the messages themselves win over the column. Else the column fills the {"type":
    "image"} without a source, or the `<image>` marks, one for one; without any mark all pictures stand before
    the first question.
    """
    parts = [part for _, content in turns for part in content]
    slots = [part for part in parts if part["type"] == "image"]
    bare = [slot for slot in slots if slot["image"] is None]
    marks = 0 if slots else sum(part["text"].count(MARK) for part in parts)
    wanted = len(bare) if slots else marks or len(images)
    if wanted != len(images) and not (slots and not bare):
        raise BadRow(
            "the number of pictures differs from that of their places",
            f"{len(images)} pictures, {wanted} places",
        )
    left = iter(images)
    filled = []
    for role, content in turns:
        placed: list[dict[str, Any]] = []
        if images and not slots and not marks and role == "user":
            placed += [{"type": "image", "image": image} for image in left]
        for part in content:
            if part["type"] == "image":
                placed.append(part | {"image": next(left) if part["image"] is None else part["image"]})
                continue
            for number, text in enumerate(part["text"].split(MARK) if marks else [part["text"]]):
                if number:
                    placed.append({"type": "image", "image": next(left)})
                if (
                    text := text.lstrip() if number and len(placed) == number else text
                ):  # nothing but pictures before it
                    placed.append({"type": "text", "text": text})
        filled.append({"role": role, "content": _content(role, placed)})
    roles = [message["role"] for message in filled]
    if "system" in roles[1:] or "user" not in roles or roles[roles[0] == "system"] != "user":
        raise BadRow(
            "the turns are out of order",
            f"{', '.join(roles)[:100]}; expected an optional system, then user first",
        )
    return filled


def _content(role: str, parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A text where there is no picture, else the parts."""
    for part in parts:
        text = part.get("text", "")
        if found := _FRAMES.search(text):
            raise BadRow("a text holds one of the model's own frame tokens", found[0])
        if any("\ud800" <= letter <= "\udfff" for letter in ("" if text.isascii() else text)):
            raise BadRow("a text is not valid Unicode")
    has_picture = any(part["type"] == "image" for part in parts)
    if has_picture and role != "user":
        raise BadRow(f"a picture in a message of the {role}'s")
    if has_picture:
        return parts
    text = "".join(part["text"] for part in parts)
    if not text.strip():
        raise BadRow(f"a message of the {role}'s is empty")
    return text


# The formats: a row to its turns, its pictures and its gold answer.

Read = tuple[list[Turn], list[Any], str | None]


def _conversations(row: Row) -> Read:
    """LLaMA-Factory's sharegpt form, LLaVA's, R1-Onevision's."""
    return _with_system(_turns(row["conversations"]), row), _images(row), None


def _vlm_r1(row: Row) -> Read:
    """The second turn is the gold answer; in longer conversations there is none."""
    turns = _turns(row["conversations"])
    is_pair = [role for role, _ in turns] == ["user", "assistant"] and len(turns[1][1]) == 1
    gold = turns[1][1][0].get("text", "") if is_pair else ""
    return turns, _images(row), _gold(gold) if gold.strip() and "<think>" not in gold else None


def _chat(row: Row) -> Read:
    return _with_system(_turns(row["messages"]), row), _images(row), None


def _alpaca(row: Row) -> Read:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        raise BadRow("history is not a list of [question, reply]", reprlib.repr(history))
    question = "\n".join(text for key in ("instruction", "input") if (text := _text(row.get(key, ""), key)))
    before = [
        (role, [_part(_text(text, "history"))])
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return (
        _with_system(before + _exchange(question, _text(row["output"], "output"), {}), row),
        _images(row),
        None,
    )


def _verl(row: Row) -> Read:
    model = row["reward_model"]
    if not isinstance(model, Mapping) or model.get("ground_truth") is None:
        raise BadRow("reward_model has no ground_truth", reprlib.repr(model))
    return _turns(row["prompt"]), _images(row), _gold(model["ground_truth"])


def _trl(row: Row) -> Read:
    """A plain-text prompt and completion become one question and one reply, as there is always a chat
    template here.
    """
    turns = _with_system(_turns(row["prompt"]), row)
    if "completion" in row:
        reply = row["completion"]
        turns += [("assistant", [_part(reply)])] if isinstance(reply, str) else _turns(reply)
    gold = next((row[key] for key in ("solution", "answer", "ground_truth") if key in row), None)
    return turns, _images(row), None if gold is None else _gold(gold)


def _problem(row: Row) -> Read:
    """A solution with a thought in it is also a reply to learn from; beside it, `answer` is the gold."""
    solution = row.get("solution")
    reply = solution if isinstance(solution, str) and "<think>" in solution else None
    return (
        _exchange(_text(row["problem"], "problem"), reply, row),
        _images(row),
        _gold(row.get("answer", solution)),
    )


def _question(row: Row) -> Read:
    question, gold = (row["question"], row["answer"]) if "question" in row else (row["query"], row["label"])
    return _exchange(_text(question, "question"), None, row), _images(row), _gold(gold)


def _has(*keys: str) -> Callable[[Row], bool]:
    return lambda row: all(key in row for key in keys)


def _speaks(name: str) -> Callable[[Row], bool]:
    """Conversations with pictures in `image`, in which `name` answers."""

    def fits(row: Row) -> bool:
        turns = row.get("conversations")
        named = isinstance(turns, list) and any(
            isinstance(turn, Mapping) and turn.get("from") == name for turn in turns
        )
        return named and ("image" in row or "accu_reward_method" in row)

    return fits


FORMATS: dict[str, tuple[Callable[[Row], bool], Callable[[Row], Read]]] = {  # the first that fits
    "verl": (_has("prompt", "reward_model"), _verl),
    "r1-onevision": (_speaks("assistant"), _conversations),
    "vlm-r1": (_speaks("gpt"), _vlm_r1),
    "sharegpt": (_has("conversations"), _conversations),
    "messages": (_has("messages"), _chat),
    "alpaca": (_has("instruction", "output"), _alpaca),
    "trl": (lambda row: "prompt" in row and "chosen" not in row, _trl),
    "easyr1": (_has("problem", "answer"), _problem),
    "r1-v": (_has("problem", "solution"), _problem),
    "question-answer": (
        lambda row: _has("question", "answer")(row) or _has("query", "label")(row),
        _question,
    ),
}
