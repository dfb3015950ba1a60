"""Our own rules: what is wrong with a reply that needs no judge to see, such as a wrong answer, or talk of a
caption where an image should be looked at. Each has a name, under which the report counts it.
"""

import re
from typing import NamedTuple

from r1ov.common.files import split_reply
from r1ov.data.formats.onevision import REMARK, clean_reply
from r1ov.data.formats.records import BadRow
from r1ov.formalize.arithmetic import false_claim
from r1ov.reward import format_reward, score_answer
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

# What the writer of a thought must not say, as the prompts list it.
GIVE_AWAYS = (
    "based on the caption",
    "according to the description",
    "the description says",
    "as described",
    "from the given record",
    "the provided bounding boxes",
    "the OCR text",
    "I cannot see the picture",
    "let me imagine the picture",
)

# The texts are searched with straight apostrophes and single spaces.
_PICTURE = r"(?:image|picture|photo|figure|diagram|chart|scene)"
_KIND = (
    rf"(?:(?:provided|given|above|following|text|textual|formal|structured|detailed|{_PICTURE}(?:'s)?)[ -])*"
)
_SOURCE = rf"(?:the|this|that|your|its|an?) {_KIND}(?P<noun>caption|description)s?\b"
# A caption or description that is itself in the picture: "the caption under the photo".
_IN_THE_PICTURE = (
    r"(?! (?:under|below|beneath|above|beside|next to|printed|written|at the|on the|in the|of the)\b)"
)
_VERB = (
    "says?|states?|mentions?|indicates?|notes?|lists?|tells?|describes?|specifies|provides?|gives?|confirms?|suggests?|implies"
    "|contains?|includes?"
)
_DENIED = r"(?:does|did)(?:n't| not) (?:say|state|mention|specify|include|tell)"
_SAYS = rf"(?:(?:also|clearly|explicitly|only|just) )?(?:{_VERB}|{_DENIED})\b"
_CAPTION_TALK = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b(?:based on|according to|as per|given|from|in|using|(?:re-?)?reading|by) "
        rf"{_SOURCE}{_IN_THE_PICTURE}",
        rf"\b{_SOURCE}{_IN_THE_PICTURE} {_SAYS}",
        r"\b(?:based on|according to|from|in) the (?:(?:given|provided) )?(?P<noun>record)\b",
        r"\bthe (?P<noun>record) (?:says|states|lists|mentions)\b",
        rf"\bas (?:described|captioned)(?=[,.;:]| in the {_KIND}(?:caption|description|{_PICTURE}))",
        r"\bas (?:stated|mentioned|listed|noted|given|provided) in the "
        r"(?P<noun>caption|description|JSON|CSV|metadata)\b",
        r"\b(?:the|this|provided|given) (?P<noun>JSON|CSV|Mermaid|PlantUML|SPICE|netlist|metadata)\b",
        r"\b(?:provided|given) (?:bounding )?(?P<noun>box)es\b"
        r"|\bbounding (?P<other>box)es (?:given|provided|listed)\b",
        r"\b(?:the|from|by) (?P<noun>OCR)\b",
        r"\b(?:can't|cannot|can not|unable to) (?:(?:actually|directly) )?(?:see|view|access|look at) "
        rf"(?:the|this|an) (?:actual )?{_PICTURE}\b(?!'s| (?:of|on|frame|hanging)\b)",
        r"\b(?:without (?:seeing|access to)|(?:don't have|no) access to) "
        rf"(?:the|this|an|any) (?:actual )?{_PICTURE}\b",
        rf"\b(?:imagin(?:e|ing)|visuali[sz](?:e|ing)) (?:the|this|what the) {_PICTURE}\b",
        r"\bas an? (?:AI|(?:text-only |large )?language model)\b",
    )
]
_LEFT_OVER = re.compile(
    r"\bhere(?:'s| is) (?:the|a|my|your) (?:\w+ )?(?:revised|rewritten|rewrite|revision|version)\b"
    r"|\b(?:the|this|my) (?:revised|rewritten) (?:version|reasoning|thought|thinking|chain)\b"
    r"|^[^\w\n]{0,20}(?:revised|rewritten) (?:version|reasoning|thought|chain)\b"
    r"|\b(?:as (?:instructed|requested)|per (?:your|the) instructions?|banned phrases?|role[- ]play)\b"
    r"|\b(?:removed|avoided|replaced) (?:all |any )?(?:the )?(?:references?|mentions?) (?:to|of)\b"
    r"|<</?\w+ [0-9a-f]{12}>>|\$(?:question|draft|thought|description)\b",
    re.IGNORECASE | re.MULTILINE,
)


class Fault(NamedTuple):
    """rule: its name. detail: what was found."""

    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


def first_fault(question: str, reply: str, gold: str | None, kind: str | None = None) -> Fault | None:
    """Returns the first rule, in this order, that the reply breaks: form, answer, left-overs, caption talk,
    contradictions.

    Args:
        reply: `<think>...</think>` and `<answer>...</answer>`. gold, kind: as r1ov.reward compares them.
    """
    try:
        repairs = ", ".join(clean_reply(question, reply).repairs)
        unclean = repairs and f"needs a repair: {repairs}"
    except BadRow as error:
        unclean = str(error)
    if format_reward(reply) != 1:
        return Fault("malformed", unclean or "text around the thought and the answer")
    thought, answer = split_reply(reply)
    if fault := answer_fault(answer, gold, kind):
        return fault
    for rule, look in {"prompt left-over": left_over, "caption talk": caption_talk}.items():
        if found := look(question, f"{thought}\n{answer}"):
            return Fault(rule, repr(found[:80]))
    if claim := false_claim(thought):
        return Fault("contradiction", f"{claim!r} is not so")
    unclean = unclean or _other_count(question, thought, answer)
    return Fault("contradiction", unclean) if unclean else None


def answer_fault(answer: str | None, gold: str | None, kind: str | None = None) -> Fault | None:
    """Returns None if the answer is the gold one, and nothing but an answer."""
    answer, gold = answer or "", gold or ""
    if not gold.strip():
        return Fault("no gold answer", "there is nothing to check the answer against")
    score = score_answer(answer, gold, kind)
    if score is None:
        return Fault("no gold answer", f"{gold[:60]!r} cannot be read as {kind or 'an answer'}")
    if score < 1:
        return Fault("wrong answer", f"{answer[:60]!r}, the gold answer is {gold[:60]!r}")
    if len(answer.split()) > MAX_ANSWER_WORDS + len(gold.split()):
        return Fault("long answer", "the answer reasons again")
    return None


def caption_talk(question: str, text: str) -> str | None:
    """Returns the first phrase that speaks of a description instead of the image; a noun that the question
    itself uses is no give-away.
    """
    text, asked = " ".join(_plain(text).split()), question.lower()
    for pattern in _CAPTION_TALK:
        for found in pattern.finditer(text):
            if not any(noun and noun.lower() in asked for noun in found.groups()):
                return found[0]
    return None


def left_over(question: str, text: str) -> str | None:
    """Returns the first remark of a model about its own task, or mark of our prompts, that the question has
    not.
    """
    text = _plain(text)
    found = REMARK.search(text) or _LEFT_OVER.search(text)
    return found[0] if found and found[0].lower() not in question.lower() else None


def _plain(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.replace("’", "'").splitlines())


def _other_count(question: str, thought: str, answer: str) -> str | None:
    """Tells of a last count at the thought's end that is not the answer."""
    number = read_number(answer)
    if not re.search(r"\b(how many|count|number of)\b", question, re.I) or not number:
        return None
    ending = " ".join(" ".join(re.split(r"(?<=[.!?])\s+", thought[-ENDING:].strip())[-2:]).split())
    stated = [_number(found["after"] or found["before"]) for found in _COUNTED.finditer(ending)]
    named = {_number(word) for word in re.findall(r"[\w.,-]+", ending)}
    if number.value.denominator > 1 or not stated or stated[-1] is None or number.value in named:
        return None
    return f"the thought counts {stated[-1]}, the answer is {answer[:60]!r}"


def _number(word: str) -> int | None:
    word = word.lower().strip(".,-").replace(",", "")
    if word in (words := _WORDS.split()):
        return words.index(word)
    return int(word) if re.fullmatch(r"[0-9]{1,12}", word) else None
