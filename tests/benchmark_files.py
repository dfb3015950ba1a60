"""Small files in the five benchmarks' published formats, with the traps that the real ones hold. All rows are
our own.
"""

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def png(shade: int = 0, size: tuple[int, int] = (8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade % 256, shade // 256 % 256, 9)).save(file, "PNG")
    return file.getvalue()


def struct(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    """A picture as `datasets` writes it into parquet."""
    return {"bytes": data, "path": path}


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def tsv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def base64_png(shade: int = 0) -> str:
    return base64.b64encode(png(shade)).decode()


def mathvista(pid: int, question_type: str, answer_type: str, answer: str, **more: Any) -> dict[str, Any]:
    metadata = {
        "task": "figure question answering",
        "skills": ["statistical reasoning"],
        "source": "PlotQA",
        "category": "math-targeted-vqa",
    }
    metadata |= {
        "context": "bar chart",
        "grade": "high school",
        "language": "english",
        "img_width": 8,
        "img_height": 6,
        "split": "testmini",
    }
    return {
        "pid": str(pid),
        "question": "How tall is the bar?",
        "image": f"images/{pid}.png",
        "decoded_image": struct(png(pid)),
        "choices": None,
        "unit": None,
        "precision": None,
        "answer": answer,
        "question_type": question_type,
        "answer_type": answer_type,
        "metadata": metadata | more.pop("metadata", {}),
        "query": "Hint: ...\nQuestion: How tall is the bar?",
    } | more


def mathvision(number: int, answer: str, options: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    return {
        "id": str(number),
        "question": "Which piece fits?\n<image1>",
        "options": list(options),
        "image": f"images/{number}.png",
        "decoded_image": struct(png(number)),
        "answer": answer,
        "solution": None,
        "level": 3,
        "subject": "counting",
    } | more


def mathverse(
    number: int, version: str, answer: str, question_type: str = "free-form", **more: Any
) -> dict[str, Any]:
    metadata = {"split": "testmini", "source": "GeoQA", "subject": "Plane Geometry", "subfield": "Angle"}
    return {
        "sample_index": str(number),
        "problem_index": str(number // 5),
        "problem_version": version,
        "question": "Find the angle.",
        "image": struct(png(number)),
        "answer": answer,
        "question_type": question_type,
        "metadata": metadata | more.pop("metadata", {}),
        "query_wo": "Answer directly. Question: Find the angle.",
        "query_cot": "Reason first. Question: Find the angle.",
        "question_for_eval": "Find the angle.",
    } | more


def wemath(group: str, key: str, answer: str, **more: Any) -> dict[str, Any]:
    return {
        "ID": group,
        "split": "testmini",
        "knowledge concept": "Area of Circles",
        "question": "What is the area?",
        "option": "A. 3 cm; B. 4 cm; C. 5 cm; D. 6 cm; E. No correct answer",
        "answer": answer,
        "image_path": struct(png(1)),
        "key": key,
        "question number": 1,
        "knowledge concept description": "Area of Circles: ...",
    } | more
