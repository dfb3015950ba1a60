"""Our own rules: what is wrong with a reply that needs no judge to see, such as a wrong answer, a false sum,
or talk of a caption where an image should be looked at. A fault begins with the rule's name, under which the
report counts it.

Only what is certain is a fault: a sum that its own sentence supposes or denies, or that the next words take
back, is none, nor is a phrase that the question itself uses.
"""

import re
from fractions import Fraction
from itertools import pairwise

from r1ov.common.files import split_reply
from r1ov.data.formats.onevision import REMARK, clean_reply
from r1ov.data.formats.records import BadRow
from r1ov.reward import format_reward, score_answer
from r1ov.reward.rules.expression import Unreadable, read
from r1ov.reward.rules.form import Form

MAX_ANSWER_WORDS = 20  # more than the gold answer has
MAX_LETTERS = 20_000  # of a thought, in which sums are looked for

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

# The texts are searched with straight apostrophes, and a space stands for a line's end as well. A group is
# the word that must not be the question's own.
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
    "says?|states?|mentions?|indicates?|notes?|lists?|tells?|describes?|specifies|provides?|gives?|confirms?"
    "|suggests?|implies|contains?|includes?"
)
_DENIED = r"(?:does|did)(?:n't| not) (?:say|state|mention|specify|include|tell)"
_SAYS = rf"(?:(?:also|clearly|explicitly|only|just) )?(?:{_VERB}|{_DENIED})\b"
_CAPTION_TALK = (
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
_LEFT_OVER = (
    r"(?im)\bhere(?:'s| is) (?:the|a|my|your) (?:\w+ )?(?:revised|rewritten|rewrite|revision|version)\b"
    r"|\b(?:the|this|my) (?:revised|rewritten) (?:version|reasoning|thought|thinking|chain)\b"
    r"|^[^\w\n]{0,20}(?:revised|rewritten) (?:version|reasoning|thought|chain)\b"
    r"|\b(?:as (?:instructed|requested)|per (?:your|the) instructions?|banned phrases?|role[- ]play)\b"
    r"|\b(?:removed|avoided|replaced) (?:all |any )?(?:the )?(?:references?|mentions?) (?:to|of)\b"
    r"|<</?\w+ [0-9a-f]{12}>>|\$(?:question|draft|thought|description)\b"
)
TELLTALES = {
    "prompt left-over": [REMARK, _LEFT_OVER],
    "caption talk": ["(?i)" + pattern.replace(" ", r"\s") for pattern in _CAPTION_TALK],
}

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?%?"
_OPERATOR = r"\s*(?:[-+*/]|(?<=[\s\d)])(?<!\b0)x(?=[\s\d(]))\s*"
_TERMS = rf"-?\(?-?{_NUMBER}\)?(?:{_OPERATOR}\(?-?{_NUMBER}\)?){{0,20}}"
_CHAIN = rf"(?a)(?<![\w.,:^\\{{}}]){_TERMS}(?:\s*=\s*{_TERMS}){{1,5}}(?![\w:^/\\{{}}!⁰¹²³⁴-⁹]|[.,]\d)"
_SPELLINGS = {  # the plain one -> the others
    "^": r"(?<=[\w)])\*\*(?=[\w(-])",
    " ": r"\\[()\[\]]|[°$]|\*\*",
    "-": "[−–]",
    "*": r"[×·]|\\times|\\cdot",
    "/": r"÷|\\div",
}
# What makes a sum part of something else, or no claim: before it an operator, "half of", a variable, or words
# that suppose or deny it; after it another operator, "o'clock", or words that take it back.
_BEFORE = (
    r"(?:[-+*/(√^<>≤≥≈\]}]"
    r"|\b(?:of|sqrt|root|log|ln|sin|cos|tan|mod|times|plus|minus|by|over|half|twice|double|base)"
    r"|\b[b-hj-zB-HJ-Z]|\d|\dx)\s*$"
    r"|(?i:\b(?:if|suppose|assum\w+|not|never|cannot|can't|isn't|were|would|wrong\w*|false\w*|mistake\w*"
    r"|claim\w*)\b)"
)
_AFTER = (
    r"(?is)\s*(?:o'clock|[ap]\.?m\b|\(?mod\b|remainder|r ?\d|[-+*/^(√]|[nxyz]\b)|\s+\d"
    r"|\?|.*\b(?:wait|no,|actually|wrong|incorrect|mistake|false|impossible|not (?:right|correct)"
    r"|isn't|contradict\w*)"
)


def first_fault(question: str, reply: str, gold: str | None, kind: str | None = None) -> str | None:
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
        return f"malformed: {unclean or 'text around the thought and the answer'}"
    thought, answer = split_reply(reply)
    fault = answer_fault(answer, gold, kind) or telltale(question, f"{thought}\n{answer}")
    if fault:
        return fault
    contradiction = false_sum(thought) or unclean
    return f"contradiction: {contradiction}" if contradiction else None


def answer_fault(answer: str, gold: str | None, kind: str | None) -> str | None:
    """Returns None if the answer is the gold one, and nothing but an answer."""
    gold = gold or ""
    score = score_answer(answer, gold, kind) if gold.strip() else None
    if score is None:
        return f"no gold answer: {gold[:60]!r} cannot be read as {kind or 'an answer'}"
    if score < 1:
        return f"wrong answer: {answer[:60]!r}, the gold answer is {gold[:60]!r}"
    if len(answer.split()) > MAX_ANSWER_WORDS + len(gold.split()):
        return "long answer: the answer reasons again"
    return None


def telltale(question: str, text: str) -> str | None:
    """Returns the first phrase that speaks of a description instead of the image, or of the writer's own
    task.
    """
    asked = question.lower()
    text = "\n".join(" ".join(line.split()) for line in text.replace("’", "'").splitlines())
    for rule, patterns in TELLTALES.items():
        for pattern in patterns:
            for found in re.finditer(pattern, text):
                words = [word for word in found.groups() if word] or [found[0]]
                if not any(word.lower() in asked for word in words):
                    return f"{rule}: {' '.join(found[0].split())[:80]!r}"
    return None


def false_sum(text: str) -> str | None:
    """Returns the first false sum in the text, as it stands there; None if there is none.

    Examples: "so 3 + 4 = 8" -> "'3 + 4 = 8' is not so"; "10 / 3 = 3.33" -> None (rounded); "3 + 4 = 8? No, 7"
        -> None (taken back)
    """
    text = text[:MAX_LETTERS]
    for plain, spelling in _SPELLINGS.items():
        text = re.sub(spelling, plain, text)
    for match in re.finditer(_CHAIN, text):
        begin, end = match.span()
        before = re.split(r"[.;\n](?:\s|$)", text[max(0, begin - 100) : begin])[-1]
        if re.search(_BEFORE, before) or re.match(_AFTER, text[end : end + 80]):
            continue
        sides = [side.strip() for side in match[0].split("=")]
        if re.fullmatch(rf"-?{_NUMBER}", sides[0]):  # "angle 1 = 180 - 60": the 1 is a name
            sides = sides[1:]
        if not all(_may_be_equal(left, right) for left, right in pairwise(sides)):
            return f"{' '.join(match[0].split())!r} is not so"
    return None


def _may_be_equal(left: str, right: str) -> bool:
    """True if equal, also when rounded or cut off to the decimals written on the right; or if one of them
    cannot be computed.

    People write one step after the other as "10 - 4 = 6 + 2 = 8", so the first number on the right is enough;
    and percent as numbers.
    """
    first = re.match(rf"-?{_NUMBER}", right)
    sides = [right] if "/" in right or not first else [right, first[0]]
    for side in sides:
        for percent in ("/100", ""):
            a, b = _value(left, percent), _value(side, percent)
            if a is None or b is None:
                return True
            decimals = max((len(places) for places in re.findall(r"\.(\d+)", side)), default=0)
            unit = Fraction(1, 10**decimals) if re.search(r"[/.]", left) and "/" not in side else 0
            if a == b or abs(a - b) < unit:
                return True
    return False


def _value(text: str, percent: str) -> Fraction | None:
    """Returns the value, or None for what cannot be computed: brackets that do not pair, a division by zero.

    Args: percent: what stands for a percent sign.
    """
    text = text.replace("x", "*").replace(",", "")
    try:
        value = read(re.sub(r"([\d.]+)%", rf"(\1{percent})", text))
    except Unreadable:
        return None
    return value.rational if isinstance(value, Form) else None
