"""Reading an answer: one plain spelling for text, where in a reply the answer is, and which choice it picks."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from r1ov.common.text import split_reply
from r1ov.reward.format import MAX_REPLY

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


AnswerFrom = Literal["tag", "boxed", "auto"]
MAX_ANSWER = 4_000  # characters of an answer
TAIL = 20_000  # characters at the end of a reply in which the ladder looks
SHORT = 40  # a reply of at most so many characters is its own answer

_PHRASE = re.compile(
    r"(?:\b(?:answer(?:\s+(?:choice|option))?(?:\s+to\s+(?:this|the)\s+\w+)?|(?:final|correct|best|right)\s+(?:option|choice|result|one))\b"
    r"[\s*_]*(?:,?\s*(?:then|therefore|thus|hence)\s*,?\s*)?(?:(?:is|should\s+be|would\s+be|must\s+be)\b(?:\s+(?:therefore|thus|hence)\b)?|[:：=\]])"
    r"|^[#*_ ]{0,9}(?:final\s+|correct\s+)?answer[*_ ]*\n|\b(?:choose|select)\s+(?=(?:option|choice)\s+\(?[A-Z]\b)"
    r"|\b(?:option|choice)\s+(?=[(*]{0,3}[A-Z][)*]{0,3}\s+is\s+(?:the\s+)?(?:correct|right)\b)"
    r"|(?<!\w)(?=[(*]{0,3}[A-Z][)*]{0,3}\s+is\s+the\s+(?:correct|right)\s+(?:answer|option|choice)\b)"
    r"|答案\s*(?:[】\]]|(?:应该|应)?(?:是|为|选|[:：]))|(?:故|应|因此|所以)[,，]?\s*选(?:择|项)?)[\s*_:：]*(?:选项?)?[\s*_:：]*(?=\S)",
    re.IGNORECASE | re.MULTILINE,
)
_END = re.compile(r"\n|。|(?<!\b[A-Za-z])[.!?](?=\s|$)")  # of a sentence; the full stop of "B. blue" is none
_REASON = re.compile(
    r"[,;，；]?\s*(?:\b(?:because|since|as\s+(?:the|it|they|there|we)|which|where|so\s+that)\b|因为|由于|理由)"
)


class Extraction(NamedTuple):
    """An answer and the rung that gave it: tag, boxed, phrase, short, tail; without an answer: truncated,
    unparsed.
    """

    answer: str | None
    method: str


def extract_answer(
    reply: str, answer_from: AnswerFrom = "tag", finished: bool = True, lenient: bool = False
) -> Extraction:
    """The answer of a reply. Nothing inside the thought ever counts.

    "tag" (training): the body of the only `<answer>` block after the thought. "boxed": the last `\\boxed{}`
    after the thought, in the `<answer>` block if there is one. "auto" (evaluation): the last `<answer>` block
    that is not blank; else the later of the last `\\boxed{}` and the last phrase such as "the answer is";
    else a short reply as a whole. A reason after a phrase's answer ("B, because ...") is left out.

    Args:
        finished: the reply ended by itself; only then may a last `<answer>` lack its closing tag, or a phrase
            run to the very end.
        lenient: at last, guess the last number or choice letter of the last sentence (rung "tail").
    """
    if answer_from not in ("tag", "boxed", "auto"):
        raise ValueError(f"answer_from is {answer_from!r}, must be 'tag', 'boxed' or 'auto'")
    if len(reply) > MAX_REPLY:
        return Extraction(None, "unparsed")
    tail = reply.rsplit("</think>", 1)[-1]
    if "<think>" in tail:
        return Extraction(None, "truncated")
    if answer_from == "tag":
        return _if_short(split_reply(reply)[1], "tag")
    if answer_from == "boxed":
        has_tag = "<answer>" in tail or "</answer>" in tail
        region = split_reply(reply)[1] if has_tag else tail
        return _if_short((boxed((region or "")[-TAIL:]) or [None])[-1], "boxed")
    return _ladder(tail, finished, lenient)


def _ladder(tail: str, finished: bool, lenient: bool) -> Extraction:
    blocks = [block.partition("</answer>") for block in tail[-TAIL:].split("<answer>")[1:]]
    closed = [body.strip() for body, end, _ in blocks if body.strip() and end]
    if blocks and not blocks[-1][1] and blocks[-1][0].strip():
        return _if_short(blocks[-1][0].strip(), "tag") if finished else Extraction(None, "truncated")
    if closed:
        return _if_short(closed[-1], "tag")
    text = tail[-TAIL:].replace("<answer>", " ").replace("</answer>", " ").strip()
    bodies = boxed(text)
    phrases = list(_PHRASE.finditer(text))
    box_at = max(text.rfind(r"\boxed"), text.rfind(r"\fbox")) if bodies else -1
    if phrases and phrases[-1].start() > box_at:
        rest = text[phrases[-1].end() :]
        end = _END.search(rest)
        if not end and not finished:
            return Extraction(None, "truncated")
        answer = rest[: end.start()] if end else rest
        reason = _REASON.search(answer, 1)
        return _if_short((answer[: reason.start()] if reason else answer).strip(), "phrase")
    if bodies:
        return _if_short(bodies[-1], "boxed")
    if not finished:
        return Extraction(None, "truncated")
    if 0 < len(text) <= SHORT:
        return Extraction(text, "short")
    if lenient and text:
        sentence = next((part for part in reversed(_END.split(text)) if part.strip()), "")
        tokens = re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:/\d+)?|(?<!\w)[B-HJ-Z](?!\w)|\(A\)", sentence)
        if tokens:
            return Extraction(tokens[-1].rstrip(","), "tail")
    return Extraction(None, "unparsed")


def _if_short(answer: str | None, method: str) -> Extraction:
    """No answer where there is none, a blank one, or one too long to be an answer."""
    return (
        Extraction(answer, method) if answer and len(answer) <= MAX_ANSWER else Extraction(None, "unparsed")
    )


_LETTER = re.compile(
    r"(?:(?:the\s+)?(?:(?:final|correct|best|right)\s+)?(?:answer|option|choice)\b\s*(?:is\b|:)?\s*)?(?:option\s+|choice\s+)?"
    r"[*(\[{]*(?P<letter>[A-Za-z])(?P<mark>[*)\]}.:]*)\s*(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
# after the first letter: another one alone, or marked as a choice
_ANOTHER = re.compile(
    r"^\W*or\b|^\W*(?:(?:and|or)\b\W*)?(?:option\s+)?[A-Za-z]\W*$|^and\b\W*(?:option\s+)?[A-Za-z]\b|\([A-Z]\)|^[A-Za-z][.):]|\b[B-Z][.):]\s+\S"
)


def read_letter(text: str) -> str | None:
    """The one choice letter in forms such as `B`, `(b)`, `B.`, `**B**`, `option B`, `B. blue star`; None if
    there is none or several.
    """
    return _letter(text)[0]


def read_choice(
    text: str,
    choices: Sequence[str] = (),
    num_choices: int | None = None,
    same: Callable[[str, str], bool] | None = None,
) -> str | None:
    """The letter of the one choice that the text names; of choices with the same text, the first one's.

    Args:
        choices: the choices' texts, if known. num_choices: how many there are, if only that is known.
        same: whether two texts are equal as mathematics; a text that equals exactly one choice picks it.
    """
    num_choices = len(choices) or num_choices
    letter, rest = _letter(text, known=bool(choices))
    texts = [read_text(choice) for choice in choices]
    if letter and (num_choices is None or ord(letter) - ord("A") < num_choices):
        index = ord(letter) - ord("A")
        if not choices:
            return letter
        named = read_text(rest)
        if named == texts[index] or (named not in texts and not _ANOTHER.search(rest)):
            return _first(texts, index)
        return None
    if read_text(text) in texts and read_text(text) is not None:
        return _first(texts, texts.index(read_text(text)))
    if same and choices:
        picked = {_first(texts, index) for index, choice in enumerate(choices) if same(text, choice)}
        return picked.pop() if len(picked) == 1 else None
    return None


def read_yes_no(text: str) -> str | None:
    words = set(re.findall(r"\w+", text.lower())) & {"yes", "no"}
    return words.pop() if len(words) == 1 else None


def read_text(text: str) -> str | None:
    """Case folded, single spaces, no articles, no quotes, Markdown or final punctuation."""
    words = re.sub(r"\b(?:the|a|an)\s+", "", unwrap(plain(text)).casefold()).strip(" .!,;:\"'")
    return words or None


def _letter(text: str, known: bool = False) -> tuple[str | None, str]:
    """(letter, what follows it). known: the choices' texts are, and decide about what follows."""
    match = _LETTER.fullmatch(unwrap(plain(text)))
    if not match or (match["rest"] and not re.search(r"[)\]}.:]", match["mark"])):
        return None, ""
    if not known and _ANOTHER.search(match["rest"]):
        return None, ""
    return match["letter"].upper(), match["rest"]


def _first(texts: list[str | None], index: int) -> str:
    return chr(ord("A") + texts.index(texts[index]))
