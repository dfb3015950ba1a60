"""One plain spelling for text that may hold LaTeX, Markdown or Unicode's own forms: the same thing written
the same way.
"""

import re
import unicodedata
from functools import lru_cache

_CHARACTERS = str.maketrans(
    {"×": r"\times ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "℃": "°C", "≈": "="}
    | dict.fromkeys("−–—", "-")
    | dict.fromkeys("⋅·∙", r"\cdot ")
    | dict.fromkeys("掳º˚", "°")  # the first is a degree sign read in the wrong encoding
    | dict.fromkeys("“”", '"')
    | dict.fromkeys("’‘", "'")
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_LATEX = [  # in this order
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])"), ""),
    (re.compile(r"\\[,;:! ]|\\q?quad(?![A-Za-z])|~"), " "),
    (re.compile(r"\\[()\[\]$]|\$"), " "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (
        re.compile(
            r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\{\s*°\s*\}|\\degree(?![A-Za-z])|\{\s*degrees?\s*\}"
        ),
        "°",
    ),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
]
_WRAPPERS = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|operatorname|rm|bf)\s*\{([^{}]*)\}")
_EDGES = " \t\r\n*`\"'"


@lru_cache(maxsize=1024)
def plain(text: str) -> str:
    """The text in one spelling: NFKC, `^{2}` for a superscript, ` 1/2` for a vulgar fraction, LaTeX's spacing
    and `$` gone.

    Example: "$5\\\\dfrac12\\\\,\\\\text{cm}²$" -> "5\\\\frac{1}{2} \\\\text{cm}^{2}"
    """
    text = text.replace("\frac", "\\frac")  # a form feed: somebody's "\\frac" that was read as an escape
    text = " ".join(text.split()).replace("Â°", "°").translate(_CHARACTERS)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[¼-¾⅐-⅞]", lambda match: " " + unicodedata.normalize("NFKC", match[0]), text)
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/")
    for pattern, spelling in _LATEX:
        text = pattern.sub(spelling, text)
    return " ".join(text.split())


def unwrap(text: str) -> str:
    """The text without Markdown, quotes and LaTeX's text commands around or in it, and without a final full
    stop.
    """
    text = _WRAPPERS.sub(r"\1", text).strip(_EDGES)
    return text.removesuffix(".").strip(_EDGES)


def boxed(text: str) -> list[str]:
    """The bodies of all `\\boxed{...}` (or `\\fbox{...}`), braces matched, in the order in which they close."""
    opened, bodies = [], []
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", text, re.DOTALL):
        if match[0] == "}":
            start, is_box = opened.pop() if opened else (0, False)
            if is_box:
                bodies.append(text[start : match.start()].strip())
        elif match[0].endswith("{") and (match[0] == "{" or len(match[0]) > 2):
            opened.append((match.end(), match[0] != "{"))
    return bodies
