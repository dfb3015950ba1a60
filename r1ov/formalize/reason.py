"""Stage 3: a chain of thought and an answer, from the question and the description."""

from dataclasses import replace

from r1ov.common.remote import AskFailed
from r1ov.data.formats.onevision import clean_reply
from r1ov.data.formats.records import BadRow
from r1ov.formalize.parse import malformed, proper
from r1ov.formalize.prompt import prompt, system
from r1ov.formalize.row import Ask, Row
from r1ov.formalize.rules import answer_fault
from r1ov.formalize.settings import Settings


def reason(row: Row, ask: Ask, settings: Settings) -> Row:
    """The row with draft and answer, rejected where the answer is not the gold one: later stages cost money.

    Where the reasoner is wrong, or there is none, a reasoning that is known to be right takes its place, and
    a note says so.
    """
    if "reasoner" not in settings.models:
        if "reasoning" not in row.truth:
            raise AskFailed("there is no reasoner, and no reasoning is known")
        return _known(row, "there is no reasoner")
    if settings.reasoner_looks:
        reply = ask("reasoner", row.question, row.image)
    elif row.kind == "text_only":
        reply = ask("reasoner", prompt("reason_text_only", question=row.question), None, system())
    else:
        data = {"question": row.question, "description": row.description or ""}
        reply = ask("reasoner", prompt("reason", **data), None, system())
    try:
        rest = proper(
            reply
        )  # two thoughts: the first is the model's own, before the one that it was asked for
        cleaned = clean_reply(row.question, rest if rest.startswith("<think>") else reply)
    except (BadRow, AskFailed) as error:
        if "reasoning" in row.truth:
            return _known(row, f"the reasoner's reply cannot be read ({error})")
        raise malformed(reply, f"a thought and an answer ({error})") from error
    tried = replace(row, draft=cleaned.thought, answer=cleaned.answer)
    fault = answer_fault(tried.answer, row.gold, row.answer_kind)
    if fault is None:
        return tried
    if "reasoning" in row.truth:
        return _known(row, f"the reasoner's answer was {cleaned.answer[:60]!r}")
    return replace(tried, outcome="rejected", reason=str(fault))


def _known(row: Row, why: str) -> Row:
    note = f"the thought is the data's own reasoning: {why}"
    return replace(row, draft=row.truth["reasoning"], answer=row.gold, notes=(*row.notes, note))
