"""A row in R1-Onevision's published layout, and as JSON."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from r1ov.common.page import base64_image
from r1ov.data.image import LazyImage
from r1ov.formalize.row import Row


def reply_of(row: Row) -> str:
    return f"<think>{(row.thought or '').strip()}</think>\n<answer>{(row.answer or '').strip()}</answer>"


def conversations(row: Row) -> list[dict[str, str]]:
    """The two turns as R1-Onevision's data has them, but for the answer, which stands in `<answer>` tags."""
    mark = "<image>\n" if row.image else ""
    return [{"from": "human", "value": mark + row.question}, {"from": "assistant", "value": reply_of(row)}]


def published_row(row: Row) -> dict[str, Any]:
    """id, image (base64 of a PNG: upright, RGB, every pixel as the stages saw it; None without a picture) and
    conversations.
    """
    return {
        "id": row.id,
        "image": base64_image(row.image.load()) if row.image else None,
        "conversations": conversations(row),
    }


def row_to_dict(row: Row) -> dict[str, Any]:
    """All of a row but its picture, of which only the size is kept, as JSON can hold it."""
    values = {field.name: getattr(row, field.name) for field in fields(row) if field.name != "image"}
    size = list(row.image.size) if row.image else None
    return {
        **values,
        "image_size": size,
        "truth": dict(row.truth),
        "verdict": dict(row.verdict),
        "notes": list(row.notes),
    }


def row_from_dict(values: Mapping[str, Any], image: LazyImage | None = None) -> Row:
    """The inverse, given the picture.

    Raises:  TypeError for keys that a row has not.
    """
    return Row(
        **{
            **{key: value for key, value in values.items() if key != "image_size"},
            "notes": tuple(values.get("notes", ())),
        },
        image=image,
    )
