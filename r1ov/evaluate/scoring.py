"""The verdict on a prediction: the rewards' ladder and comparison, and around them the words and spellings
that a reader would look past.

Training is stricter: there the reward wants the answer alone, in its tag.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from r1ov.evaluate.item import Item, Prediction, Verdict
from r1ov.reward import Rules, format_reward, score_answer
from r1ov.reward.accuracy import bare, choice_of, kind_of
from r1ov.reward.rules.boxes import Frame
from r1ov.reward.rules.reading import boxed, extract_answer, plain, read_text, unwrap

REL_TOL = 1e-4
MAX_MENTION = 120  # characters of an answer in which an option's text is looked for
# "B, the blue one", "B (blue)", "option B is correct, ..."
_LETTER = (
    r"(?s)^(?i:the\s+)?(?i:(?:correct|final|best)\s+)?(?i:option|choice|answer|选项?)?\s*[(\[]?([A-Z])[)\]]?"
    r"(?:\s+is\s+(?:the\s+)?(?:correct|right|answer|best)\b.*$"
    r"|\s*(?:[,;(]|-\s)\s*(?=\S)(?![(\[]?[A-Z]\b|(?i:and|or)\b))"
)
_NEGATION = r"(?i)\b(?:not?|nor|never|neither|none|without|except|or|cannot)\b|n't\b|不|非|或"
_LEAD = (  # words up to the value: "the area is", "about", "面积是"
    r"(?i)^(?:[^\d=<>\\(\[{]*(?<![^\W\d])"
    r"(?:is|are|was|equals?|be|about|approximately|approx\.?|around|roughly|equal\s+to)\s*:?\s+"
    r"|[一-鿿]*(?<!不)(?:是|为|等于|约|选项|选择|选)\s*:?\s*)(?=\S)"
)
_LABEL = (  # "Area =", "m∠ABC =", "AB ="; not "x =" or "f(x) =", which the comparison reads itself
    r"^(?:m?\s*(?:\\angle|\\triangle|∠|△)\s*\w{1,4}|[A-Za-z][A-Za-z' ]+|[A-Za-z]_\{?\w+\}?)"
    r"\s*=\s*(?=[^=])"
)
_TIDY = {  # in this order: spelling -> the plain one
    _LEAD: "",
    _LABEL: "",
    r"°\s*T$": "°",  # a true bearing
    r"^=\s*|\s*\([A-Za-z ]+\)$|(?<!\))[;,]$": "",  # "= 12 (twelve)", "12;"
    r"(?<=[A-Za-z])\s+\^": "^",
    r"^(\d+(?:\.\d+)?)\s*(?::|\\colon|\\ratio|to)\s*(\d+(?:\.\d+)?)$": r"(\1)/(\2)",
}
_SYMBOL = (
    r"(?:[kKMmcdnpuμGh]?(?:mol|Hz|Pa|eV|Wb|cal|bar|atm|[mgsAKNJWCVFTHSLlht]|Ω|\\Omega)|min|rad|rev|r|°[CF])"
    r"(?:\^?-?\d)?\)?"
)
# a number and its unit, if any, such as kg/m^3, N\cdot m or J/(kg*K); or a Chinese one ("7个"), unless it
# multiplies ("7万"); no decade
_QUANTITY = (
    r"(?!(?:19|20)\d0s$)([-+]?\d[\d,.]*(?:/\d+)?(?:\s*(?:\\times|\*)\s*10\s*\^\s*-?\d+)?)"
    rf"\s*({_SYMBOL}(?:(?:\s*(?:\\cdot|\\times|[*/])\s*\(?|\s+){_SYMBOL})*"
    r"|(?![十百千万亿半倍分])[一-鿿]{1,6})?"
)
MAX_QUANTITY = 60  # characters


def score(item: Item, prediction: Prediction) -> Verdict:
    """Returns the verdict on one answer.

    An item or a prediction with an error scores 0. A reply cut off by the length limit counts only if its
    answer has already ended.
    """
    if item.error or prediction.error or prediction.finish_reason == "error":
        return Verdict(item, prediction, 0.0, None, "error", 0.0)
    text = prediction.text.replace("\f", r"\f")  # a "\frac" that was read as an escape
    answer, method = extract_answer(text, "auto", prediction.finish_reason != "length")
    worth = 0.0
    if answer:
        of = replace(item, box_unit=item.box_unit or prediction.box_unit)
        answer, worth = read_answer(of, answer, prediction.resized)
    worth = worth if item.answer.strip() else 0.0  # a split without golds
    return Verdict(item, prediction, worth, answer, method, format_reward(prediction.text))


def read_answer(item: Item, found: str, resized: Sequence[int] | None) -> tuple[str, float]:
    """Returns the answer in its shortest form (a letter, or the value without words) and its score.

    Args: resized: (width, height) of the image as the model saw it: its boxes are in these pixels, the gold
        ones in the image's own.
    """
    texts, (inner, method) = [found], extract_answer(found, "auto")
    if "," not in found:
        left, *right = re.split(r"\\approx(?![a-z])|≈", found, maxsplit=1)
        texts += right
        if found.count("=") > 1:
            texts.append(found.rpartition("=")[2])  # a chain: x = 3 + 4 = 7
    if inner and method in ("phrase", "boxed") and len(set(boxed(found))) < 2:
        texts.append(inner)
    kind = item.kind or kind_of(item.answer)
    if kind == "mcq":
        rules = Rules(choices=tuple(item.choices))
        if gold := choice_of(item.answer, rules):
            letter = next((letter for text in texts if (letter := _option(text, rules))), None)
            return (letter or found), float(letter == gold)
        kind = "text"  # a gold that is no option: "BD"
    if kind in ("bbox", "boxes"):
        frame = Frame.beside(item.images, resized, item.box_unit) if resized and item.images else None
        return found, score_answer(found, item.answer, kind, frame=frame) or 0.0
    short = tidy(texts[-1], item)
    if "," not in found:
        texts.append(left)  # 2√2 ≈ 2.83
    spelled = dict.fromkeys((*texts, *(tidy(text, item) for text in texts)))
    return short, max(_score_free(item, text, kind) for text in spelled)


def tidy(text: str, item: Item) -> str:
    """Returns the value without the words or label before it, in the spelling that the comparison reads."""
    text = unwrap(plain(text)) if "\\" not in text else plain(text).strip(" .")
    for spelling, plain_one in _TIDY.items():
        text = re.sub(spelling, plain_one, text)
    if text.endswith("%") and re.search(r"(?i)%|percent", item.question):
        text = text.removesuffix("%").removesuffix("\\").strip()
    if item.kind == "tuple" and "," in text and text[0] not in "([{":
        text = f"[{text}]"
    return text


def _score_free(item: Item, answer: str, kind: str) -> float:
    """Returns 1.0 for the gold's own text, spelling apart; else the comparison's score."""
    golds = [item.answer, tidy(item.answer, item)]
    if squeezed(answer) in map(squeezed, golds if kind in ("math", "text") else golds[:1]):
        return 1.0
    pairs = [(answer, gold) for gold in golds]
    if kind in ("number", "math", "text"):
        (value, unit), (right, own) = map(_quantity, (answer, item.answer))
        if value and right and bool(unit) != bool(own):  # a unit on one side only
            pairs.append((value, right))
    rules = Rules(rel_tol=REL_TOL, round_to_gold=True, precision=0 if item.is_integer else item.precision)
    return max(score_answer(one, other, kind, rules) or 0.0 for one, other in dict.fromkeys(pairs))


def _quantity(text: str) -> Sequence[str]:
    """Returns (number, unit), each "" if there is none."""
    text = re.sub(r"\\(?:text|mathrm|mbox|rm)(?![a-z])|[{}]", "", plain(text)).strip(" .")
    match = re.fullmatch(_QUANTITY, text) if len(text) <= MAX_QUANTITY else None
    return match.groups("") if match else ("", "")


def squeezed(text: str) -> str:
    """Returns the text without differences of looks: spaces, case, articles, LaTeX's text commands."""
    text = unwrap(plain(text))
    if not re.search(r"[\d\\]", text):  # words: "5 mW" is not "5 MW"
        text = read_text(text) or ""
    return bare(text)


def _option(text: str, rules: Rules) -> str | None:
    """Returns the option that the text picks: as the rewards read it; by a letter with words after it; by the
    only option it mentions.
    """
    short = unwrap(plain(text))
    lettered = re.sub(_LETTER, r"\1. ", short, count=1)
    return choice_of(text, rules) or choice_of(lettered, rules) or _mentioned(short, rules)


def _mentioned(text: str, rules: Rules) -> str | None:
    """Returns the only option whose text is in a short answer that denies nothing; one inside another
    option's mention does not count.
    """
    if len(text) > MAX_MENTION or re.search(_NEGATION, text):
        return None
    text = f" {read_text(text) or ''} "
    options = {read_text(choice) or "" for choice in rules.choices}
    hits = [
        one
        for one in options
        if len(one) > 1 and re.search(rf"(?<![\w.+*/^\\-]){re.escape(one)}(?![\w.]|\s*[-+*/^=])", text)
    ]
    hits = [one for one in hits if sum(one in other for other in hits) == 1]
    return choice_of(hits[0], rules) if len(hits) == 1 else None
