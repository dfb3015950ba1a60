"""Whether a person, reading plainly, might call an answer right: a judge of r1ov.reward that shares none of
its code.

It is generous where taste decides, and says no where an answer is plainly another one, names several, or
hides the right one among words. Expressions become Python's own, are parsed by `ast` and computed in floating
point at a few points.
"""

import ast
import itertools
import math
import operator
import re
import unicodedata

POINTS = ({}, {"shift": 0.37}, {"shift": 1.91})
FUNCTIONS = {
    "sqrt": lambda x: x**0.5,
    "ln": math.log,
    "exp": math.exp,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "abs": abs,
}
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
UNITS = {
    "cm": "centimeter centimeters centimetre centimetres cm", "m": "meter meters metre metres m",
    "km": "km kilometers", "kg": "kg",
    "": "unit units C F", "°": "degree degrees deg degs", "$": "dollar dollars USD", "€": "euro euros",
    "¥": "yuan", "s": "s sec second seconds",
    "h": "h hour hours hr hrs",
    "mi": "mi mile miles", "in": "in inch inches inche",
    "rad": "rad radian radians", "MHz": "MHz megahertz",
}  # fmt: skip
UNIT = {word: unit for unit, words in UNITS.items() for word in words.split()}
CHINESE = {
    "厘米": "cm",
    "平方米": "m2",
    "米": "m",
    "度": "°",
    "个": "",
    "公里": "km",
    "千米": "km",
    "分钟": "min",
    "摄氏度": "",
    "弧度": "rad",
    "元": "¥",
    "美元": "$",
    "美金": "$",
    "度角": "°",
}
# Spellings of the same, for `unspaced`.
ALIKE = {
    "\u00a0": r"\\,",
    r"\\thinspace(?![a-z])": r"\\,",
    r"\\hspace\*?\{[^{}]*\}": "",
    r"\\text\{,\}": "",
    r"\\(?:nice|s|x)frac": r"\\frac",
    r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}": r"\\frac{\1}{\2}",
    r"\\(?:boldsymbol|mathbf|bm)\s*\{(\\frac.*)\}": r"\1",
    r"\\textrm": r"\\text",
    r"\\text\{\}": "",
    r"\$(?!\d)|(?<=[_{])\$": "",
    r"_\{\s*(\w+)\s*\}": r"_{\1}",
    r"\\ne(?![a-z])|≠": r"\\neq",
    r"\\varnothing|∅": r"\\emptyset",
    r"(?<=\d)\s*万": "*10000",
    r"(?<=\d)\s*亿": "*100000000",
    r"(?<=\d)\s*[和或及与與]\s*(?=[-\dx$])": " and ",
    "负": "-",
    "¢": " cents",
    "[【】「」]": " ",
    r"\\(?=[¼-¾⅐-⅞])": "",
    r"(?<=per)\$(?=cent)|(?<=frac)\$": " ",
    r"\{,\}": ",",
    r"(?i)degrees? celsius": "C",
}
FRAME = ("the", "final", "correct", "best", "right", "answer", "answers", "option", "choice", "is", "are")
FRAME_CHINESE = re.compile(
    "^(?:我|故|因此|所以|[综綜]上(?:所述)?|应该?|[本此][题題]|正确|正確|的|最[终後]|答案?|选项|選項|选择|選擇|选|選|项|第"
    "|请"
    "|为|為|是|[:,\\s])+|(?:选项|選項|项|項)?(?:是?(?:正确|对)的?(?:答案|选项)?)?$"
)
CHANGING = re.compile(  # a word after a number that makes it another one, or none
    r"(?i)and|or|not|plus|minus|times|over|per|hal(f|ves)|thirds?|quarters?|fourth|fifth|tenth|hundredth|thousandth|ten|dozen|hundred|"
    r"thousand|[mbtr]+illion|lakh|crore|quadrillion|mil|sixths|percent|squared|cubed|factorial|root|sqrt|log|sin|cos|tan|exp|ln|mod|more|less|most|least|maybe|yes|no|none"
)


class Unclear(Exception):
    """Nothing that this reader can compute."""


def may_be_right(completion: str, gold: str, kind: str) -> bool:
    """Args: kind: as in r1ov.reward.KINDS."""
    body = answer_of(completion)
    if body is None:
        return False
    body, gold = (unboxed(text) for text in (body, re.sub("</?answer>", "", gold)))
    if not body or squeezed(body) == squeezed(gold):
        return bool(body)
    if squeezed(body.replace(" ", "")) == squeezed(gold.replace(" ", "")):  # \\in fty
        return not re.search(r"\d\s+\d", body)
    body, gold = unspaced(body), unspaced(gold)
    if squeezed(body) == squeezed(gold):
        return True
    try:
        return READERS[kind](body, gold)
    except (Unclear, ValueError, ArithmeticError):
        return False


def answer_of(completion: str) -> str | None:
    """Between the only pair of answer tags after the thought."""
    tail = (
        completion[completion.rfind("</think>") + len("</think>") :]
        if "</think>" in completion
        else completion
    )
    if tail.count("<answer>") != 1 or tail.count("</answer>") != 1 or "<think>" in tail:
        return None
    begin, end = tail.index("<answer>") + len("<answer>"), tail.index("</answer>")
    return tail[begin:end].strip() if begin <= end else None


def unboxed(text: str) -> str | None:
    bodies = set()
    for match in re.finditer(r"\\f?box(?:ed)?\s*\{", text):
        depth, at = 1, match.end()
        while at < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0) if text[at - 1] != "\\" else 0
            at += 1
        if not depth:
            bodies.add(text[match.end() : at - 1].strip())
    return text.strip() if not bodies else bodies.pop() if len(bodies) == 1 else None


def squeezed(text: str) -> str:
    names = {"<=": "leq|leqslant|le", ">=": "geq|geqslant|ge", "<": "lt", ">": "gt", "∪": "cup", "∞": "infty"}
    for sign, spellings in names.items():
        text = re.sub(rf"\\(?:{spellings})(?![a-z])", sign, text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text).replace("≤", "<=").replace("≥", ">=").replace("−", "-")
    return (
        re.sub(r"\\(?:text|mathrm|left|right|[,;:!])|[\s$*`\"'{}\\]", "", unicodedata.normalize("NFKC", text))
        .casefold()
        .strip(".")
    )


def unspaced(text: str) -> str:
    """Without thin spaces in thousands; Chinese stops as others' own; `\\frac1{2}` with all its braces."""
    for spelling, same in ALIKE.items():
        text = re.sub(spelling, same, text)
    text = re.sub("[\u2006\u2009\u202f]", r"\\,", text).replace(r"\!", "")
    text = re.sub(r"frac\\[\[\]()]\s*pi", r"frac\\pi", text)
    text = re.sub(r"(?<=\d)\\[,;:](?=\d{3}(?!\d))", "", text).replace("。", ".").replace("、", ",")
    text = re.sub(r"\\([dtc]?frac)\s*([0-9])\s*(?=\{)", r"\\\1{\2}", text)
    text = re.sub(r"\\([dtc]?frac)\s*(\{[^{}]*\})\s*([0-9])", r"\\\1\2{\3}", text)
    text = re.sub(r"\\([dtc]?frac)\s*(\\pi|π)\s*([0-9]|\{[0-9]+\})", r"((pi)/(\3))", text)
    return re.sub(r"\\([dtc]?frac)\s*\{(\\pi|π)\}\s*([0-9]|\{[0-9]+\})", r"((pi)/(\3))", text)


def words(text: str) -> list[str]:
    text = re.sub(
        r"\\(?:text|mathrm|textbf|mathbf|boxed|[()])", " ", unicodedata.normalize("NFKC", text)
    ).replace("$", "")
    return re.sub(r"[^\w/]+", " ", text).casefold().split()


# -- words


def same_text(body: str, gold: str) -> bool:
    mine, theirs = ([word for word in words(text) if word not in ("the", "a", "an")] for text in (body, gold))
    return mine == theirs


def same_yes_no(body: str, gold: str) -> bool:
    # Yes, there are no cats, also where a space is double or a letter has become a digit ("no 1ats").
    body = re.sub(r"(?i)(?<=[a-z])\s+no\s+(?!not)(?=[a-z\d])", " ", body)
    said = {"yes", "no"} & set(re.split(r"\W+", body.casefold()))
    return said == {"yes", "no"} & set(re.split(r"\W+", gold.casefold()))


def same_choice(body: str, gold: str) -> bool:
    """The first letter standing alone is the gold's, and before it come only words such as "the answer is";
    none follows it as a rival. Of several letters, the same ones and nothing else.
    """
    body, gold = (unicodedata.normalize("NFKC", text) for text in (body, gold))
    body = FRAME_CHINESE.sub("", body.strip(" $*`\"'\n\t.")).strip(" .")
    wanted = re.findall("[A-Z]", gold)
    if len(wanted) > 1 and not re.search(r"[a-z\d]", gold):
        body = re.sub(
            r"\\(?:text|mathrm|boxed)\b|(?i:^both\s)|(?i:^(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)s?\s*(?:is|are|:)?)",
            "",
            body,
        )
        return set(re.findall("[A-Z]", body)) == set(wanted) and not re.search(
            r"[^A-Z\W_和与及]", re.sub(r"\band\b", "", body)
        )
    said = words(body)
    while said and said[0] in FRAME:
        said = said[1:]
    gold_letter = words(gold)[0].upper()
    if not said or said[0] != gold_letter.casefold():
        return False
    rivals = set(re.findall(r"\(([A-Z])\)|(?<![\w\\])([B-HJ-Z])(?!\w|\s*=)", body)) - {
        ("", gold_letter),
        (gold_letter, ""),
    }
    is_marked = re.search(r"(?i)(?<![a-z])" + gold_letter + r"[*]*\s*(?:[).:}\]]|,(?=[一-鿿]))", body)
    return len(said) == 1 or (bool(is_marked) and (not rivals or len(said) > 2))


# -- numbers and expressions


def spelled(text: str) -> str:
    """As Python would write it, but for juxtaposition."""
    text = re.sub(r"\\\s", " ", text.replace("\f", "\\f").replace("$", " "))
    for sign, spelling in {
        "×": "*",
        "÷": "/",
        "π": " pi ",
        "√": r"\sqrt ",
        "⋅": "*",
        "·": "*",
        "∙": "*",
        "≈": "=",
        "掳": "°",
        "º": "°",
        "∞": " inf ",
    }.items():
        text = text.replace(sign, spelling)
    text = re.sub("[−–—]", "-", text)
    text = re.sub(
        r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: "^(" + unicodedata.normalize("NFKC", m[0]).replace("−", "-") + ")", text
    )
    text = re.sub("(?<=[0-9])([¼-¾⅐-⅞])", lambda m: "+" + unicodedata.normalize("NFKC", m[0]), text)
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/").replace("{,}", ",")
    text = re.sub(
        r"\\(?:left|right|displaystyle|limits|[bB]igg?[lr]?)(?![a-zA-Z])|\\[,;:! ]|\\q?quad|~|\\[()\[\]]",
        " ",
        text,
    )
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|\{\s*(?:°|degrees?)\s*\}", "°", text)
    text = re.sub(
        r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|operatorname|rm|bf)\s*\{([^{}]*)\}", r" \1 ", text
    )
    text = text.strip(" *`\"'\n\t").removesuffix(".").strip(" *`\"'\n\t")
    text = re.sub(r"\\[dtc]?frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    for _ in range(8):
        text = re.sub(
            r"(?<![\w.^}/])(\d+)\s*\\[dtc]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"(\1+\2/\3)", text
        )
        text = re.sub(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))", text)
        text = re.sub(r"\\?sqrt\s*\[([^\[\]]*)\]\s*\{([^{}]*)\}", r"((\2)**(1/(\1)))", text)
        text = re.sub(r"\\?sqrt\s*\{([^{}]*)\}", r" sqrt(\1)", text)
        text = re.sub(r"\^\s*\{([^{}]*)\}", r"**(\1)", text)
        text = re.sub(r"_\s*\{(\w+)\}\s*\{([^{}]*)\}", r"_\1(\2)", text)
        text = re.sub(r"_\s*\{(\w+)\}", r"_\1", text)
    text = re.sub(r"\\?log\s*_\s*(\w+)\s*\(?\s*([\w.]+)\s*\)?", r"(ln(\2)/ln(\1))", text)
    text = re.sub(r"\\?(sqrt|ln|exp|sin|cos|tan)\s*([+-]?(?:\d[\d.]*|\.\d+)|[a-z](?![a-z]))", r"\1(\2)", text)
    text = re.sub(r"\\(sqrt|ln|exp|sin|cos|tan)(?![a-z])", r"\1", text)
    text = (
        text.replace(r"\cdot", "*")
        .replace(r"\times", "*")
        .replace(r"\div", "/")
        .replace(r"\%", "%")
        .replace(r"\pi", " pi ")
    )
    return (
        text.replace(r"\infty", " inf ")
        .replace("^", "**")
        .replace(r"\{", "{")
        .replace(r"\}", "}")
        .replace("°", " ")
    )


def computed(text: str) -> list[float]:
    """At each of POINTS."""
    text = re.sub(r"\|([^|]+)\|", r"abs(\1)", text.strip())
    text = re.sub(r"(\d[\d.]*)\s*%", r"(\1/100)", text)
    text = re.sub(r"^(-?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)$", r"\1(\2+\3/\4)", text)
    text = (
        re.sub(r"(?<=[\w)])\s*!", "", text)
        if not re.search(r"\d\.?\s*!", text)
        else re.sub(r"(\d+)\.?\s*!", lambda m: str(math.factorial(min(int(m[1]), 20))), text)
    )
    tokens = re.findall(
        r"\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|[A-Za-z]+(?:_\w+)?|\*\*|[-+*/(){}\[\]]|\S", text
    )
    parts: list[str] = []
    for token in tokens:
        if token.isalpha() and token not in (*FUNCTIONS, "pi", "inf"):
            token = "*".join(token)
        token = {"[": "(", "]": ")", "{": "(", "}": ")"}.get(token, token)
        before = parts[-1] if parts else ""
        ends = bool(re.match(r"[\w.)]", before[-1:])) and before not in FUNCTIONS
        if ends and (re.match(r"[A-Za-z(]", token)):
            parts.append("*")
        elif ends and re.match(r"[\d.]", token):
            raise Unclear("two numbers side by side")
        parts.append(token)
    joined = re.sub(r"(?<![\w.])0+(?=\d)", "", "".join(parts))
    missing = joined.count("(") - joined.count(")")  # a bracket forgotten at the end
    joined = (
        joined + ")" * missing
        if missing > 0
        else joined[: len(joined) + missing]
        if joined.endswith(")" * -missing)
        else joined
    )
    try:
        tree = ast.parse(joined, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise Unclear(joined) from error
    return [value(tree, point.get("shift", 0.0)) for point in POINTS]


def value(node: ast.AST, shift: float) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.Name):
        known = {"pi": math.pi, "e": math.e, "inf": 1e300}
        return known[node.id] if node.id in known else 1.3 + shift + sum(map(ord, node.id)) % 89 / 41
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = value(node.operand, shift)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = value(node.left, shift), value(node.right, shift)
        if isinstance(node.op, ast.Pow) and left and abs(right) * abs(math.log(abs(left))) > 600:
            raise Unclear("too large")
        result = OPERATORS[type(node.op)](left, right)
        if isinstance(result, complex):
            raise Unclear("complex")
        return result
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in FUNCTIONS
        and len(node.args) == 1
    ):
        return FUNCTIONS[node.func.id](value(node.args[0], shift))
    raise Unclear(ast.dump(node))


def near(a: list[float], b: list[float]) -> bool:
    return all(abs(x - y) <= 1.01e-6 * max(abs(x), abs(y)) for x, y in zip(a, b, strict=True))


def measured(text: str, is_known: bool = False) -> tuple[str, str | None]:
    """What comes before the words at the end, and those words as a unit; None: none there. is_known: only one
    of UNITS is a unit.
    """
    text = re.sub(
        r"^[$€£¥₹]\s*|(?<=\s)\s+", "", spelled(re.sub(r"(?i)\b\w*per\s?\w*cent\w*|\bpct$", "%", text))
    )
    text = re.sub(r"(?<=[a-z])\s+per\s+(?=[a-z])", "/", text)
    text = re.sub(r"^\(([^,]*\d[^,]*\s[a-z]{2,})\s*\)$", r"\1", text)  # brackets around value and unit
    if chinese := re.search(r"(?<=[\d)])\s*([一-鿿]{1,6})$", text):
        if chinese[1] in CHINESE:
            return text[: chinese.start()], CHINESE[chinese[1]]
        if re.search("[十百千万亿半倍不非没或和与是错]", chinese[1]):
            raise Unclear(chinese[1])
        return text[: chinese.start()], chinese[1]
    match = re.search(
        r"(?<=[\d)\s.])\s*((?:(?:square|sq\.?|cubic)\s+)?(?:[A-Za-zμΩ]{2,}|(?<=[\d)\s.])[A-Za-z])\.?(?:\s*/\s*[a-zA-Z]+)?)(\s*\*\*\s*\(?\d\)?)?\.?$",
        text,
    )
    if not match or not re.search(r"\d", text[: match.start()]) or match[1] in ("pi", "inf", "sqrt"):
        return text, None
    if is_known and not {*re.split(r"\W+", match[1])} & {*UNIT, "square"}:
        return text, None
    if any(CHANGING.fullmatch(word) for word in re.findall("[A-Za-z]+", match[1])):
        raise Unclear(match[1])
    square = re.match(r"square|sq\.?|cubic", match[1])
    power = re.sub(r"\D", "", match[2]) if match[2] else {"s": "2", "c": "3"}[square[0][0]] if square else ""
    parts = re.sub(r"^(square|sq\.?|cubic)\s+", "", match[1]).split("/")
    name = "/".join(UNIT.get(part.strip().rstrip("."), part.strip().removesuffix("s")) for part in parts)
    return text[: match.start()].rstrip(" ."), name + power if name else ""  # a stop before the unit


def same_number(body: str, gold: str) -> bool:
    if re.search(r"[;?]|\b(?:or|and|not)\b", body):
        return False
    # A sign after or before a number as the word for it; what lost its "$" to TeX may be anything.
    body, gold = (re.sub(r"(?:°|\^\s*\{?\s*\\circ\s*\}?)\$?$", " degrees", text) for text in (body, gold))
    body, gold = (re.sub(r"^€\s*([\d.,]+)$", r"\1 euros", text) for text in (body, gold))
    body, gold = (re.sub(r"^\\\$\s*([\d.,]+)\$?$", r"\1 dollars", text) for text in (body, gold))
    if re.search(r"\d(?:M|(?<=(?:19|20)\d0)s)$", body) and body != gold:
        return False
    sides = []
    for text in (body, gold):
        front, unit = measured(re.sub(r"^\s*[\\$]*[A-Za-z]{1,2}\w?\s*\$?\s*=\s*", "", text))
        front = re.sub(r"[$€£¥₹]", "", front)
        if "," in front:
            if not re.fullmatch(r"\s*[-+]?\s*\d{1,3}(,\d{3})+(\.\d+)?\s*(/.*|\*.*|%)?", front.strip()):
                raise Unclear(front)
            front = front.replace(",", "")
        sides.append((front, unit, computed(front)))
    (mine, unit, mine_value), (theirs, gold_unit, gold_value) = sides
    if unit and gold_unit and unit != gold_unit:
        return False
    is_bare = "%" in theirs and "%" not in mine
    return near(mine_value, gold_value) or (is_bare and near(mine_value, [100 * one for one in gold_value]))


def named(text: str) -> str:
    return re.sub(r"^\s*(?:[A-Za-z]{4,}\s*){1,3}\$?=\s*", "", text)


def same_expression(body: str, gold: str) -> bool:
    """Equal at every point; equations, if their sides' differences are in proportion."""
    if squeezed(named(body)) == squeezed(named(gold)):
        return True
    if gold.strip()[:1] in "([" and gold.strip()[-1:] in ")]" and "," in gold:
        body = body.strip(" $*\n")
        if (body[:1], body[-1:]) != (gold.strip()[:1], gold.strip()[-1:]):
            return False
        return same_items(body, gold, is_ordered=True)
    if re.fullmatch(r"[-\d(][-\d./%\s()*e]*", spelled(gold)) and "=" not in body:
        return same_number(body, gold)
    (mine, unit), (theirs, gold_unit) = (
        measured(spelled(named(text)), is_known="\\text" not in text) for text in (body, gold)
    )
    if unit and gold_unit and unit != gold_unit:
        return False
    mine, theirs = (text.split("=") for text in (mine, theirs))
    if max(len(mine), len(theirs)) > 2:
        raise Unclear("chain")
    if len(mine) == len(theirs) == 2:
        ratios = [
            [l - r for l, r in zip(computed(left), computed(right), strict=True)]
            for left, right in (mine, theirs)
        ]
        quotients = [a / b for a, b in zip(*ratios, strict=True)]
        return bool(quotients[0]) and near(quotients, [quotients[0]] * len(quotients))
    is_bare = "%" in theirs[-1] and "%" not in mine[-1]
    found, right = (
        computed(mine[-1].replace(",", "") if re.search(r"\d,\d{3}", mine[-1]) else mine[-1]),
        computed(theirs[-1]),
    )
    for side in (mine, theirs):
        if len(side) == 2 and not re.fullmatch(r"\s*\\?[A-Za-z]\w*(\([a-z]\))?\s*", side[0]):
            raise Unclear("an equation against a value")
    return near(found, right) or (is_bare and near(found, [100 * one for one in right]))


def items_of(text: str) -> tuple[str, list[str]]:
    """Outer brackets, and what stands between top-level commas."""
    text = spelled(text)
    text = re.sub(r"[\s,]*(?<![A-Za-z])(?:and|or)(?![A-Za-z])\s*", ",", text)
    text = text.replace("±", r"\pm")
    if r"\pm" in text:
        text = f"{text.strip('{} ')},".replace(r"\pm", "+") + text.strip("{} ").replace(r"\pm", "-")
    text = re.sub(r"^\s*[A-Za-z]\s*=\s*(?=[({\[])", "", text).strip()
    text = re.sub(r"(?<=[)}\]])\s*(?:cm|units?)$", "", text)
    brackets = ""
    if text[:1] in "([{" and text[-1:] in ")]}" and text:
        depth = [0]
        for character in text:
            depth.append(depth[-1] + {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0))
        if all(depth[1:-1]):
            brackets, text = text[0] + text[-1], text[1:-1]
    items, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character in ",;" and not depth:
            items.append(text[start:at])
            start = at + 1
    return brackets, [
        re.sub(r"^\s*[A-Za-z](?:\s*_\s*\w+)?\s*=", "", item).strip() for item in [*items, text[start:]]
    ]


def same_items(body: str, gold: str, is_ordered: bool) -> bool:
    (brackets, mine), (_, theirs) = items_of(body), items_of(gold)
    if is_ordered and all(item.startswith("[") and "," in item for item in theirs):
        pairs = zip(mine, theirs, strict=False)
        return len(mine) == len(theirs) and all(same_items(one, other, True) for one, other in pairs)
    mine, theirs = (
        [computed(re.sub(r"(?<=\d)\s*(?:cm|units?)$", "", named(item))) for item in side]
        for side in (mine, theirs)
    )
    if is_ordered:
        is_list = items_of(gold)[0] == "[]" and len(theirs) > 2
        return (
            (brackets[:1] in ("(", "[") if brackets else is_list)
            and len(mine) == len(theirs)
            and all(map(near, mine, theirs))
        )
    if brackets in ("()", "[]") and len(theirs) > 1:
        return False
    return len(mine) == len(theirs) and any(
        all(map(near, mine, order)) for order in itertools.permutations(theirs)
    )


# -- boxes


def boxes_of(text: str) -> list[tuple[float, ...]]:
    """Every bracket that holds numbers between commas; words and numbers around them are no matter."""
    text = (
        unicodedata.normalize("NFKC", text)
        .translate({ord("−"): "-", ord("–"): "-", ord("$"): None})
        .replace("{,}", ",")
    )
    text = re.sub(r"<\|box_\w+\|>|</?box>", " ; ", text)
    number = r"\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*"
    # Pairs in a row, as many as there may be, are boxes two by two.
    pair = rf"[\[(]{number},{number}[\])]"
    for run in re.findall(rf"{pair}(?:\s*,?\s*{pair}){{3,}}", text):
        ends = re.findall(rf"{number},{number}", run)
        if len(ends) % 2 == 0:
            text = text.replace(
                run, ";".join(f"[{a},{b}]" for a, b in zip(ends[::2], ends[1::2], strict=True))
            )
    corners = rf"[\[(]({number},{number})[\])]\s*,?\s*[\[(]({number},{number})[\])]"
    if not re.search(rf"{corners}\s*,?\s*[\[(]{number},{number}[\])]", text):
        text = re.sub(corners, r"[\1,\2]", text)
    if bare := re.fullmatch(rf"({number})[,\s]({number})[,\s]({number})[,\s]({number})", text.strip()):
        text = f"[{', '.join(bare.groups())}]"
    found = [
        re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)", one)
        for one in re.findall(r"[\[(]([^\[\](){}]*)", text)
        if re.search(r"\d\s*,\s*[-+\d.]", one)
    ]
    if not found or any(len(one) != 4 for one in found):
        raise Unclear("not four numbers a box")
    boxes = list(dict.fromkeys(tuple(map(float, one)) for one in found))
    if any(x1 >= x2 or y1 >= y2 for x1, y1, x2, y2 in boxes):
        raise Unclear("no box")
    return boxes


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def same_boxes(body: str, gold: str) -> bool:
    """Labels aside, which no mutation here can put right."""
    mine, theirs = boxes_of(body), boxes_of(gold)
    return len(mine) == len(theirs) and any(
        all(overlap(a, b) > 0.5 - 1e-9 for a, b in zip(mine, order, strict=True))
        for order in itertools.permutations(theirs)
    )


READERS = {
    "text": same_text,
    "yes_no": same_yes_no,
    "mcq": same_choice,
    "number": same_number,
    "math": same_expression,
    "tuple": lambda body, gold: same_items(body, gold, is_ordered=True),
    "set": lambda body, gold: same_items(body, gold, is_ordered=False),
    "bbox": same_boxes,
    "boxes": same_boxes,
}
