"""The five stages on one row: route, describe, reason, role-play, filter. Each returns a new row."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from r1ov.common.files import one_line
from r1ov.common.remote import AskFailed
from r1ov.data.formats.layouts import read_row
from r1ov.data.formats.onevision import clean_reply
from r1ov.data.formats.records import BadRow
from r1ov.formalize.detectors import Unavailable, find_boxes, read_text
from r1ov.formalize.prompt import code_block, json_object, malformed, one_word, prompt, proper
from r1ov.formalize.rows import Row
from r1ov.formalize.rules import GIVE_AWAYS, answer_fault, first_fault

# The kinds of images ("text_only" is without one), with the tags that need no question: the playground's
# families, and the sources of R1-Onevision's data, by their folders' names.
TAGS = {
    "chart": "charts dvqa chart2text vistext robut_wtq chartqa figureqa plotqa",
    "scene": "counting spatial locate clevr visual7w vizwiz vsr llava_cot_100k_natural_scene",
    "text": "text textocr docvqa screen2words",
    "mixed": "ai2d infographicvqa infographic_vqa scienceqa",
    "math": "geometry pattern geo170k geomverse geometry3k intergps raven iconqa",
}
KINDS = tuple(TAGS)
LANGUAGES = ("csv", "json", "mermaid", "plantuml", "spice", "html", "python")  # of a chart's fenced block
FIELDS = {  # of the describer's JSON object, by kind
    "scene": {"caption": str, "objects": list},
    "mixed": {"caption": str, "objects": list, "text": list},
    "math": {"caption": str, "givens": list, "steps": list},
}
PROMPTED = ("question", "gold", "description", "draft", "thought", "answer")
VERDICT = {"correct": bool, "consistent": bool, "grounded": bool, "relevant": bool, "reason": str}


# (role, prompt, image or None, system text) -> the reply of the model that plays the role. Raises: UserError.
Ask = Callable[..., str]


@dataclass(frozen=True)
class Settings:
    """How the stages work. A role without a model falls back on `Row.truth`, or fails the row: nothing is
    made up.
    """

    models: frozenset[str] = frozenset()  # the roles that a model plays
    reasoner_looks: bool = False  # it is r1ov's engine: given image and bare question, and not rewritten
    rounds: int = 1  # of going back to the image, in role-play
    detector: str = "none"  # of boxes: a model for `find_boxes`
    ocr: bool = False


def told(ask: Ask, role: str, name: str, row: Row, **more: str) -> str:
    """Returns the reply to the prompt of that name, which may use what the row knows; the reasoner alone does
    not see the image.
    """
    known = {name: getattr(row, name) or "" for name in PROMPTED}
    text = prompt(name, banned="\n".join(GIVE_AWAYS), **known, **more)
    return ask(role, text, None if role == "reasoner" else row.image, prompt("system"))


def noted(row: Row, note: str, **changes: str) -> Row:
    return replace(row, notes=[*row.notes, note], **changes)


def kind_of_tag(tag: str | None) -> str | None:
    """Returns the kind that a tag names; parentheses, as in "Geometry3K(MathV360K)", do not count."""
    name = (tag or "").partition("(")[0].strip().lower()
    return next((kind for kind, tags in TAGS.items() if name in (kind, *tags.split())), None)


def route(row: Row, ask: Ask, settings: Settings) -> Row:
    """Stage 1: the kind of image, which decides how it is described: from its tag, else as the describer
    sees it.
    """
    if row.image is None:
        return replace(row, kind="text_only")
    if kind := kind_of_tag(row.tag):
        return replace(row, kind=kind)
    if "describer" not in settings.models:
        raise AskFailed(f"the tag {row.tag!r:.60} tells no kind of picture, and there is no describer to ask")
    return replace(row, kind=one_word(told(ask, "describer", "route", row), KINDS))


def describe(row: Row, ask: Ask, settings: Settings) -> Row:
    """Stage 2: the image as a formal description, in the form that suits its kind: by the describer, else the
    one that is known to be true.
    """
    if row.kind == "text_only":
        return row
    if "describer" not in settings.models:
        if "description" not in row.truth:
            raise AskFailed("there is no describer, and no description is known")
        return replace(row, description=row.truth["description"])
    text = "(none)"
    if row.kind in ("text", "mixed") and settings.ocr:
        try:
            text = json.dumps(read_text(row.image.load()), ensure_ascii=False)
        except Unavailable as why:
            row = noted(row, f"no OCR: {why}")
    reply = told(ask, "describer", f"describe_{row.kind}", row, ocr=text)
    if row.kind not in FIELDS:
        return replace(row, description=code_block(reply, LANGUAGES if row.kind == "chart" else ("text",)))
    value = json_object(reply, FIELDS[row.kind])
    if "objects" in value:
        # The describer names the objects, the detector finds them; without a detector no box is made up.
        try:
            value["boxes"] = find_boxes(row.image.load(), value["objects"], settings.detector)
            del value["objects"]
        except Unavailable as why:
            row = noted(row, f"no boxes: {why}")
    return replace(row, description=json.dumps(value, ensure_ascii=False, indent=1))


def reason(row: Row, ask: Ask, settings: Settings) -> Row:
    """Stage 3: a chain of thought and an answer, from the question and the description; without a reasoner,
    those that are known to be right. A wrong answer rejects the row here, because later stages cost money.
    """
    if "reasoner" not in settings.models:
        if "reasoning" not in row.truth:
            raise AskFailed("there is no reasoner, and no reasoning is known")
        return noted(
            row,
            "the thought is the data's own reasoning: there is no reasoner",
            draft=row.truth["reasoning"],
            answer=row.gold,
        )
    if settings.reasoner_looks:
        reply = ask("reasoner", row.question, row.image)
    else:
        reply = told(ask, "reasoner", "reason" if row.image else "reason_text_only", row)
    try:
        # Of two thoughts the first is the model's own, before the one that it was asked for.
        rest = proper(reply)
        cleaned = clean_reply(row.question, rest if rest.startswith("<think>") else reply)
    except (BadRow, AskFailed) as error:
        raise malformed(reply, f"a thought and an answer ({error})") from error
    row = replace(row, draft=cleaned.thought, answer=cleaned.answer)
    if fault := answer_fault(row.answer, row.gold, row.answer_kind):
        return replace(row, outcome="rejected", reason=fault)
    return row


def role_play(row: Row, ask: Ask, settings: Settings) -> Row:
    """Stage 4: the thought over a description becomes that of somebody who looks at the image; each round
    works in what another look adds.

    A draft that never saw a description (the data's own, a looking reasoner's, one without an image) stays as
    it is.
    """

    def rewritten(name: str, **more: str) -> str:
        """Returns the reply, without the think tags that some models put around all they write."""
        text = proper(told(ask, "reasoner", name, row, **more))
        inside = text.removeprefix("<think>").removesuffix("</think>")
        return inside.strip() if len(text) - len(inside) == len("<think></think>") else text

    if row.kind == "text_only":
        return replace(row, thought=row.draft)
    if "reasoner" not in settings.models or settings.reasoner_looks:
        return noted(row, "not rewritten: the thought looks at the picture already", thought=row.draft)
    row = replace(row, thought=rewritten("role_play"))
    for number in range(1, 1 + settings.rounds * ("describer" in settings.models)):
        missing = json_object(told(ask, "describer", "look_again", row), {"missing": list})["missing"]
        if not missing:
            return noted(row, f"looked again: nothing was missing (round {number})")
        row = noted(
            row,
            f"looked again: facts added from the picture, {len(missing)} (round {number})",
            thought=rewritten("add_seen", seen="\n".join(f"- {fact}" for fact in missing)),
        )
    return row


def filter_row(row: Row, ask: Ask, settings: Settings) -> Row:
    """Stage 5: done, or rejected with the first rule that the row breaks, or the first point on which the
    judge says no. Our own rules come first: they cost nothing.
    """
    reply = row.conversations[1]["value"]
    fault = first_fault(row.question, reply, row.gold, row.answer_kind)
    try:  # our own reader may refuse a frame token of a chat template, or a second `<image>`
        read_row({"id": row.id, "image": row.image and "its image", "conversations": row.conversations})
    except BadRow as error:
        fault = fault or f"malformed: {error}"
    row = replace(row, outcome="rejected" if fault else "done", reason=fault, verdict={"by": "rules"})
    if fault or "judge" not in settings.models:
        return row
    verdict = json_object(told(ask, "judge", "judge", row), VERDICT)
    row = replace(row, verdict={"by": "judge", **verdict})
    for point, holds in verdict.items():
        if holds is False:
            return replace(row, outcome="rejected", reason=f"judged not {point}: {verdict['reason'][:200]}")
    return row


STAGES = {
    "route": route,
    "describe": describe,
    "reason": reason,
    "role-play": role_play,
    "filter": filter_row,
}


def formalize(row: Row, ask: Ask, settings: Settings) -> Row:
    """Returns the row after all stages: "done", "rejected" or "failed", never None. A row that has an outcome
    already is not touched.

    A reason begins with the stage: "filter: wrong answer: '4', the gold answer is '5'".

    Raises: what `ask` raises to end the run; then nothing is known of the row.
    """
    name = "read"
    try:
        if row.image and row.outcome is None:
            row.image.load()  # no model is paid for a row whose image cannot be decoded
        for name, stage in STAGES.items():
            if row.outcome is None:
                row = stage(row, ask, settings)
                if row.reason:
                    row = replace(row, reason=one_line(f"{name}: {row.reason}"))
    except (AskFailed, BadRow) as error:
        return replace(row, outcome="failed", reason=one_line(f"{name}: {error}"))
    return row
