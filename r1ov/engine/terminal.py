"""An answer on a terminal as it is thought: in colour the thought is dim and the answer bold."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

DIM, BOLD, RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"
STYLES = {"<think>": DIM, "</think>": RESET, "<answer>": BOLD, "</answer>": RESET}
# Everything but newline and tab that would move the cursor or change the terminal's state.
CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


@dataclass
class Painter:
    """Writes text as it arrives; in colour, styles stand for the tags."""

    out: TextIO
    in_colour: bool
    held: str = ""
    is_open: bool = False
    style: str = RESET

    def __call__(self, piece: str) -> None:
        self.is_open = True
        piece = self.held + piece.translate(CONTROLS)
        if self.in_colour:
            # What may begin a tag waits for the rest of it. (`$` would also match before a last newline.)
            piece, self.held, _ = re.split(r"((?:<[/a-z]{0,8})?)\Z", piece, maxsplit=1)
            piece = re.sub("</?(?:think|answer)>", self._styled, piece)
        self.out.write(piece)
        self.out.flush()

    def _styled(self, tag: re.Match[str]) -> str:
        self.style = STYLES[tag[0]]
        return self.style

    def end(self) -> None:
        """Ends the text, if there was any: nothing stays held back, no style stays on."""
        if self.is_open:
            self.out.write(self.held + RESET * (self.style != RESET) + "\n")
            self.out.flush()


@contextmanager
def painted() -> Iterator[Painter]:
    """A Painter on stdout that leaves the terminal clean however it ends; no colour: NO_COLOR, TERM=dumb."""
    paint = Painter(sys.stdout, not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")
    try:
        yield paint
    finally:
        paint.end()
