"""Writes tests/data: a few rows of each format that r1ov.data.formats.records knows, in the shapes their
projects use; all of it invented here.

    python -m tests.make_data [FOLDER]

tests/test_records.py and tests/test_formats.py hold what a person reads in these rows.
"""

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FOLDER = Path(__file__).parent / "data"


def png(colour: str, size: tuple[int, int] = (56, 28)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


RED, BLUE = png("red"), png("blue")


def text(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def url(picture: bytes) -> str:
    return f"data:image/png;base64,{text(picture)}"


def struct(picture: bytes, path: str | None = None) -> dict[str, Any]:
    """As `datasets` writes a picture."""
    return {"bytes": picture, "path": path}


def said(**words: Any) -> list[dict[str, Any]]:
    """{"role", "content"} of each; a role's second turn is written with a _ behind it."""
    return [{"role": role.rstrip("_"), "content": content} for role, content in words.items()]


def spoken(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    """{"from", "value"} of each."""
    return [{"from": name, "value": value} for name, value in pairs]


def verl(
    question: list[dict[str, Any]], gold: str, images: list[bytes], source: str, number: int = 0
) -> dict[str, Any]:
    return {
        "data_source": source,
        "prompt": question,
        "images": [struct(image) for image in images],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": gold},
        "extra_info": {"split": "train", "index": number},
    }


FILES: dict[str, list[dict[str, Any]]] = {
    "r1-onevision.parquet": [  # base64, bare and as a data: URL; its replies come in several layouts
        {
            "id": "ai2d-1",
            "image": text(RED),
            "conversations": spoken(
                (
                    "human",
                    "<image>\nHint: Please answer with the option letter.\nQuestion: Which "
                    "colour?\nChoices:\n(A) blue\n(B) red",
                ),
                ("assistant", "<think>The paper is red all over.</think>\n\nAnswer: B"),
            ),
        },
        {
            "id": "dvqa-2",
            "image": url(BLUE),
            "conversations": spoken(
                ("human", "How many colours are there?"),
                ("assistant", "<think>I see blue and no other. The answer is 1.</think>"),
            ),
        },
    ],
    "sharegpt.json": [  # LLaMA-Factory
        {
            "system": "Look closely.",
            "images": ["red.png", "blue.png"],
            "conversations": spoken(
                ("human", "Compare <image> with <image>."),
                ("gpt", "The first is red."),
                ("human", "And the second?"),
                ("gpt", "Blue."),
            ),
        }
    ],
    "sharegpt-turns.parquet": [  # the same with pictures as bare bytes, in two turns; and without any
        {
            "conversations": spoken(
                ("human", "<image>What colour is this paper?"),
                ("gpt", "<think>All of it is red.</think>\n<answer>red</answer>"),
                ("human", "Now look here. <image>Is it the same?"),
                ("gpt", "<think>This one is blue, the first was red.</think>\n<answer>no</answer>"),
            ),
            "images": [RED, BLUE],
        },
        {
            "conversations": spoken(
                ("human", "Say hello."), ("gpt", "Hello."), ("human", "Again."), ("gpt", "Hello!")
            ),
            "images": [],
        },
    ],
    "messages.json": [  # LLaMA-Factory
        {
            "messages": said(
                user="<image>Which colour?", assistant="<think>It is red.</think>\n<answer>red</answer>"
            ),
            "images": ["red.png"],
        }
    ],
    "alpaca.json": [  # LLaMA-Factory
        {
            "instruction": "Name the colour.",
            "input": "Of the picture.",
            "output": "red",
            "system": "Be brief.",
            "images": ["red.png"],
        }
    ],
    "alpaca-text.jsonl": [  # as Stanford wrote it
        {"instruction": "Add the numbers.", "input": "2, 3", "output": "2 and 3 make 5.\nThe sum is 5."},
        {"instruction": "Name a colour.", "input": "", "output": "Green"},
    ],
    "openai.jsonl": [
        {
            "messages": said(
                system="Be brief.",
                user=[
                    {"type": "image_url", "image_url": {"url": url(RED)}},
                    {"type": "text", "text": "Which colour?"},
                ],
                assistant=[{"type": "text", "text": "red"}],
            )
        },
        {
            "messages": said(
                user=[{"type": "text", "text": "And this?"}, {"type": "image", "image": "blue.png"}],
                assistant="blue",
            )
        },
    ],
    "qwen.json": [  # parts without a type, as Qwen's first releases wrote them; with one, and two turns
        {
            "messages": said(
                user=[{"image": "blue.png"}, {"text": "What is this?"}],
                assistant=[{"text": "A blue "}, {"text": "paper."}],
            )
        },
        {
            "messages": said(
                user=[
                    {"type": "image", "image": text(RED)},
                    {"type": "image", "image": "blue.png"},
                    {"type": "text", "text": "Which is red?"},
                ],
                assistant="The first.",
                user_="Sure?",
                assistant_="Yes.",
            )
        },
    ],
    "trl.jsonl": [
        {
            "prompt": said(user=[{"type": "image"}, {"type": "text", "text": "Which colour?"}]),
            "completion": said(assistant=[{"type": "text", "text": "It is red."}]),
            "images": ["red.png"],
        },
        {"prompt": said(user="What is 2 + 2?"), "solution": "<answer> 4 </answer>"},
        {"prompt": "The sky is", "completion": "blue"},
    ],
    "trl.parquet": [  # a picture without any mark for its place
        {
            "prompt": said(system="Think first.", user="How many colours?"),
            "completion": said(assistant="<think>Red, and that is all.</think><answer>1</answer>"),
            "solution": "1",
            "images": [struct(RED, "red.png")],
        },
        {
            "prompt": said(user="What is 3 + 4?"),
            "completion": said(assistant="It is 7."),
            "solution": "7",
            "images": [],
        },
    ],
    "r1-v.parquet": [
        {"image": struct(RED), "problem": "How many items are there?", "solution": "<answer> 3 </answer>"},
        {
            "image": struct(BLUE, "x.png"),
            "problem": "How many?",
            "solution": "<think>One, two.</think><answer>2</answer>",
        },
    ],
    "vlm-r1.jsonl": [
        {
            "id": 7,
            "image": "red.png",
            "conversations": spoken(("human", "<image>How many items?"), ("gpt", 4.0)),
        },
        {
            "id": 8,
            "image": ["red.png", "blue.png"],
            "accu_reward_method": "yes_no",
            "conversations": spoken(
                ("human", "<image><image>Are they alike?"), ("gpt", "<answer> no </answer>")
            ),
        },
        {"image": "red.png", "problem": "Where is the dot?", "solution": [3, 4, 30, 20.5]},
    ],
    "easyr1.parquet": [
        {"images": [struct(RED)], "problem": "<image>Find x.", "answer": "48"},
        {"images": [], "problem": "What is 6 times 7?", "answer": "42"},
    ],
    "verl.parquet": [verl(said(user="<image>Find x."), "12", [BLUE], "geo3k")],
    "verl-text.jsonl": [
        verl(said(system="Show your work.", user="2 + 2 = ?"), "4", [], "gsm8k"),
        verl(said(user="3 + 3 = ?"), "6", [], "gsm8k", 1),
    ],
    "question.jsonl": [  # GSM8K's and ChartQA's columns
        {"question": "Tom has 3 and 4 apples. How many?", "answer": "3 + 4 = 7 apples.\n#### 7"},
        {"query": "<image>Is it red?", "label": "yes", "image": "red.png", "kind": "yes_no"},
    ],
}


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in {"red.png": RED, "blue.png": BLUE}.items():
        (folder / name).write_bytes(picture)
    for name, rows in FILES.items():
        if name.endswith(".parquet"):
            pq.write_table(
                pa.Table.from_pylist(rows), folder / name, row_group_size=1
            )  # so that rows lie in several groups
            continue
        lines = [json.dumps(row) for row in rows]
        (folder / name).write_text(
            "[\n" + ",\n".join(lines) + "\n]\n" if name.endswith(".json") else "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
