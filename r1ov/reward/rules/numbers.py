"""Numbers as people write them, exactly: integers, decimals, fractions, mixed and scientific numbers,
percent, currency, units.
"""

import re
from fractions import Fraction
from typing import Literal, NamedTuple

from r1ov.reward.rules.reading import AnswerFrom, plain, unwrap

MAX_DIGITS = 100
MAX_EXPONENT = 300  # of ten
FEW_PLACES = 4
NO_PLACE = 1_000  # as a number of decimal places: inexact, yet with no last place

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_POWER = (
    r"(?:\s*[eE](?P<e>[-+]?\d{1,4})"
    r"|\s*(?:\\times|\\cdot|\*|x)\s*10\s*(?:\^|\*\*)\s*\{?\s*(?P<ten>[-+]?\d{1,4})\s*\}?)"
)
_NUMBER = re.compile(
    r"(?:\\?[A-Za-z]\w?\s*=\s*)?(?P<sign>[-+]?)\s*[$€£¥₹]?\s*(?P<minus>-?)"
    rf"(?:(?:(?P<whole>\d+)(?:\s+(?=\d)|\s*(?=\\)))?(?:(?P<top>{_DIGITS})\s*/\s*(?P<bottom>{_DIGITS})"
    rf"|\\frac\s*\{{\s*(?P<tex_top>-?{_DIGITS})\s*\}}\s*\{{\s*(?P<tex_bottom>-?{_DIGITS})\s*\}})"
    rf"|(?P<digits>{_DIGITS}){_POWER}?)"
    r"(?!M\b|(?<=\b(?:19|20)\d0)s\b)"  # 5M are millions, and the 1990s no seconds
)
_UNIT = re.compile(  # Chinese: not the "万" of "7万", nor the "或8" of "7或8"
    r"(?P<power_word>(?:square|sq\.?|cubic)\s+|平方|立方)?(?P<name>[A-Za-zμΩ]+\.?(?:\s*/\s*[A-Za-z]+)?"
    r"|(?![十百万亿半倍]|千(?![米克])|分(?!钟)|[一-鿿]*[不非没或和与是错])[一-鿿]{1,6})"
    r"(?:\^\{?(?P<power>-?\d)\}?)?"
)
_TRAILING = re.compile(
    r"(?:\\(?:text|mathrm|mbox)\s*\{\s*(?P<tex>[^{}]*)\}|(?<=[\d)}\s])(?P<name>(?:(?:square|sq|cubic)\s+)?[A-Za-z]{2,}))"
    r"(?:\^\{?(?P<power>\d)\}?)?\.?$"
)
_PREFIXES = "kilo k, centi c, milli m, mega M, micro μ, nano n, deci d"
_BASES = """meter m, metre m, gram g, liter L, litre L, second s, watt W, joule J, newton N, hertz Hz,
    pascal Pa, mole mol, electronvolt eV"""
_OTHERS = """inch in, inche in, foot ft, feet ft, yard yd, mile mi, pound lb, lbs lb, ounce oz, minute min,
    hour h, hr h, sec s, volt V, ohm Ω, ampere A, l L, ml mL, celsius C, fahrenheit F, radian rad, 弧度 rad,
    摄氏度 C, 华氏度 F, 米 m, 厘米 cm, 毫米 mm, 分米 dm, 千米 km, 公里 km, 克 g, 千克 kg,
    公斤 kg, 毫克 mg, 秒 s, 分钟 min, 小时 h, 升 L, 毫升 mL"""
_NAMELESS = "degree deg dollar euro unit 度 元"  # a number alone means them too
# What a text's end says of its unit: 60 degrees are not 60 of anything else, though a mere 60 may be either.
_STATED = re.compile(
    r"""(?ix)(?:(?!(?:sin|cos|tan|cot)(?![a-z])).)*?(?<![a-z一-鿿\\])(?:  # sin 30° is a mere number
      (?:(?P<degree>°|deg(?:ree)?s?|度角?)
        | (?P<percent>%|percent|per\ cent)
        | (?P<dollar>dollars?|usd|bucks?|美[元金])
        | (?P<euro>€.*|euros?|欧元)
        | (?P<pound>£.*|pounds?|lbs?|英镑)
        | (?P<rupee>₹.*|rupees?)
        | (?P<yuan_or_yen>¥.*|元钱?|块钱?|yuan|rmb|cny|yen|日元)
      )(?:\s(?!celsius|fahrenheit)[a-z]{3,})?  # "60° clockwise"
    | (?!(?:units?|celsius|fahrenheit|摄氏度|华氏度)\b|(?:each|apiece|total|altogether|left|more|back)$)
      (?P<other>[a-z]{3,}|[cdkm]m|[km]g|ml|ft|in|mi|k?m/[hs]|[一-鿿]+
        |(?-i:(?<=\d)[gLWJNVA]|(?<=\d\ )[mgshLWJNVA]))
    )(?:\^\{?\d\}?)?$"""
)
_RATES = "m/s m/h m/L km/s km/h km/L cm/s cm/h cm/L mi/s mi/h mi/L g/s g/h g/L"


SYMBOLS = dict(pair.split() for pair in f"{_BASES}, {_OTHERS}".split(","))
SYMBOLS |= dict.fromkeys(_NAMELESS.split(), "")
for _prefix in _PREFIXES.split(","):
    for _base in _BASES.split(","):
        (_name, _short_name), (_unit, _symbol) = _prefix.split(), _base.split()
        SYMBOLS[_name + _unit] = _short_name + _symbol
_SHORT = {*SYMBOLS.values(), *_RATES.split()}
# Words after a number that change it, instead of saying of what it is the number.
_CHANGING = re.compile(
    r"""(?x)and|or|not|plus|minus|times|over|per|half|halves|third|quarter|fourth|fifth|sixth|seventh|eighth
    |ninth|tenth|twelfth|[a-z]+(?:teen|tie|dred|sand|ion)th|ten|dozen|hundred|thousand|[a-z]*illion|mil|mln
    |lakh|crore|percent|squared|cubed|factorial|root|mod|more|less|most|least|maybe|yes|none|ish|odd
    |(?:sqrt|log|ln|sin|cos|tan|exp)[nxyz]?"""
)


class Number(NamedTuple):
    """decimals: places after the point, None for an exact number. unit: "" for none, or one that a number
    alone means too (degrees, currency), see `is_other_unit`.
    """

    value: Fraction
    decimals: int | None = None
    percent: bool = False
    unit: str = ""


def read_number(text: str) -> Number | None:
    """Returns the one number that the text is, or None.

    Examples: "1,234.5" "8/2" "\\frac{1}{2}" "1 1/2" "3 \\times 10^{5}" "x = -3" "150°" "12%" "$5" "12.5 cm^2"
    """
    if re.fullmatch(rf"-?[0-9]{{1,{MAX_DIGITS}}}", text):
        return Number(Fraction(text))
    return read_written(text)


def read_written(text: str) -> Number | None:
    """The same of what is not simply an integer."""
    if len(text) > 1_000:
        return None
    text = re.sub(r"^\(([^(),]*)\)$", r"\1", unwrap(plain(text)))
    text = re.sub(r"^([-+]?)10\s*(?=\^|\*\*)", r"\g<1>1*10", text)
    match = _NUMBER.match(text)
    if (
        not match
        or (match["sign"] and match["minus"])
        or max(map(len, filter(None, match.groups()))) > MAX_DIGITS
    ):
        return None
    rest = text[match.end() :].strip()
    percent = rest in ("%", "percent", "per cent")
    rest = re.sub(r"(?i)^(?:°|degrees?\s+(?=[cf]))\s*", "", rest)
    unit = "" if percent or not rest else read_unit(rest)
    found = _value(match)
    if found is None or unit is None:
        return None
    value, decimals = found
    if percent:
        value, decimals = value / 100, None if decimals is None else decimals + 2
    return Number(-value if "-" in (match["sign"], match["minus"]) else value, decimals, percent, unit)


def decimal(digits: str, exponent: int = 0) -> tuple[Fraction, int | None]:
    """Returns digits * 10^exponent, and its decimal places if there is a point: "1.50" -> (3/2, 2)."""
    decimals = max(len(digits.partition(".")[2]) - exponent, 0) if "." in digits else None
    return Fraction(f"{digits}e{exponent}"), decimals


def split_unit(text: str) -> tuple[str, str]:
    """Splits an expression, already `plain`, from the unit after it: one in `\\text{}`, or a known one of
    two letters or more.
    """
    match = _TRAILING.search(text)
    front = text[: match.start()].strip() if match else ""
    if not front:
        return text, ""
    words = (match["tex"] or match["name"] or "").strip()
    unit = read_unit(f"{words}^{match['power']}" if match["power"] else words)
    if unit is None or not (match["tex"] or unit.partition("^")[0] in _SHORT):
        return text, ""
    return front, unit


def read_unit(text: str) -> str | None:
    """Returns a unit's short form ("square centimetres" -> "cm^2", "apples" -> "apple"), or None."""
    match = _UNIT.fullmatch(re.sub(r"\s+per\s+", "/", text.strip()))
    if not match:
        return None
    name = "/".join(_short(part.strip()) for part in match["name"].rstrip(".").split("/"))
    is_thing = name.isalpha() and (len(name) >= 3 or name >= "一") and not _CHANGING.fullmatch(name)
    if name not in _SHORT and (match["power"] or not is_thing):  # there are no apples^2
        return None
    word = match["power_word"]
    power = match["power"] or ("1" if not word else "3" if word[0] in "c立" else "2")
    return name + (f"^{power}" if power != "1" and name else "")


def _short(name: str) -> str:
    if name in _SHORT:
        return name
    lower = name.lower()
    singular = lower.removesuffix("s") if len(lower) > 3 else lower
    return SYMBOLS.get(lower, SYMBOLS.get(singular, singular))


def _value(match: re.Match) -> tuple[Fraction, int | None] | None:
    if match["digits"]:
        exponent = int(match["e"] or match["ten"] or 0)
        return decimal(match["digits"].replace(",", ""), exponent) if abs(exponent) <= MAX_EXPONENT else None
    parts = (match["top"] or match["tex_top"], match["bottom"] or match["tex_bottom"])
    top, bottom = (decimal(part.replace(",", ""))[0] for part in parts)
    if not bottom or (match["whole"] and not 0 <= top < bottom):
        return None
    return int(match["whole"] or 0) + top / bottom, NO_PLACE if "." in match[0] else None


class Rules(NamedTuple):
    """How answers are found and compared. The last three belong to a row; the rest to a run.

    rel_tol: where a side is a decimal number, the relative difference below which two numbers are equal.
    round_to_gold: the gold's decimal places are enough ("0.33" is a right third, if the gold says 0.33).
    iou_mode: a box scores 1 from iou_threshold on ("threshold"), or its overlap ("soft").
    precision: decimal places that count; 0: the number must be the gold's own.
    """

    answer_from: AnswerFrom = "tag"
    rel_tol: float = 1e-6
    round_to_gold: bool = False
    iou_mode: Literal["threshold", "soft"] = "threshold"
    iou_threshold: float = 0.5
    choices: tuple[str, ...] = ()
    precision: int | None = None


def is_other_unit(found: str, gold: str) -> bool:
    """Whether both texts state a unit, one of those that a number alone means too, and these differ.

    Example: "$5" and "5 cents"
    """
    ends = {match.lastgroup for text in (found, gold) if (match := _STATED.match(unwrap(plain(text))))}
    return len(ends) > 1


def same_number(found: Number, gold: Number, rules: Rules) -> bool:
    """Exactly equal, or within `rules` where one is inexact. A missing unit matches any.

    Where the gold says 12%, 12 is right too.
    """
    if found.unit and gold.unit and found.unit != gold.unit:
        return False
    if close(found.value, gold.value, found.decimals, gold.decimals, rules):
        return True
    places = None if gold.decimals is None else max(gold.decimals - 2, 0)
    is_bare = gold.percent and not found.percent
    return is_bare and close(found.value, gold.value * 100, found.decimals, places, rules)


def close(found: Fraction, gold: Fraction, mine: int | None, theirs: int | None, rules: Rules) -> bool:
    """Args: mine, theirs: decimal places of found and gold, NO_PLACE: none in particular; None: exact."""
    difference = abs(found - gold)
    if not difference:
        return True
    if rules.precision is not None:
        return rules.precision > 0 and difference * 2 * 10**rules.precision <= 1
    places = [one for one in (mine, theirs) if one is not None]
    if rules.round_to_gold and theirs is not None and theirs <= 100 and difference * 2 * 10**theirs <= 1:
        return True
    if not places or difference >= Fraction(rules.rel_tol) * abs(gold):
        return False
    # 306956.36 is near 306956.63 and another number: few places are meant, many are a computation's
    return rules.round_to_gold or min(places) > FEW_PLACES or difference * 2 * 10 ** min(places) <= 1
