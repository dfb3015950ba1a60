"""What a thought claims about numbers, and whether it is so: sums such as 3 + 4 = 8, comparisons such as 5 is
greater than 7.

Only what is certain is called false. A claim that its own sentence supposes or denies, or that the next words
take back, is none.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

from r1ov.reward.rules.expression import Unreadable, read
from r1ov.reward.rules.form import Form

MAX_LETTERS = 20_000  # of a thought that are searched
_LOOK_AHEAD = 80  # letters after a claim in which it may be taken back
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?%?"
_OPERATOR = r"\s*(?:[-+*/]|(?<=[\s\d)])(?<!\b0)x(?=[\s\d(]))\s*"
_TERMS = rf"-?\(?-?{_NUMBER}\)?(?:{_OPERATOR}\(?-?{_NUMBER}\)?){{0,20}}"
_CHAIN = re.compile(
    rf"(?<![\w.,:^\\{{}}]){_TERMS}(?:\s*=\s*{_TERMS}){{1,5}}(?![\w:^/\\{{}}!⁰¹²³⁴-⁹]|[.,]\d)", re.ASCII
)
_COMPARISON = re.compile(
    rf"(?<![\w./,:^-])(?P<left>-?{_NUMBER}) (?:is|are) "
    rf"(?:(?P<more>greater|larger|bigger|higher|more)|less|smaller|lower|fewer) than "
    rf"(?P<right>-?{_NUMBER})(?![\w/^%]|[.,]\d)",
    re.ASCII,
)
_SPELLINGS = {  # the plain one -> the others
    "^": r"(?<=[\w)])\*\*(?=[\w(-])",
    " ": r"\\[()\[\]]|[°$]|\*\*",
    "-": "[−–]",
    "*": r"[×·]|\\times|\\cdot",
    "/": r"÷|\\div",
}
# What makes a sum part of something else: before it an operator, "half of", a variable; after it another
# operator, "o'clock".
_BEFORE = re.compile(
    r"(?:[-+*/(√^<>≤≥≈\]}]|\b(?:of|sqrt|root|log|ln|sin|cos|tan|mod|times|plus|minus|by|over|half|twice|double|base)|\b[b-hj-zB-HJ-Z]|\d|\dx)\s*$"
)
_AFTER = re.compile(
    r"\s*(?:o'clock|[ap]\.?m\b|\(?mod\b|remainder|r ?\d|[-+*/^(√]|[nxyz]\b)|\s+\d", re.IGNORECASE
)
_SUPPOSED = re.compile(
    r"\b(?:if|suppose|assum\w+|not|never|cannot|can't|isn't|were|would|wrong\w*|false\w*|mistake\w*|claim\w*)\b",
    re.I,
)
_TAKEN_BACK = re.compile(
    r"\b(?:wait|no,|actually|wrong|incorrect|mistake|false|impossible|not (?:right|correct)"
    r"|isn't|contradict\w*)",
    re.I,
)


def false_claim(text: str) -> str | None:
    """Returns the first false sum or comparison in the text, as it stands there; None if there is none.

    Examples: "so 3 + 4 = 8" -> "3 + 4 = 8"; "10 / 3 = 3.33" -> None (rounded); "3 + 4 = 8? No, 7" -> None
        (taken back)
    """
    text = text[:MAX_LETTERS]
    for plain, spelling in _SPELLINGS.items():
        text = re.sub(spelling, plain, text)
    for begin, end in sorted((*_false_sums(text), *_false_comparisons(text))):
        sentence = re.split(r"[.;\n](?:\s|$)", text[max(0, begin - 100) : begin])[-1]
        after = text[end : end + _LOOK_AHEAD]
        if not (_SUPPOSED.search(sentence) or _TAKEN_BACK.search(after) or after.startswith("?")):
            return " ".join(text[begin:end].split())
    return None


def _false_sums(text: str) -> Iterator[tuple[int, int]]:
    for match in _CHAIN.finditer(text):
        if _BEFORE.search(text[max(0, match.start() - 20) : match.start()]) or _AFTER.match(
            text, match.end()
        ):
            continue
        sides = [side.strip() for side in match[0].split("=")]
        if re.fullmatch(rf"-?{_NUMBER}", sides[0]):  # "angle 1 = 180 - 60": the 1 is a name
            sides = sides[1:]
        if not all(_is_equal(left, right) for left, right in pairwise(sides)):
            yield match.span()


def _false_comparisons(text: str) -> Iterator[tuple[int, int]]:
    for match in _COMPARISON.finditer(text):
        left, right = _value(match["left"]), _value(match["right"])
        if left is not None and right is not None and not (left > right if match["more"] else left < right):
            yield match.span()


def _is_equal(left: str, right: str) -> bool:
    """True if equal, also when rounded or cut off to the decimals written on the right; what cannot be
    computed counts as equal.

    People write one step after the other as "10 - 4 = 6 + 2 = 8", so the first number on the right is enough;
    and percent as numbers.
    """
    first = re.match(rf"-?{_NUMBER}", right)
    sides = [right] if "/" in right or not first else [right, first[0]]
    for side in sides:
        for drop_percent in (False, True):
            a, b = _value(left, drop_percent), _value(side, drop_percent)
            if a is None or b is None:
                return True
            decimals = max((len(places) for places in re.findall(r"\.(\d+)", side)), default=0)
            unit = Fraction(1, 10**decimals) if re.search(r"[/.]", left) and "/" not in side else 0
            if a == b or abs(a - b) < unit:
                return True
    return False


def _value(text: str, drop_percent: bool = False) -> Fraction | None:
    """Returns the value, or None for what cannot be computed: brackets that do not pair, a division by zero.
    A bracket around the whole claim is left out.
    """
    if (more := text.count("(") - text.count(")")) > 0:
        text = text.removeprefix("(" * more)
    elif more < 0:
        text = text.removesuffix(")" * -more)
    text = text.replace("x", "*").replace(",", "")
    try:
        value = read(text.replace("%", "") if drop_percent else re.sub(r"([\d.]+)%", r"(\1/100)", text))
    except Unreadable:
        return None
    return value.rational if isinstance(value, Form) else None
