"""Which of several choices an answer picks: by letter, or by the choice's own text. One choice, else none."""

import re
from collections.abc import Callable, Sequence

from r1ov.reward.rules.spelling import plain, unwrap

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
