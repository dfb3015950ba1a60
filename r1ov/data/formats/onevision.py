"""The cleaner for R1-Onevision's own data, whose replies come in several layouts: all to `<think>...</think>`
and `<answer>...</answer>`.

The layouts, as users of the published set describe them: the answer inside the thought; a thought, then a
short answer; a thought and no answer; a thought, then an answer that reasons again. Many replies also end in
a stray `</think>`, and remarks of the language model that rewrote the thoughts ("revised CoT", "no
visualization needed") were left in. A reply is kept, repaired (each repair has a name) or dropped for a
reason; nothing is made up: where no answer can be found, or two answers disagree, the row goes.
"""

import re
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from r1ov.common.files import split_reply
from r1ov.data.formats.records import BadRow, Record, text_of
from r1ov.reward import accuracy_reward
from r1ov.reward.accuracy import kind_of
from r1ov.reward.rules.reading import boxed, stated

MAX_ANSWER_WORDS, MAX_ANSWER_LETTERS = 20, 200  # of an answer that is not a description
MAX_REMARK_WORDS = 15  # a longer line with a remark in it is also a step of the thought
# Of a thought's end, in which an answer is looked for: earlier ones may have been given up again.
_CONCLUSION_LETTERS = 300
_NAMED_BEFORE = (
    r"(?i)(?<!\S)(\S{1,40})\s+is\s+the\s+(?:correct|right|final|best)\s+(?:answer|option|choice)\b"
)
REMARK = (
    r"(?i)\b(?:revised|rewritten|updated|original)\s+(?:cot\b|chain[- ]of[- ]thought)"
    r"|\bno\s+(?:\w+\s+)?visuali[sz]ations?\s+(?:is |are )?(?:needed|required|necessary)"
)
_IS_CHOICE = r"(?im)\boption letter\b|\bchoices:|\(A\)|^[ \t]*A[).:]\s"
_IS_OPEN = r"(?i)\b(?:describe|summari[sz]e|summary|caption|generate)\b"
_LETTER = r"\(?([A-Ha-h])(?:[).:,]|$)"
_ANSWER_LINE = r"(?i)\n[*_# \t]*(?:the\s+)?(?:final\s+|correct\s+)?answer[*_\s]*:[^\n]*\Z"
_MISSING = {(0, 0): "think tags", (0, 1): "<think>", (1, 0): "</think>"}
dropped = partial(BadRow, dropped=True)


class Cleaned(NamedTuple):
    thought: str
    answer: str
    repairs: tuple[str, ...]  # empty: both tags were there and nothing else

    @property
    def text(self) -> str:
        return f"<think>{self.thought}</think>\n<answer>{self.answer}</answer>"


def clean(record: Record) -> Record:
    """The record with its reply in order and the reply's answer as its solution; as it is where it has no
    reply.

    Raises:  BadRow.
    """
    if record.reply is None:
        return record
    cleaned = clean_reply(text_of(record.prompt[-1]["content"]), record.reply)
    messages = [*record.prompt, {**record.messages[-1], "content": cleaned.text}]
    return replace(record, messages=messages, solution=cleaned.answer, repairs=cleaned.repairs)


def clean_reply(question: str, reply: str) -> Cleaned:
    """Thought and answer of a reply in any of the layouts.

    Examples:
        "<think>2 + 2 = 4</think> Answer: 4" -> thought "2 + 2 = 4", answer "4"
        "<think>Both angles are 45. The answer is B.</think>" -> the whole as thought, answer "B"
    Raises:  BadRow.
    """
    repairs = []  # their names
    thought, tail = _split(reply.strip(), repairs)
    thought, tail = _without_remarks(thought, repairs), _without_remarks(tail, repairs)
    concluded = _named(question, thought[-_CONCLUSION_LETTERS:])
    if tail:
        answer, reasons_again = _answer_after(question, tail)
        if reasons_again or not tail.startswith("<answer>"):
            repairs.append("reasoning after the thought left out" if reasons_again else "answer tags added")
        _agree(answer, concluded)
    else:
        if concluded is None:
            raise dropped("a thought without an answer")
        answer, thought = concluded, re.sub(_ANSWER_LINE, "", "\n" + thought).strip()
        repairs.append("answer taken from the thought's end")
    if not thought:
        raise dropped("the thought is empty")
    if any(tag in thought + answer for tag in ("<think>", "</think>", "<answer>", "</answer>")):
        raise dropped("the answer tags do not pair")
    return Cleaned(thought, answer, tuple(repairs))


def _split(text: str, repairs: list[str]) -> tuple[str, str]:
    """(thought, what comes after it); an `<answer>` block always belongs to what comes after."""
    if text.count("<think>") == 1 and text.count("</think>") == 2 and text.endswith("</think>"):
        text = text.removesuffix("</think>").rstrip()
        repairs.append("stray </think> at the end left out")
    tags = text.count("<think>"), text.count("</think>")
    if max(tags) > 1:
        raise dropped("the think tags do not pair")
    before, _, rest = text.rpartition("<think>")
    if before.strip():
        raise dropped("text before the thought, or its tags the wrong way round")
    thought, _, tail = rest.partition("</think>")
    if tags != (1, 1):
        repairs.append(f"{_MISSING[tags]} added")
    if "<answer>" in thought:
        thought, _, moved = thought.partition("<answer>")
        if tail.strip():
            raise dropped("answers inside and after the thought")
        tail = "<answer>" + moved
        if any(tags):
            repairs.append("answer moved out of the thought")
    return thought.strip(), tail.strip()


def _without_remarks(text: str, repairs: list[str]) -> str:
    if not re.search(REMARK, text):
        return text
    lines = text.split("\n")
    if any(re.search(REMARK, line) and len(line.split()) > MAX_REMARK_WORDS for line in lines):
        raise dropped("a remark of the rewriting model within the reasoning")
    if "remarks of the rewriting model left out" not in repairs:
        repairs.append("remarks of the rewriting model left out")
    return "\n".join(line for line in lines if not re.search(REMARK, line)).strip()


def _answer_after(question: str, tail: str) -> tuple[str, bool]:
    """(the answer, is there a second chain of reasoning around it?) of what comes after the thought."""
    if "<answer>" in tail or "</answer>" in tail:
        answer = split_reply(tail)[1]
        if not answer:
            raise dropped("the answer tags do not pair")
        return answer, not (tail.startswith("<answer>") and tail.endswith("</answer>"))
    if re.search(_IS_OPEN, question) and not re.search(_IS_CHOICE, question):
        return re.sub(r"(?i)\A[*_#\s]*(?:final\s+)?answer[*_\s]*:[*_\s]*", "", tail), False
    answer = _named(question, tail)
    if answer is None and "\n" not in tail:
        answer = _tidy(question, tail)
        # Of several statements, only a choice's letter is known to be the answer: "B. 45 degrees".
        if len(_statements(tail)) > 1 and not re.fullmatch("[A-H]", answer or ""):
            answer = None
    if answer is None:
        raise dropped("reasoning after the thought that names no answer")
    return answer, len(tail.split()) > len(answer.split()) + MAX_ANSWER_WORDS


def _named(question: str, text: str) -> str | None:
    """The answer in the last box, or else before the last "is the correct answer", or else after the last
    phrase such as "the answer is".
    """
    place, answer, _ = stated(text)
    named = boxed(text) or re.findall(_NAMED_BEFORE, text) or ([answer] if place >= 0 else [])
    return _tidy(question, named[-1]) if named else None


def _tidy(question: str, text: str) -> str | None:
    """The first statement of the text, bare; of a choice its letter; None if there is none, or it is too long
    for an answer.
    """
    line = (_statements(text) or [""])[0]
    line = re.sub(r"\A\\text\{([^{}]*)\}\Z", r"\1", line)
    line = re.sub(r"(?i)\A(?:option|choice)\s+", "", line)
    if not line or len(line.split()) > MAX_ANSWER_WORDS or len(line) > MAX_ANSWER_LETTERS:
        return None
    letter = re.match(_LETTER, line) if re.search(_IS_CHOICE, question) else None
    return letter[1].upper() if letter else line


def _statements(text: str) -> list[str]:
    """What the text's first line says, bare, cut at full stops, semicolons and reasons."""
    line = " ".join(text.strip().partition("\n")[0].split())
    parts = re.split(r"(?i)\.(?: |$)|;|,? (?:because|since)\b| is (?:the )?(?:correct|right)\b", line)
    return [bare for part in parts if (bare := part.strip(" *_`\"'$,:"))]


def _agree(answer: str, concluded: str | None) -> None:
    """Raises BadRow where both are letters, numbers, or yes and no, and differ."""
    if concluded is None or len(answer) > MAX_ANSWER_LETTERS:
        return
    kind = kind_of(answer)
    if (
        kind in ("mcq", "yes_no", "number")
        and kind_of(concluded) == kind
        and accuracy_reward(f"<think>-</think><answer>{concluded}</answer>", answer, kind) == 0
    ):
        raise dropped("the thought ends in another answer")
