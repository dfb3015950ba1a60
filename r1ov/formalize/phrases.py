"""What gives a thought away: talk of a caption where a picture should be looked at, and remarks of the model
that rewrote it.
"""

import re

from r1ov.data.formats.onevision import REMARK

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


def caption_talk(question: str, text: str) -> str | None:
    """The first phrase that speaks of a description instead of the picture; a noun that the question itself
    uses is no give-away.
    """
    text, asked = " ".join(_plain(text).split()), question.lower()
    for pattern in _CAPTION_TALK:
        for found in pattern.finditer(text):
            nouns = [noun.lower() for noun in found.groupdict().values() if noun]
            if not any(noun in asked for noun in nouns):
                return found[0]
    return None


def left_over(question: str, text: str) -> str | None:
    """The first remark of a model about its own task, or mark of our prompts, that the question has not."""
    text = _plain(text)
    found = REMARK.search(text) or _LEFT_OVER.search(text)
    return found[0] if found and found[0].lower() not in question.lower() else None


def _plain(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.replace("’", "'").splitlines())
