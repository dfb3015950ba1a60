"""The five stages on one row: route, describe, reason, role-play, filter."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from r1ov.formalize.row import Ask, Role, Row


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the stages work. A role without a model falls back on `Row.truth`, or fails the row: nothing is made up."""

    models: frozenset[Role] = frozenset()  # the roles that a model plays
    reasoner_looks: bool = False  # the reasoner is r1ov's engine: it is asked with picture and bare question, and no rewriting follows
    rounds: int = 1  # of going back to the picture, in role-play
    detector: str | None = "IDEA-Research/grounding-dino-tiny"  # for boxes, where transformers is installed; None: no boxes
    ocr: str | None = "en"  # EasyOCR's languages, separated by commas, where it is installed; None: no OCR


Stage = Callable[[Row, Ask, Settings], Row]
NAMES = ("read", "route", "describe", "reason", "role-play", "filter")  # a reason begins with the stage: "filter: wrong answer: ..."


def formalize(row: Row, ask: Ask, settings: Settings) -> Row:
    """The row after all stages: its outcome is "done", "rejected" or "failed", never None. A row that has one already is not touched.

    Raises:  BudgetSpent, from `ask`; then nothing is known of the row.
    """
    return row if row.outcome else replace(row, outcome="failed", reason="route: not written yet")
