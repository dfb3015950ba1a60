"""Where in a reply the answer stands. One ladder for training and evaluation; which rung held is kept and
reported.
"""

import re
from typing import Literal, NamedTuple

from r1ov.common.text import split_reply
from r1ov.reward.format import MAX_REPLY
from r1ov.reward.rules.spelling import boxed

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
