"""A reward for reading: is the thought true of the scene? `--reward tests/reading.py:score`

Nobody wrote a thought for the questions of the split "rl", but what is drawn is known, and with it the one
thought that reads all of it in order and concludes from that.
"""

import re
from collections.abc import Mapping

from r1ov.data.playground import invent


def score(prompt: list, completion: str, row: Mapping, info: Mapping) -> float | None:
    """1 for a true thought, else 0; None if the question is not the playground's. The numbers of a box are
    left to the answer's score.
    """
    found = re.fullmatch(r"playground, (\w+), seed (\d+), sample (\d+)", row["where"])
    if not found:
        return None
    _, scene = invent(found[1], int(found[3]), int(found[2]))
    thought, true = completion.partition("<think>")[2].partition("</think>")[0], scene.reasoning
    if scene.kind == "bbox":
        thought, true = (re.sub(r"\d+", "0", text.partition("x ")[0]) for text in (thought, true))
    return float(thought == true)
