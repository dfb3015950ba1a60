"""Stage 5: our own rules first, which cost nothing, then a judge's verdict."""

from dataclasses import replace

from r1ov.data.formats.records import BadRow, read_row
from r1ov.formalize.layout import conversations, reply_of
from r1ov.formalize.parse import json_object
from r1ov.formalize.prompt import prompt, system
from r1ov.formalize.row import Ask, Row
from r1ov.formalize.rules import Fault, first_fault
from r1ov.formalize.settings import Settings

VERDICT = {"correct": bool, "consistent": bool, "grounded": bool, "relevant": bool, "reason": str}


def filter_row(row: Row, ask: Ask, settings: Settings) -> Row:
    """The row as done, or as rejected with the first rule that it breaks or the first point on which the
    judge says no.
    """
    fault = first_fault(row.question, reply_of(row), row.gold, row.answer_kind) or _unreadable(row)
    if fault:
        return replace(
            row,
            outcome="rejected",
            reason=str(fault),
            verdict={"by": "rules", "rule": fault.rule, "detail": fault.detail},
        )
    if "judge" not in settings.models:
        return replace(row, outcome="done", verdict={"by": "rules"})
    data = {
        "question": row.question,
        "gold": row.gold or "",
        "thought": row.thought or "",
        "answer": row.answer or "",
    }
    verdict = json_object(ask("judge", prompt("judge", **data), row.image, system()), VERDICT)
    row = replace(row, verdict={"by": "judge", **verdict})
    refused = [point for point, kind in VERDICT.items() if kind is bool and not verdict[point]]
    if refused:
        return replace(row, outcome="rejected", reason=f"judged not {refused[0]}: {verdict['reason'][:200]}")
    return replace(row, outcome="done")


def _unreadable(row: Row) -> Fault | None:
    """What our own reader finds wrong with the row as it will be written: frame tokens of a chat template, a
    second `<image>`.
    """
    try:
        read_row(
            {"id": row.id, "image": "its picture" if row.image else None, "conversations": conversations(row)}
        )
    except BadRow as error:
        return Fault("malformed", str(error))
    return None
