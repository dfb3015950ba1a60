"""Stage 4: the thought over a description becomes one of somebody who looks at the picture."""

from dataclasses import replace

from r1ov.formalize.parse import json_object, proper
from r1ov.formalize.phrases import GIVE_AWAYS
from r1ov.formalize.prompt import prompt, system
from r1ov.formalize.row import Ask, Row
from r1ov.formalize.settings import Settings


def role_play(row: Row, ask: Ask, settings: Settings) -> Row:
    """The row with its thought: the draft rewritten, and in each round rewritten again with what a look at
    the picture adds.

    A draft that never saw a description (the data's own, a looking reasoner's, a text without picture) stays
    as it is.
    """
    if row.kind == "text_only":
        return replace(row, thought=row.draft)
    if "reasoner" not in settings.models or settings.reasoner_looks:
        return replace(
            row,
            thought=row.draft,
            notes=(*row.notes, "not rewritten: the thought looks at the picture already"),
        )
    banned = "\n".join(GIVE_AWAYS)
    thought = _rewritten(ask, "role_play", question=row.question, draft=row.draft or "", banned=banned)
    notes: list[str] = []
    for number in range(settings.rounds if "describer" in settings.models else 0):
        reply = ask(
            "describer", prompt("look_again", question=row.question, thought=thought), row.image, system()
        )
        missing = json_object(reply, {"missing": list})["missing"]
        if not missing:
            notes.append(f"looked again: nothing was missing (round {number + 1})")
            break
        notes.append(f"looked again: facts added from the picture, {len(missing)} (round {number + 1})")
        seen = "\n".join(f"- {fact}" for fact in missing)
        thought = _rewritten(
            ask, "add_seen", question=row.question, thought=thought, seen=seen, banned=banned
        )
    return replace(row, thought=thought, notes=(*row.notes, *notes))


def _rewritten(ask: Ask, name: str, **data: str) -> str:
    """The reply, without the think tags that some models put around all they write."""
    text = proper(ask("reasoner", prompt(name, **data), None, system()))
    inside = text.removeprefix("<think>").removesuffix("</think>")
    return inside.strip() if len(text) - len(inside) == len("<think></think>") else text
