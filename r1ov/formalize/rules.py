"""Our own rules: what is wrong with a reply that needs no judge to see. Each has a name, under which the
report counts it.
"""

import re
from typing import NamedTuple

from r1ov.common.text import split_reply
from r1ov.data.formats.onevision import clean_reply
from r1ov.data.formats.records import BadRow
from r1ov.formalize.arithmetic import false_claim
from r1ov.formalize.phrases import caption_talk, left_over
from r1ov.reward import format_reward, score_answer
from r1ov.reward.format import TAGS
from r1ov.reward.rules.numbers import read_number

MAX_ANSWER_WORDS = 20  # more than the gold answer has
ENDING = 600  # letters of a thought's end, in which a count is its last word
_COUNTED = re.compile(
    r"\b(?:that makes|makes? a total of|total (?:(?:count|number) )?(?:is|of|:|=)|I count"
    r"|in total,? there are|the count is|(?:so|thus|therefore|hence),? there (?:is|are)) (?:exactly )?"
    r"(?P<after>[\w,.-]+)"
    r"|(?P<before>[\w,.-]+)(?: \w+){0,2} (?:in total|altogether|in all)\b",
    re.IGNORECASE,
)
_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"


class Fault(NamedTuple):
    """rule: its name. detail: what was found."""

    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


def first_fault(question: str, reply: str, gold: str | None, kind: str | None = None) -> Fault | None:
    """The first rule, in this order, that the reply breaks: form, answer, left-overs, caption talk,
    contradictions.

    Args:
        reply: `<think>...</think>` and `<answer>...</answer>`. gold, kind: as r1ov.reward compares them.
    """
    if fault := form_fault(reply):
        return fault
    thought, answer = split_reply(reply)
    if fault := answer_fault(answer, gold, kind):
        return fault
    for rule, look in {"prompt left-over": left_over, "caption talk": caption_talk}.items():
        if found := look(question, f"{thought}\n{answer}"):
            return Fault(rule, repr(found[:80]))
    return contradiction(question, reply, thought, answer)


def form_fault(reply: str) -> Fault | None:
    """Names the fault of a reply in another layout than ours, as the published data have them."""
    if format_reward(reply) == 1:
        return None
    text = reply.strip()
    counts = [text.count(tag) for tag in TAGS]
    inside, _, tail = text.partition("</think>")
    tail = tail.removesuffix("</think>").strip()
    answer = tail.partition("<answer>")[2].partition("</answer>")[0].strip()
    pairs = counts[2:] == [1, 1]
    faults = {
        "the thought's tags are missing or do not pair": counts[0] != 1
        or counts[1] < 1
        or not text.startswith("<think>"),
        "the thought is empty": not inside.removeprefix("<think>").strip(),
        "the answer stands inside the thought": "<answer>" in inside,
        "a thought and no answer": not tail or (pairs and not answer),
        "a stray </think>": counts[1] > 1,
        "the answer's tags do not pair": not pairs and counts[2:] != [0, 0],
        "reasoning after the thought": pairs or len(tail.split()) > MAX_ANSWER_WORDS,
        "the answer has no tags": True,
    }
    return Fault("malformed", next(fault for fault, is_so in faults.items() if is_so))


def answer_fault(answer: str | None, gold: str | None, kind: str | None = None) -> Fault | None:
    """None if the answer is the gold one, and nothing but an answer."""
    if not (gold or "").strip():
        return Fault("no gold answer", "there is nothing to check the answer against")
    score = score_answer(answer, gold, kind)
    if score is None:
        return Fault("no gold answer", f"{gold[:60]!r} cannot be read as {kind or 'an answer'}")
    if score < 1:
        return Fault("wrong answer", f"{(answer or '')[:60]!r}, the gold answer is {gold[:60]!r}")
    if len((answer or "").split()) > MAX_ANSWER_WORDS + len(gold.split()):
        return Fault("long answer", "the answer reasons again")
    return None


def contradiction(question: str, reply: str, thought: str, answer: str) -> Fault | None:
    """A false sum or comparison, an end of the thought that names another answer, a last count that the
    answer is not.
    """
    if claim := false_claim(thought):
        return Fault("contradiction", f"{claim!r} is not so")
    try:
        clean_reply(question, reply)
    except BadRow as error:
        return Fault("contradiction", str(error))
    number = read_number(answer)
    is_count = re.search(r"\b(how many|count|number of)\b", question, re.IGNORECASE)
    if is_count and number and number.value.denominator == 1:
        ending = " ".join(" ".join(re.split(r"(?<=[.!?])\s+", thought[-ENDING:].strip())[-2:]).split())
        stated = [_number(found["after"] or found["before"]) for found in _COUNTED.finditer(ending)]
        named = {_number(word) for word in re.findall(r"[\w.,-]+", ending)}
        if stated and stated[-1] is not None and number.value not in named:
            return Fault("contradiction", f"the thought counts {stated[-1]}, the answer is {answer[:60]!r}")
    return None


def _number(word: str) -> int | None:
    word = word.lower().strip(".,-").replace(",", "")
    if word in (words := _WORDS.split()):
        return words.index(word)
    return int(word) if re.fullmatch(r"[0-9]{1,12}", word) else None
