"""The five stages on one row: route, describe, reason, role-play, filter."""

from collections.abc import Callable
from dataclasses import replace

from r1ov.common.remote import AskFailed
from r1ov.common.text import one_line
from r1ov.data.formats.records import BadRow
from r1ov.formalize.describe import describe
from r1ov.formalize.filter import filter_row
from r1ov.formalize.reason import reason
from r1ov.formalize.role_play import role_play
from r1ov.formalize.route import route
from r1ov.formalize.row import Ask, Row
from r1ov.formalize.settings import Settings

Stage = Callable[[Row, Ask, Settings], Row]
STAGES: dict[str, Stage] = {
    "route": route,
    "describe": describe,
    "reason": reason,
    "role-play": role_play,
    "filter": filter_row,
}


def formalize(row: Row, ask: Ask, settings: Settings) -> Row:
    """The row after all stages: its outcome is "done", "rejected" or "failed", never None. A row that has one
    already is not touched.

    The reason of one that is not done begins with the stage: "filter: wrong answer: '4', the gold answer is
        '5'".

    Raises:  BudgetSpent, from `ask`; then nothing is known of the row.
    """
    name = "read"
    try:
        if row.image and row.outcome is None:
            row.image.load()  # no model is paid for a row whose picture cannot be decoded
        for name, stage in STAGES.items():
            if row.outcome is None:
                row = stage(row, ask, settings)
                if row.reason:
                    row = replace(row, reason=one_line(f"{name}: {row.reason}"))
    except (AskFailed, BadRow) as error:
        return replace(row, outcome="failed", reason=one_line(f"{name}: {error}"))
    return row
