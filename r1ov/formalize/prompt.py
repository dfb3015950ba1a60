"""Prompts: plain text files in prompts/, with the row's own texts put in as data."""

import hashlib
from functools import lru_cache
from pathlib import Path
from string import Template

FOLDER = Path(__file__).parent / "prompts"


def prompt(name: str, **data: str) -> str:
    """The text of prompts/`name`.txt with each `$key` replaced by its data, fenced. Nothing inside the data
    is replaced again.

    Raises:  KeyError for a key that the file has and `data` has not.
    """
    return _template(name).substitute({key: fenced(key, value) for key, value in data.items()})


def system() -> str:
    """What every model is told first: data is data."""
    return _template("system").template


def fenced(name: str, text: str) -> str:
    """The text between two lines that it cannot contain, since they hold a hash of it; frame tokens of chat
    templates come apart.

    Example: fenced("question", "How many?") -> '<<question 1a2b3c4d5e6f>>\\nHow many?\\n<</question
        1a2b3c4d5e6f>>'
    """
    text = text.replace("<|", "< |").replace("|>", "| >")
    mark = f"{name} {hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
    return f"<<{mark}>>\n{text}\n<</{mark}>>"


@lru_cache
def _template(name: str) -> Template:
    return Template((FOLDER / f"{name}.txt").read_text(encoding="utf-8").strip())
