"""What models are told and what they reply: prompts from plain text files, and replies read strictly. A reply
that is not in the form asked for is no answer, and never a guess.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from string import Template

from r1ov.common.files import one_line
from r1ov.common.remote import AskFailed

FOLDER = Path(__file__).parent / "prompts"
_BLOCK = r"(?s)```([\w+-]*)[ \t]*\n(.*?)\n?```"


def prompt(name: str, **data: str) -> str:
    """Returns the text of prompts/`name`.txt with each `$key` replaced by its data, fenced. Nothing inside
    the data is replaced again.

    Raises: KeyError for a key that the file has and `data` has not.
    """
    text = (FOLDER / f"{name}.txt").read_text("utf-8").strip()
    return Template(text).substitute({key: fenced(key, value) for key, value in data.items()})


def fenced(name: str, text: str) -> str:
    """Returns the text between two lines that it cannot contain, since they hold a hash of it; the frame
    tokens of chat templates come apart.

    Example: fenced("question", "Why?") -> '<<question 1a2b3c4d5e6f>>\\nWhy?\\n<</question 1a2b3c4d5e6f>>'
    """
    text = text.replace("<|", "< |").replace("|>", "| >")
    mark = f"{name} {hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
    return f"<<{mark}>>\n{text}\n<</{mark}>>"


def json_object(reply: str, keys: Mapping[str, type]) -> dict:
    """Returns the one JSON object that the reply is, alone or as one fenced block, with exactly these keys
    and types (list: of texts).

    Raises: AskFailed.
    """
    text = proper(reply)
    if match := re.fullmatch(_BLOCK, text):
        text = match[2]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise malformed(reply, f"one JSON object ({one_line(str(error))[:80]})") from error
    if not (
        isinstance(value, dict)
        and {key: type(item) for key, item in value.items()} == keys
        and all(isinstance(item, str) for key in keys if keys[key] is list for item in value[key])
    ):
        names = {list: "a list of texts", bool: "true or false", str: "a text"}
        form = ", ".join(f"{key}: {names[kind]}" for key, kind in keys.items())
        raise malformed(reply, f"a JSON object with {form}")
    return value


def code_block(reply: str, languages: Collection[str]) -> str:
    """Returns the text of the reply's only fenced block, in one of the languages; it is kept and never run.

    Raises: AskFailed.
    """
    blocks = re.findall(_BLOCK, proper(reply))
    if len(blocks) != 1 or not blocks[0][1].strip() or blocks[0][0].lower() not in languages:
        raise malformed(reply, f"one fenced block of {', '.join(languages)}")
    return blocks[0][1].strip()


def one_word(reply: str, words: Collection[str]) -> str:
    """Returns the word that the reply is, whatever its case, quotes and full stop. Raises: AskFailed."""
    word = proper(reply).strip(" \t\n\"'`*.").lower()
    if word not in words:
        raise malformed(reply, f"one word of {', '.join(words)}")
    return word


def proper(reply: str) -> str:
    """Returns the reply without white space around it, and without the thoughts of a reasoning model before
    it.

    Raises: AskFailed if nothing is there.
    """
    text = reply.strip()
    if not text:
        raise AskFailed("an empty reply")
    thinking, _, rest = text.partition("</think>")
    return rest.strip() if thinking.startswith("<think>") and rest.strip() else text


def malformed(reply: str, expected: str) -> AskFailed:
    return AskFailed(f"malformed reply: expected {expected}; found {one_line(reply)[:80]!r}")
