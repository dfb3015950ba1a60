"""What models reply, read strictly: a reply that is not in the form asked for is no answer, and never a
guess.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from r1ov.common.remote import AskFailed
from r1ov.common.text import one_line

MAX_REPLY = 100_000  # characters
_BLOCK = re.compile(r"```([\w+-]*)[ \t]*\n(.*?)\n?```", re.DOTALL)


def json_object(reply: str, keys: Mapping[str, type]) -> dict[str, Any]:
    """The one JSON object that the reply is, alone or as one fenced block, with exactly these keys and types
    (list: of texts).

    Raises:  AskFailed.
    """
    text = proper(reply)
    if match := _BLOCK.fullmatch(text):
        text = match[2]
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise malformed(reply, f"one JSON object ({one_line(str(error))[:80]})") from error
    if not isinstance(value, dict) or value.keys() != keys.keys():
        raise malformed(reply, f"a JSON object with the keys {', '.join(keys)}")
    for key, kind in keys.items():
        is_texts = kind is not list or (
            isinstance(value[key], list) and all(isinstance(item, str) for item in value[key])
        )
        if not isinstance(value[key], kind) or not is_texts:
            raise malformed(
                reply,
                f"{key!r} to be {'a list of texts' if kind is list else 'true or false' if kind is bool else 'a text'}",
            )
    return value


def code_block(reply: str, languages: Mapping[str, str]) -> tuple[str, str]:
    """(the format's name, the text) of the reply's only fenced block; the text is not run, only kept.

    Args:    languages: what stands after the backticks -> the format's name.
    Raises:  AskFailed.
    """
    blocks = _BLOCK.findall(proper(reply))
    if len(blocks) != 1 or not blocks[0][1].strip() or blocks[0][0].lower() not in languages:
        raise malformed(reply, f"one fenced block of {', '.join(languages)}")
    language, text = blocks[0][0].lower(), blocks[0][1].strip()
    if language == "json":
        try:
            json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise malformed(reply, f"valid JSON in its block ({one_line(str(error))[:80]})") from error
    return languages[language], text


def one_word(reply: str, words: Collection[str]) -> str:
    """The word that the reply is, in any case, perhaps quoted or with a full stop.

    Raises:  AskFailed.
    """
    word = proper(reply).strip(" \t\n\"'`*.").lower()
    if word not in words:
        raise malformed(reply, f"one word of {', '.join(words)}")
    return word


def proper(reply: str) -> str:
    """The reply without white space around it, and without what a reasoning model thinks before it.

    Raises:  AskFailed where nothing is left, or too much.
    """
    text = reply.strip()
    if not text or len(text) > MAX_REPLY:
        raise AskFailed(
            f"{'too long a' if text else 'an empty'} reply: {len(text):,} characters, at most {MAX_REPLY:,} are read"
        )
    thinking, _, rest = text.partition("</think>")
    return rest.strip() if thinking.startswith("<think>") and rest.strip() else text


def malformed(reply: str, expected: str) -> AskFailed:
    return AskFailed(f"malformed reply: expected {expected}; found {one_line(reply)[:80]!r}")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)
