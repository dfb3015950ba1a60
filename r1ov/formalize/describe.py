"""Stage 2: the picture as a formal description, in the form that suits its kind."""

import json
from dataclasses import replace

from r1ov.common.remote import AskFailed
from r1ov.formalize.detectors import find_boxes, read_text
from r1ov.formalize.parse import code_block, json_object
from r1ov.formalize.prompt import prompt, system
from r1ov.formalize.row import Ask, Row
from r1ov.formalize.settings import Settings

LANGUAGES = {
    "csv": "CSV",
    "json": "JSON",
    "mermaid": "Mermaid",
    "plantuml": "PlantUML",
    "spice": "SPICE",
    "html": "HTML",
    "python": "Matplotlib",
}
FIELDS = {  # what the describer's JSON object holds, by kind
    "scene": {"caption": str, "objects": list},
    "mixed": {"caption": str, "objects": list, "text": list},
    "math": {"caption": str, "givens": list, "steps": list},
}


def describe(row: Row, ask: Ask, settings: Settings) -> Row:
    """The row with its description: by the describer, else the one that is known to be true. Without a
    picture there is none.
    """
    if row.kind == "text_only":
        return row
    if "describer" not in settings.models:
        if "description" not in row.truth:
            raise AskFailed("there is no describer, and no description is known")
        text = row.truth["description"]
        return replace(row, description=text, description_format="JSON" if text.startswith("{") else "CSV")
    notes: list[str] = []
    ocr = _ocr(row, settings, notes) if row.kind in ("text", "mixed") else ""
    data = {"ocr": ocr} if row.kind in ("text", "mixed") else {}
    reply = ask(
        "describer", prompt(f"describe_{row.kind}", question=row.question, **data), row.image, system()
    )
    if row.kind in FIELDS:
        name, value = "JSON", json_object(reply, FIELDS[row.kind])
        if row.kind != "math":
            value = _with_boxes(value, row, settings, notes)
        text = json.dumps(value, ensure_ascii=False, indent=1)
    else:
        name, text = code_block(reply, LANGUAGES if row.kind == "chart" else {"text": "text"})
    return replace(row, description=text, description_format=name, notes=(*row.notes, *notes))


def _with_boxes(value: dict, row: Row, settings: Settings, notes: list[str]) -> dict:
    """The describer names the objects, the detector says where they are; without it no box is made up."""
    found = find_boxes(row.image.load(), value["objects"], settings.detector)
    if isinstance(found, str):
        notes.append(f"no boxes: {found}")
        return value
    return {**{key: item for key, item in value.items() if key != "objects"}, "boxes": found}


def _ocr(row: Row, settings: Settings, notes: list[str]) -> str:
    found = read_text(row.image.load(), settings.ocr)
    if isinstance(found, str):
        notes.append(f"no OCR: {found}")
        return "(none)"
    return json.dumps(found, ensure_ascii=False)
