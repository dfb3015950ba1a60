"""Reading an answer: one plain spelling, where in a reply the answer is, and which choice it picks."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from r1ov.common.files import split_reply
from r1ov.reward.format import MAX_REPLY

# What is read as what; "␣" is a space. 掳 is a degree sign read in the wrong encoding.
_CHARACTERS = dict.fromkeys("\u00a0\u2006\u2009\u202f", r"\,")  # thin spaces, and those where no line breaks
for _line in r"""
    ×   -> \times␣
    ÷   -> /
    π   -> \pi␣
    ∞   -> \infty␣
    √   -> \sqrt␣
    ℃   -> °C
    ¢   -> ␣cents
    ≈   -> =
    ±   -> \pm␣
    ≠   -> \neq␣
    ∪   -> \cup␣
    ∈   -> \in␣
    ∅   -> \emptyset␣
    −–—负 -> -
    ⋅·∙ -> \cdot␣
    掳º˚ -> °
    “”「」『』 -> "
    ’‘  -> '
    。  -> .
    、  -> ,
    【  -> [
    】  -> ]
""".strip().splitlines():
    _before, _, _after = _line.partition("->")
    _CHARACTERS |= dict.fromkeys(_before.strip(), _after.strip().replace("␣", " "))
_CHARACTERS = str.maketrans(_CHARACTERS)
_LATEX = []  # in this order; one "$" before a number is money, two around it are TeX's
for _line in r"""
    Â° -> °
    ⁄ -> /
    − -> -
    ^(\$?)(-?)\\?\$\s*(\d[\d.,]*)\1$ -> \2\3 dollars
    (?<=\d)\s*pct$ -> %
    \\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])|\\hspace\*?\s*\{[^{}]*\} ->
    \\(?:text|mbox|mathord|mathpunct)\s*(?=\{,\}) ->
    \\thinspace(?![A-Za-z]) -> \\,
    \\(?<!\\\\)!|\\[,;:](?<=\d..)(?=\d{3}(?!\d)) ->
    \\(?<!\\\\)[,;:! ]|\\q?quad(?![A-Za-z])|~ -> ␣
    \\(?<!\\\\)[()\[\]$]|\$ -> ␣
    \{,\} -> ,
    (?<=\d)\s*[和或及与與]\s*(?=[-\d\\]|[a-z]\s*=) -> ␣and␣
    (?<=\d)\s*万 -> \\times 10^{4}
    (?<=\d)\s*亿 -> \\times 10^{8}
    \{([^{}]*)\\over(?![A-Za-z])([^{}]*)\} -> \\frac{\1}{\2}
    \\(?:[dtcsx]|nice)frac(?![A-Za-z]) -> \\frac
    \\le(?:q?slant|q)?(?![A-Za-z])|≤ -> <=
    \\ge(?:q?slant|q)?(?![A-Za-z])|≥ -> >=
    \\lt(?![A-Za-z]) -> <
    \\gt(?![A-Za-z]) -> >
    \\ne(?![A-Za-z]) -> \\neq
    \\varnothing(?![A-Za-z]) -> \\emptyset
    \s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\{\s*°\s*\}|\\degree(?![A-Za-z])|\{\s*degrees?\s*\} -> °
    \\% -> %
    \\frac\s*(?:(\d)|\{([^{}]*)\})\s*(?:(\d)|\{([^{}]*)\}) -> \\frac{\1\2}{\3\4}
""".strip().splitlines():
    _before, _, _after = _line.partition("->")
    _LATEX.append((re.compile(_before.strip()), _after.strip().replace("␣", " ")))
_WRAPPERS = re.compile(
    r"\\(?:text(?:rm|bf|it|sf|tt|up|normal)?|math(?:rm|bf|it|sf|tt)|mbox|operatorname|rm|bf|bm|boldsymbol|num)"
    r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_EDGES = " \t\r\n*`\"'"


@lru_cache(maxsize=1024)
def plain(text: str) -> str:
    """The text in one spelling: NFKC, `^{2}` for a superscript, ` 1/2` for a vulgar fraction, LaTeX's spacing
    and `$` gone.

    Example: "$5\\\\dfrac12\\\\,\\\\text{cm}²$" -> "5\\\\frac{1}{2} \\\\text{cm}^{2}"
    """
    text = text.replace("\frac", "\\frac")  # a form feed: somebody's "\\frac" that was read as an escape
    text = " ".join(text.translate(_CHARACTERS).split())
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", r"^{\g<0>}", re.sub("[¼-¾⅐-⅞]", r" \g<0>", text))
    text = unicodedata.normalize("NFKC", text)
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
    """Returns the bodies of all `\\boxed{...}` (or `\\fbox{...}`), braces matched, as they close."""
    opened, bodies = [], []  # where a box's body begins, 0 for other braces
    for match in re.finditer(r"(?s)(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", text):
        if match["close"]:
            if opened and (start := opened.pop()):
                bodies.append(text[start : match.start()].strip())
        elif match.lastgroup:
            opened.append(match.end() if match["box"] else 0)
    return bodies


AnswerFrom = Literal["tag", "boxed", "auto"]
MAX_ANSWER = 4_000  # characters of an answer
TAIL = 20_000  # characters at the end of a reply in which the ladder looks
SHORT = 40  # a reply of at most so many characters is its own answer

_PHRASE = re.compile(
    r"""(?imx)(?:
    \b(?:answer(?:\s+(?:choice|option))?(?:\s+to\s+(?:this|the)\s+\w+)?  # the answer to this question is
        |(?:final|correct|best|right)\s+(?:option|choice|result|one))\b[\s*_]*(?:,?\s*(?:then|therefore|thus|hence)\s*,?\s*)?
        (?:(?:is|should\s+be|would\s+be|must\s+be)\b(?:\s+(?:therefore|thus|hence)\b)?|[:：=\]])
    |^[\#*_ ]{0,9}(?:final\s+|correct\s+)?answer[*_ ]*\n  # a heading
    |\b(?:choose|select)\s+(?=(?:option|choice)\s+\(?[A-Z]\b)
    |\b(?:option|choice)\s+(?=[(*]{0,3}[A-Z][)*]{0,3}\s+is\s+(?:the\s+)?(?:correct|right)\b)  # B is right
    |(?<!\w)(?=[(*]{0,3}[A-Z][)*]{0,3}\s+is\s+the\s+(?:correct|right)\s+(?:answer|option|choice)\b)
    |答案\s*(?:[】\]]|(?:应该|应)?(?:是|为|选|[:：]))
    |(?:故|应|因此|所以)[,，]?\s*选(?:择|项)?
    )[\s*_:：]*(?:选项?)?[\s*_:：]*(?=\S)"""
)
_END = re.compile(r"\n|。|(?<!\b[A-Za-z])[.!?](?=\s|$)")  # of a sentence; the full stop of "B. blue" is none
_REASON = re.compile(
    r"[,;，；]?\s*(?:\b(?:because|since|as\s+(?:the|it|they|there|we)|which|where|so\s+that)\b|因为|由于|理由)"
)


class Extraction(NamedTuple):
    """An answer and the rung that gave it: tag, boxed, phrase, short; without one: truncated, unparsed."""

    answer: str | None
    method: str


def extract_answer(reply: str, answer_from: AnswerFrom = "tag", finished: bool = True) -> Extraction:
    """Returns the answer of a reply. Nothing inside the thought ever counts.

    "tag" (training): the body of the only `<answer>` block after the thought. "boxed": the last `\\boxed{}`
    after the thought, in the `<answer>` block if there is one. "auto" (evaluation): the last `<answer>` block
    that is not blank; else the later of the last `\\boxed{}` and the last phrase such as "the answer is";
    else a short reply as a whole.

    Args: finished: the reply ended by itself; only then, with "auto", may a last `<answer>` lack its closing
        tag, or a phrase run to the very end. "tag" and "boxed" need what closes the answer anyhow: it counts,
        though the reply was cut off after it.
    """
    if answer_from not in ("tag", "boxed", "auto"):
        raise ValueError(f"answer_from is {answer_from!r}, must be 'tag', 'boxed' or 'auto'")
    if len(reply) > MAX_REPLY:
        return Extraction(None, "unparsed")
    tail = reply.rsplit("</think>", 1)[-1]
    if "<think>" in tail:
        return Extraction(None, "truncated")
    if answer_from == "auto":
        answer, method = _ladder(tail[-TAIL:], finished)
    else:
        has_tag = answer_from == "tag" or "<answer>" in tail or "</answer>" in tail
        answer, method = split_reply(reply)[1] if has_tag else tail, answer_from
        if answer_from == "boxed":
            answer = (boxed((answer or "")[-TAIL:]) or [None])[-1]
    answer = (answer or "").strip()
    if not 0 < len(answer) <= MAX_ANSWER:
        return Extraction(None, method if method == "truncated" else "unparsed")
    return Extraction(answer, method)


def stated(text: str) -> tuple[int, str, bool]:
    """Where the last phrase such as "the answer is" begins (-1: there is none), what it says without a reason
    ("B, because ..."), and whether its sentence ends.
    """
    phrases = list(_PHRASE.finditer(text))
    if not phrases:
        return -1, "", True
    answer, *after = _END.split(text[phrases[-1].end() :], maxsplit=1)
    reason = _REASON.search(answer, 1)
    return phrases[-1].start(), answer[: reason.start()] if reason else answer, bool(after)


def _ladder(tail: str, finished: bool) -> tuple[str | None, str]:
    blocks = [block.partition("</answer>") for block in tail.split("<answer>")[1:]]
    if blocks and not blocks[-1][1] and blocks[-1][0].strip():  # it has no end
        return (blocks[-1][0], "tag") if finished else (None, "truncated")
    if closed := [body for body, end, _ in blocks if end and body.strip()]:
        return closed[-1], "tag"
    text = re.sub("</?answer>", " ", tail).strip()
    bodies, (at, answer, is_ended) = boxed(text), stated(text)
    if at > (max(text.rfind(r"\boxed"), text.rfind(r"\fbox")) if bodies else -1):
        return (answer, "phrase") if is_ended or finished else (None, "truncated")
    if bodies:
        return bodies[-1], "boxed"
    if not finished:
        return None, "truncated"
    return text if len(text) <= SHORT else None, "short"


# words before a letter: "The correct answer is", "option", "故选", "正确选项是"
_LEAD = re.compile(
    r"(?i)(?:(?:the\s+)?(?:(?:final|correct|best|right)\s+)?(?:answer|option|choice)s?\b\s*(?:(?:is|are)\b|:)?\s*)?"
    r"(?:(?:option|choice|both)\s+)?"
    r"(?:我|故|因此|所以|[综綜]上(?:所述)?|应该?|應該?|最[佳终終后後]|正确|正確|的|[本此][题題]|[(\[]答案[)\]]|答案?"
    r"|[选選][项項择擇]?|第|[请請]|[为為是:,]|\s)*"
)
_TAIL = r"\s*(?:选项|選項|[项項])?\s*(?:是?(?:正[确確]|对|對)的?(?:答案|[选選][项項])?)?$"
_LETTER = re.compile(
    rf"(?s)[*(\[{{]*(?P<letter>[A-Za-z])(?P<mark>,(?=[一-鿿])|(?:\](?!\d)|[*)}}.:])*)(?:{_TAIL}|\s*(?P<rest>.*))"
)
_LETTERS = re.compile(
    r"(?:[*(\[{]*[A-Z][*)\]}.:]*(?:\s*(?:[,;/&+和及与與]|\band\b)+\s*(?=[*(\[{]*[A-Z])|\s+|(?=[*(\[{]*[A-Z]|$)))+"
)
# after the first letter: another one alone, or marked as a choice
_ANOTHER = re.compile(
    r"^\W*or\b|^\W*(?:(?:and|or)\b\W*)?(?:option\s+)?[A-Za-z]\W*$|^and\b\W*(?:option\s+)?[A-Za-z]\b|\([A-Z]\)"
    r"|^[A-Za-z][.):]|\b[B-Z][.):]\s+\S|[或和及与與][^A-Za-z]*[A-Z]"
)


def read_choice(
    text: str,
    choices: Sequence[str] = (),
    same: Callable[[str, str], Any] | None = None,
) -> str | None:
    """Returns the letter of the one choice that the text names; among equal texts, the first.

    Examples: `B`, `(b)`, `B.`, `**B**`, `option B`, `B. blue star`, `故选B`, and the choice's own text.
    Args:
        choices: the choices' texts, or their letters, if these are known.
        same: whether two texts are equal as mathematics; a text that equals exactly one choice picks it.
    """
    letters = {}
    for index, choice in enumerate(choices):
        letters.setdefault(read_text(choice) or index, chr(ord("A") + index))
    match = _LETTER.fullmatch(_without_lead(text))
    if match and (not match["rest"] or match["mark"].strip("*")):
        letter, rest = match["letter"].upper(), match["rest"] or ""
        index, named, is_alone = ord(letter) - ord("A"), read_text(rest), not _ANOTHER.search(rest)
        if not choices and is_alone:
            return letter
        if index < len(choices):
            own = read_text(choices[index]) or index
            return letters[own] if named == own or (named not in letters and is_alone) else None
    if read_text(text) in letters:
        return letters[read_text(text)]
    picked = {letters[read_text(choice)] for choice in choices if same and same(text, choice)}
    return picked.pop() if len(picked) == 1 else None


def read_letters(text: str, num_choices: int = 26) -> str | None:
    """Returns several choices' letters in the text's order: "A, C" -> "AC"; None if it says anything else."""
    short = re.sub(_TAIL, "", _without_lead(text))
    letters = "".join(re.findall("[A-Z]", short)) if _LETTERS.fullmatch(short) else ""
    is_several = len({*letters}) == len(letters) > 1 and ord(max(letters)) < ord("A") + num_choices
    return letters if is_several else None


def _without_lead(text: str) -> str:
    short = unwrap(plain(text))
    return short[_LEAD.match(short).end() :]


# A "no" that denies no question: no idea, no. 5, there are no cats.
_NO_NO = re.compile(
    r"\bno\s+(?:idea|clue|one|answers?|solutions?|matter|more|less|fewer|doubt|problem|longer)\b|\bno\b\.?\s*\d"
    r"|(?<=[a-z])\s+no\s+(?!not\b|because|since|as\b|it|they|there|he|she|this|that|but)(?=[a-z])"
)
_DENIED = re.compile(r"(?s)(?:\b(?:not|never|neither|nor|cannot)\b|n['’]t\b).*")


def read_yes_no(text: str) -> str | None:
    """The one word, yes or no, that the text says and does not deny."""
    text = _NO_NO.sub(" ", text.lower())
    said, meant = (re.findall(r"\b(?:yes|no)\b", each) for each in (text, _DENIED.sub("", text)))
    return said[0] if len({*said}) == 1 and meant else None


def read_text(text: str) -> str | None:
    """Case folded, no articles, quotes, Markdown or final punctuation; spaces only where they part words."""
    words = re.sub(r"\b(?:the|a|an)\s+", "", unwrap(plain(text)).casefold())
    return re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", words).strip(" .!,;:\"'") or None
