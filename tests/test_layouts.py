"""r1ov.data.formats.layouts: each column of a row is read, or refused by its name, or listed as unread.

PUBLIC holds the columns of published data sets and tools; the rows in them are invented here.
"""

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from r1ov.data.__main__ import LookConfig, look
from r1ov.data.formats.columns import MEANING, NAMES
from r1ov.data.formats.files import find_files
from r1ov.data.formats.layouts import read_row
from r1ov.data.formats.pictures import lazy_picture
from r1ov.data.formats.reader import Reader, open_data
from r1ov.data.formats.records import BadRow, Record
from r1ov.data.formats.rows import open_rows
from r1ov.data.messages import split_images
from r1ov.data.processor import IGNORED
from r1ov.errors import UserError
from r1ov.evaluate.rows import own_row
from r1ov.folder.pretrained import read_processor, resolve
from r1ov.reward.accuracy import kind_of
from r1ov.reward.rules.boxes import read_boxes
from r1ov.train.run.config import SFTConfig
from r1ov.train.sft import train
from tests.make_data import BLUE, RED, said, spoken, struct, text, url

DATA = Path(__file__).parent / "data"
ASKED = "Which colour is it?"
SWIFT = "https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html"
HUB = "https://huggingface.co/datasets/"
COLOURS = "Which colour is it?\n(A) red\n(B) blue"
DIALOGUE = spoken(("human", f"<image>\n{ASKED}"), ("gpt", "Red."))


def shown(record: Record) -> list[str]:
    """The texts of the messages, `[]` in the place of an image."""
    return [
        content
        if isinstance(content := message["content"], str)
        else "".join("[]" if part["type"] == "image" else part["text"] for part in content)
        for message in record.messages
    ]


def opened(row: dict) -> list:
    return [lazy_picture(image, DATA, DATA) for image in read_row(row).images]


# source -> a row, its messages, its gold answer and what is not read; or the reason why it is refused
PUBLIC: dict[str, tuple] = {
    "https://github.com/tulerfeng/Video-R1 Video-R1-260k.json, an image": (
        {
            "problem_id": 1,
            "problem": ASKED,
            "data_type": "image",
            "problem_type": "multiple choice",
            "options": ["A. red", "B. blue"],
            "solution": "<answer>A</answer>",
            "path": "./red.png",
            "data_source": "x",
        },
        ["[]" + COLOURS],
        "A",
        {"problem_id", "data_type", "problem_type", "data_source"},
    ),
    f"{HUB}yifanzhang114/R1-Reward-RL, as OpenRLHF-M": (
        {
            "question": ASKED,
            "message": json.dumps(
                said(
                    system="Think.",
                    user=[{"type": "image", "image": "red.png"}, {"type": "text", "text": ASKED}],
                )
            ),
            "answer": ["red"],
            "image": "red.png",
        },
        ["Think.", "[]" + ASKED],
        "red",
        {"question"},
    ),
    f"{HUB}derek-thomas/ScienceQA": (
        {
            "image": struct(RED),
            "question": ASKED,
            "choices": ["blue", "red"],
            "answer": 1,
            "hint": "Look at the paper.",
            "task": "closed choice",
            "grade": "grade2",
            "subject": "natural science",
            "topic": "physics",
            "category": "Materials",
            "skill": "Identify colours",
            "lecture": "Colours have names.",
            "solution": "The paper is red.",
        },
        ["[]Look at the paper.\nWhich colour is it?\n(A) blue\n(B) red"],
        "B",
        {"task", "grade", "subject", "topic", "category", "skill", "lecture", "solution"},
    ),
    f"{HUB}TheMrguiller/ScienceQA": (
        {
            "image": struct(RED),
            "question": ASKED,
            "choices": "['red', 'blue']",
            "answer": "red",
            "solution": "s",
            "CTH": True,
        },
        ["[]" + COLOURS],
        "A",
        {"solution", "cth"},
    ),
    f"{HUB}lmms-lab/MMMU": (
        {
            "id": "validation_Art_1",
            "question": "Is <image 1> like <image 2>?",
            "options": "['yes', 'no']",
            "explanation": "",
            "image_1": struct(RED),
            "image_2": struct(BLUE),
            "image_3": None,
            "img_type": "['Paintings']",
            "answer": "B",
            "question_type": "multiple-choice",
        },
        ["Is [] like []?\n(A) yes\n(B) no"],
        "B",
        {"img_type", "question_type"},
    ),
    f"{HUB}lmms-lab/MMMU, options that are images": (
        {
            "question": "Which is red?",
            "options": "['<image 1>', '<image 2>']",
            "image_1": struct(RED),
            "image_2": struct(BLUE),
            "answer": "A",
        },
        ["Which is red?\n(A) []\n(B) []"],
        "A",
        set(),
    ),
    f"{HUB}WalidBouss/MMMU_Pro_subset": (
        {"id": "x", "image": struct(RED), "options": ["red", "blue"], "answer": "A", "subject": "Art"},
        "the format is not known",
    ),
    f"{HUB}HuggingFaceM4/MMBench": (
        {
            "index": 7,
            "question": ASKED,
            "hint": "nan",
            "A": "red",
            "B": "blue",
            "C": "nan",
            "D": "nan",
            "answer": "A",
            "category": "attribute",
            "image": text(RED),
            "l2-category": "fine",
            "split": "dev",
        },
        ["[]" + COLOURS],
        "A",
        {"category", "l2-category", "split"},
    ),
    f"{HUB}HuggingFaceM4/the_cauldron": (
        {
            "images": [struct(RED)],
            "texts": [
                {"user": ASKED, "assistant": "Red.", "source": "x"},
                {"user": "Sure?", "assistant": "Yes.", "source": "x"},
            ],
        },
        ["[]" + ASKED, "Red.", "Sure?", "Yes."],
        "Yes.",
        {"messages.source"},
    ),
    f"{HUB}lmms-lab/LLaVA-ReCap-CC3M": (
        {"id": "1", "image": struct(RED), "conversations": DIALOGUE, "data_source": "cc3m"},
        ["[]" + ASKED, "Red."],
        "Red.",
        {"data_source"},
    ),
    f"{HUB}TIGER-Lab/llava-data": (
        {
            "id": "1",
            "images": [struct(RED)],
            "conversation": said(user=f"<image>{ASKED}", assistant="Red."),
            "source": "x",
        },
        ["[]" + ASKED, "Red."],
        "Red.",
        {"source"},
    ),
    f"{HUB}taesiri/video-game-question-answering-mixtral-8x7b-instruct-v0-1": (
        {"id": "1", "image": "red.png", "conversations": json.dumps(DIALOGUE), "model": "m"},
        ["[]" + ASKED, "Red."],
        "Red.",
        {"model"},
    ),
    "https://huggingface.co/AImused/omeg15/blob/main/finetune/readme.md MiniCPM-V, several images": (
        {
            "id": "0",
            "image": {"<image_00>": "red.png", "<image_01>": "blue.png"},
            "conversations": said(user="Compare <image_00> and <image_01>.", assistant="They differ."),
        },
        ["Compare [] and [].", "They differ."],
        "They differ.",
        set(),
    ),
    "https://github.com/mu-cai/ViP-LLaVA/blob/main/docs/Finetune_Custom_Data.md": (
        {
            "id": "0",
            "image": "red.png",
            "bboxes": [[1, 2, 3, 4]],
            "conversations": spoken(("human", "<image>What is in <bbox0>?"), ("gpt", "Red.")),
        },
        "a text has a place that nothing fills: <bbox0>",
    ),
    "https://github.com/QwenLM/Qwen-VL finetuning data": (
        {
            "id": "0",
            "conversations": spoken(
                ("user", f"Picture 1: <img>red.png</img>\n{ASKED}"), ("assistant", "Red.")
            ),
        },
        "a text has a place that nothing fills: <img>",
    ),
    "https://docs.together.ai/docs/fine-tuning/vision": (
        {
            "messages": said(
                system=[{"type": "text", "text": "S."}],
                user=[{"type": "text", "text": ASKED}, {"type": "image_url", "image_url": {"url": url(RED)}}],
                assistant="Red.",
            )
        },
        ["S.", ASKED + "[]", "Red."],
        "Red.",
        set(),
    ),
    f"{SWIFT} messages and solution, for GRPO": (
        {"messages": said(user=f"<image>{ASKED}"), "images": ["red.png"], "solution": "red"},
        ["[]" + ASKED],
        "red",
        set(),
    ),
    f"{SWIFT} grounding": (
        {
            "messages": said(user="<image>Find the <ref-object>.", assistant="<bbox>"),
            "images": ["red.png"],
            "objects": {"ref": ["dot"], "bbox": [[1, 2, 3, 4]]},
        },
        "a text has a place that nothing fills: <ref-object>",
    ),
    f"{SWIFT} query and response": (
        {
            "query": f"<image>{ASKED}",
            "response": "Red.",
            "images": ["red.png"],
            "system": "S.",
        },
        ["S.", "[]" + ASKED, "Red."],
        "Red.",
        set(),
    ),
    f"{SWIFT} query and response, with turns before": (
        {"query": ASKED, "response": "Red.", "history": [["Hi", "Hello."]]},
        "the column history holds earlier turns, which is not used",
    ),
    "https://github.com/modelscope/ms-swift/pull/2607 sharegpt": (
        {"system": "S.", "conversation": [{"human": ASKED, "assistant": "Red."}]},
        ["S.", ASKED, "Red."],
        "Red.",
        set(),
    ),
    "https://github.com/modelscope/ms-swift/pull/2607 rejected_response": (
        {"messages": said(user=ASKED, assistant="Red."), "rejected_response": "Blue."},
        "the column rejected_response holds half of a preference pair",
    ),
    f"{HUB}HuggingFaceH4/rlaif-v_formatted": (
        {
            "prompt": said(user=ASKED),
            "chosen": said(assistant="Red."),
            "rejected": said(assistant="Blue."),
            "images": [struct(RED)],
        },
        "half of a preference pair",
    ),
    f"{HUB}hamishivi/SimpleQA-RLVR": (
        {"messages": said(user=ASKED), "ground_truth": "red", "dataset": "simpleqa"},
        [ASKED],
        "red",
        {"dataset"},
    ),
    f"{HUB}VLM-Perception/RVL-CDIP": (
        {
            "image": struct(RED),
            "messages": json.dumps(said(user=f"<image>{ASKED}")),
            "answer": "red",
            "meta_info": {"id": "1"},
        },
        ["[]" + ASKED],
        "red",
        {"meta_info"},
    ),
    f"{HUB}sionic-ai/refcocog_object_detection": (
        {
            "image": struct(RED),
            "question": "[detect] the red dot",
            "answer": "<bbox>[100, 200, 400, 500]</bbox>",  # of 1000
            "image_path": "train_1.jpg",
        },
        ["[][detect] the red dot"],
        "<bbox>[100, 200, 400, 500]</bbox>",
        {"image_path"},
    ),
    f"{HUB}rishuKumar404/vqa_rad_cot_dataset": (
        {
            "sample_id": 1,
            "image": struct(RED),
            "question": ASKED,
            "ground_truth_answer": "red",
            "generated_reasoning": "It is.",
        },
        ["[]" + ASKED],
        "red",
        {"sample_id", "generated_reasoning"},
    ),
    f"{HUB}thomasgauthier/okvqa": (
        {
            "image": struct(RED),
            "question": ASKED,
            "answers": [{"answer": "red", "raw_answer": "red"}],
            "image_id": 7,
        },
        ["[]" + ASKED],
        None,
        {"answers", "image_id"},
    ),
    f"{HUB}HuggingFaceM4/A-OKVQA": (
        {
            "image": struct(RED),
            "question_id": "x",
            "question": ASKED,
            "choices": ["red", "blue"],
            "correct_choice_idx": 0,
            "direct_answers": "['red', 'red', 'crimson']",
            "difficult_direct_answer": False,
            "rationales": ["r"],
        },
        ["[]" + COLOURS],
        "A",
        {"question_id", "direct_answers", "difficult_direct_answer", "rationales"},
    ),
    "https://huggingface.co/datasets/lmms-lab/multimodal-open-r1-8k-verified": (
        {
            "image": struct(RED),
            "problem": ASKED,
            "solution": "<think>It is red.</think>\n<answer>red</answer>",
            "original_question": ASKED,
            "original_answer": "Red.",
        },
        ["[]" + ASKED, "<think>It is red.</think>\n<answer>red</answer>"],
        "red",
        {"original_question", "original_answer"},
    ),
    "https://github.com/waybarrios/VLM-R1/blob/main/VQA_TRAINING.md": (
        {
            "image": struct(RED),
            "question": ASKED,
            "answer": "red",
            "reference_steps": ["Look."],
            "choices": ["red", "blue"],
            "options": [],
            "source": "textvqa",
        },
        ["[]" + COLOURS],
        "A",
        {"reference_steps", "source"},
    ),
    "https://github.com/STARE-bench/STARE": (
        {
            "pid": "math_1",
            "question": "Is <image> like <image>?",
            "answer": "no",
            "images": ["red.png", "blue.png"],
            "other_info": "none",
            "category": "2D",
        },
        ["Is [] like []?"],
        "no",
        {"pid", "other_info", "category"},
    ),
    "https://github.com/haotian-liu/LLaVA docs/Finetune_Custom_Data.md": (
        {"id": "1", "image": "red.png", "conversations": DIALOGUE},
        ["[]" + ASKED, "Red."],
        "Red.",
        set(),
    ),
    "https://github.com/inclusionAI/AReaL longvideo_reason.py": (
        {"problem": ASKED, "reasoning": "r", "videos": "x.mp4", "answer": "red"},
        "the column videos holds a video",
    ),
    "https://github.com/CodeKnight314/QwenMem SpaceR-151k, a video": (
        {
            "problem": ASKED,
            "solution": "<answer>A</answer>",
            "path": "x.mp4",
            "options": ["A. red", "B. blue"],
            "problem_type": "multiple choice",
        },
        "a picture's file is missing",
    ),
    "https://roboflow.github.io/maestro JSONL of image, prefix and suffix": (
        {"image": "red.png", "prefix": ASKED, "suffix": "Red."},
        ["[]" + ASKED, "Red."],
        "Red.",
        set(),
    ),
    "https://huggingface.co/datasets/databricks/databricks-dolly-15k": (
        {
            "instruction": "Sum it up.",
            "context": "A long text.",
            "response": "Short.",
            "category": "summarization",
        },
        ["A long text.\nSum it up.", "Short."],
        "Short.",
        {"category"},
    ),
}


# Where the columns of some were looked up once more, on 29 November 2026.
SEEN = {
    f"{HUB}derek-thomas/ScienceQA": "its card's dataset_info",
    f"{HUB}HuggingFaceM4/the_cauldron": "its card's dataset_info, e26e020",
    f"{HUB}lmms-lab/MMMU": "a script that loads lmms-lab/MMMU from ModelScope",
    "https://github.com/QwenLM/Qwen-VL finetuning data": "README.md 03c5f17, Data preparation",
    "https://docs.together.ai/docs/fine-tuning/vision": "that page, conversational format",
    f"{SWIFT} messages and solution, for GRPO": "that page: the keys that it takes",
    f"{SWIFT} grounding": "that page: the keys that it takes",
    "https://github.com/modelscope/ms-swift/pull/2607 sharegpt": "its diff of the Chinese page",
    "https://github.com/modelscope/ms-swift/pull/2607 rejected_response": "its diff of the Chinese page",
    "https://github.com/waybarrios/VLM-R1/blob/main/VQA_TRAINING.md": "that file, 5e5af85",
    "https://github.com/CodeKnight314/QwenMem SpaceR-151k, a video": "prepare_SpaceR.py",
    "https://github.com/STARE-bench/STARE": "README.md, Data Format",
    "https://github.com/haotian-liu/LLaVA docs/Finetune_Custom_Data.md": "a description of that file",
    "https://github.com/tulerfeng/Video-R1 Video-R1-260k.json, an image": "its data's card",
    f"{HUB}yifanzhang114/R1-Reward-RL, as OpenRLHF-M": "its card's dataset_info",
    f"{HUB}lmms-lab/MMMU, options that are images": "mm-eval's metadata of MMMU",
    f"{HUB}HuggingFaceM4/A-OKVQA": "a script that prints a row",
    f"{HUB}HuggingFaceM4/MMBench": "a reader of question, hint, A to D, answer, image in base64, index",
    f"{HUB}HuggingFaceH4/rlaif-v_formatted": "TRL's page on DPO of vision models, which prints a row",
    f"{HUB}hamishivi/SimpleQA-RLVR": "the script that made it",
    f"{HUB}sionic-ai/refcocog_object_detection": "the tests of a reader of it; the row was wrong before",
    f"{HUB}TIGER-Lab/llava-data": "ms-swift's reader of it",
    f"{HUB}lmms-lab/LLaVA-ReCap-CC3M": "a script that reads id, image, conversations",
    "https://huggingface.co/datasets/lmms-lab/multimodal-open-r1-8k-verified": "a script that reads all five",
    "https://huggingface.co/datasets/databricks/databricks-dolly-15k": "a test of a reader of it",
    "https://github.com/inclusionAI/AReaL longvideo_reason.py": "that file's docstring",
    f"{SWIFT} query and response": "ms-swift's pages on models",
    f"{SWIFT} query and response, with turns before": "ms-swift's pages on models",
    "https://github.com/mu-cai/ViP-LLaVA/blob/main/docs/Finetune_Custom_Data.md": "readers of image, bboxes, "
    "conversations; not of <bbox0>",
}
# Looked for in vain on that day: TheMrguiller/ScienceQA, WalidBouss/MMMU_Pro_subset, taesiri's,
# AImused/omeg15, VLM-Perception/RVL-CDIP, vqa_rad_cot_dataset, thomasgauthier/okvqa, maestro's columns.


@pytest.mark.parametrize("source", PUBLIC)
def test_a_published_layout_is_read_as_a_person_reads_it_or_refused_by_name(source, tmp_path):
    assert SEEN.keys() <= PUBLIC.keys()
    row, *expected = PUBLIC[source]
    if len(expected) == 1:
        with pytest.raises(BadRow, match=re.escape(expected[0])):
            opened(row)
        return
    record = read_row(row)
    assert [shown(record), record.solution, set(record.unread)] == expected


# A word planted in every column is in the record, or its column is listed, or the row is refused.

MORE = (
    "source",
    "difficulty",
    "metadata",
    "Caption",
    "image_source",
    "mask",
    "left_image",
    "scan",
    "option_a",
    "b",
)


def planted(rng: random.Random, name: str, words: list[str]) -> object:
    """A value such as a column of this name has, or may have by mistake, with words of its own."""

    def word(form: str = "{}") -> str:
        words.append(f"w{len(words)}w")
        return form.format(words[-1])

    def message(role: str) -> dict:
        way = rng.random()
        content = word() if way < 0.5 else [{"type": "text", "text": word()}]
        if role == "user" and way > 0.8:
            url = {"url": word("{}.png"), "detail": word("d{}")}
            content.insert(0, {"type": "image_url", "image_url": url})
        said = {"role": role, "content": content} if rng.random() < 0.5 else {"from": role, "value": content}
        if rng.random() < 0.2:
            said[rng.choice(("name", "reasoning_content", "weight", "thumbnail"))] = word()
        return said

    meaning = MEANING.get(name)
    if meaning == "conversation" or (meaning == "prompt" and rng.random() < 0.5):
        turns = [message("user"), *([message("assistant")] if rng.random() < 0.5 else [])]
        return json.dumps(turns) if rng.random() < 0.3 else turns
    forms = {
        "text": lambda: word(),
        "texts": lambda: [word(), word()],
        "pair": lambda: [[word(), word()]],
        "path": lambda: word("{}.png"),
        "paths": lambda: [word("{}.png")],
        "struct": lambda: {"path": word("{}.png"), "bytes": None},
        "video": lambda: word("{}.mp4"),
        "number": lambda: rng.choice((0, 1, 0.5)),
        "objects": lambda: {"ref": [word()], "bbox": [[1, 2, 3, 4]]},
        "nested": lambda: {"of": [{"note": word(), "number": 3}, [word()]]},
        "nested image": lambda: {"of": [{"file": word("{}.png"), "note": word()}]},
        "dialogue": lambda: said(user=word(), assistant=word()),
        "labelled": lambda: [{"label": label, "text": word()} for label in "AB"],
        "numbered": lambda: [{"label": label, "text": word(), "why": word()} for label in "12"],
    }
    for form in ("texts", "paths", "struct", "objects", "nested", "nested image", "dialogue"):
        forms[f"{form} as JSON"] = lambda form=form: json.dumps(forms[form]())
    usual = {
        "earlier turns": ["pair"],
        "choices": ["texts", "labelled", "numbered"],
        "weight": ["number"],
        "a video": ["video"],
        "boxes": ["objects"],
    }
    usual = usual.get(
        meaning, ["path", "paths", "struct"] if "im" in name or name in ("mask", "scan") else ["text"]
    )
    return forms[rng.choice(usual if rng.random() < 0.8 else list(forms))]()


@pytest.mark.parametrize("seed", range(20))
def test_a_word_planted_in_any_column_is_used_listed_or_refused(seed):
    rng = random.Random(seed)
    asking = [name for meaning in ("conversation", "prompt", "question") for name in NAMES[meaning].split()]
    every = [*MEANING, *MORE]
    accepted = 0
    for _ in range(500):
        row, where = {}, {}
        for name in {rng.choice(asking), *rng.sample(every, rng.randrange(5))}:
            words = list(where)
            row[name] = planted(rng, name, words)
            where |= dict.fromkeys(words[len(where) :], name)
        try:
            record = read_row(row)
        except BadRow:
            continue
        accepted += 1
        kept = repr((record.messages, record.solution, record.kind, record.id))
        for word, name in where.items():
            is_key = f"messages.{'thumbnail' if 'thumbnail' in repr(row[name]) else 'name'}" in record.unread
            is_key |= f"d{word}" in repr(row[name]) and "messages.image_url.detail" in record.unread
            # An image is used, or the row refused: listing its column is not enough.
            is_listed = name.lower() in record.unread and f"{word}.png" not in repr(row[name])
            assert word in kept or is_listed or is_key, f"{word} in {row}: {record}"
        if record.solution is None:
            continue
        fields = own_row(row)
        kept = repr([fields[name] for name in fields if name != "unread"]) + repr(record.reply)
        for word, name in where.items():
            listed = {name.lower(), "messages.name", "messages.thumbnail", "messages.image_url.detail"}
            assert word in kept or listed & {*fields["unread"]}, row
    assert accepted > 50


# The siblings of these layouts: names, series, forms.


@pytest.mark.parametrize(
    "name", ["path", "img", "images", "picture", "image_path", "IMG_URL", "screenshot", "photos", "file_name"]
)
def test_an_image_is_read_under_any_of_its_names(name):
    record = read_row({"question": ASKED, "answer": "red", name: "red.png"})
    assert record.images == ["red.png"]
    assert read_row({"question": ASKED, "answer": "red", name: [struct(RED)]}).images == [struct(RED)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "a.png", "mask": "b.png"}, "the column mask holds an image or video"),
        ({"before_image": "a.png", "after_image": "b.png"}, "the column after_image holds an image or video"),
        ({"image": struct(RED), "edited": struct(BLUE)}, "the column edited holds an image or video"),
        ({"image_id": 7}, "the column image_id holds an image or video"),
        ({"num_images": 2}, "the column num_images"),
        ({"clip": "a.mp4"}, "the column clip holds an image or video"),
        ({"image": "a.png", "bbox": [1, 2, 3, 4]}, "the column bbox holds boxes"),
        ({"tools": [{"name": "f"}]}, "the column tools holds tool calls"),
        (
            {
                "images": ["red.png", "blue.png"],
                "messages": [{"role": "user", "content": [{"type": "image", "index": n} for n in (1, 0)]}],
                "question": None,
            },
            "take the row's pictures out of order",
        ),
        ({"options": 3}, "the choices are in no form that is known"),
        ({"options": "['red' 'blue']"}, "the choices are in no form that is known"),  # as numpy prints them
        ({"options": ["red"]}, "the choices are in no form that is known"),
        ({"options": ["a.png", "b.png"]}, "the choices are in no form that is known"),
        ({"options": ["red", "blue"], "answer": 2}, "the gold answer is not one of the choices"),
        ({"options": ["1", "2", "3"], "answer": 1}, "the gold answer is not one of the choices"),
        ({"options": ["red", "blue"], "answer": "green"}, "the gold answer is not one of the choices"),
        ({"question": "<video>What happens?"}, "a text has a place that nothing fills: <video>"),
        ({"question": "<image>?", "images": []}, "the number of pictures differs"),
        ({"question": "<bbox>?", "objects": {"ref": []}}, "a place that nothing fills: <bbox>"),
        ({"question": "?", "objects": {"ref": ["dot"], "bbox": [[1, 2]]}}, "the column objects holds boxes"),
        ({"data": [{"question": ASKED}], "question": None}, "the row is a list of rows: in its data"),
        ({"question": None, "messages": said(user="x"), "hint": "h"}, "the column hint holds hint"),
        (
            {"question": None, "messages": [{"role": "user", "content": "x", "images": ["a.png"]}]},
            "the column images holds an image",
        ),
        (
            {"messages": [*said(user="x"), {"role": "assistant", "content": "y", "reasoning_content": "z"}]},
            "a thought",
        ),
        (
            {"messages": [*said(user="x"), {"role": "assistant", "content": "y", "weight": 0.5}]},
            "neither 0 nor 1",
        ),
        (
            {
                "messages": said(user=[{"type": "image", "image": "a.png"}, {"type": "text", "text": "x"}]),
                "image": "b.png",
            },
            "other pictures",
        ),
        ({"weight": 0}, "the column weight holds weight"),
        ({"train": False}, "the column train holds weight"),
        ({"question": None, "prompt": "x", "completion": "y", "label": False, "answer": None}, "a bad reply"),
        ({"messages": [*said(user="x"), {"role": "assistant", "content": "y", "masked": True}]}, "masked"),
        ({"messages": [*said(user="x"), {"role": "assistant", "content": "y", "thinking": "z"}]}, "thinking"),
        ({"extra": {"images": ["a.png"]}}, "the column extra holds an image or video"),
        ({"image": "a.png", "meta": json.dumps({"clip": ["b.mp4"]})}, "the column meta holds an image"),
        ({"talk": said(user="x", assistant="y")}, "the column talk holds a conversation"),
        ({"talk": json.dumps(said(user="x", assistant="y"))}, "the column talk holds a conversation"),
        ({"prompt": '[{"content": "x", "role": "user"', "question": None}, "the messages are in no form"),
        ({"question": json.dumps({"messages": said(user="x")})}, "the messages are in no form"),
        ({"choices_zh": ["a", "b"]}, "the column choices_zh holds choices"),
        ({"distractor1": "blue"}, "the column distractor1 holds wrong choices"),
        ({"options": [{"text": "x"}, "y"]}, "the choices are in no form"),
        ({"options": {"label": ["A"], "text": ["x", "y"]}}, "the choices are in no form"),
        (
            {"options": [{"label": "B", "text": "x"}, {"label": "A", "text": "y"}]},
            "the choices are in no form",
        ),
        ({"options": [{"label": "A", "text": "x", "why": "z"}]}, "the choices are in no form"),
        ({"options": {"label": ["A", "B"], "text": ["x", "y"], "why": ["z"]}}, "the choices are in no form"),
        ({"options": {"first": "x", "second": "y"}}, "the choices are in no form"),
        ({"options": {"1": "2", "2": "1"}, "answer": 1}, "the gold answer is not one of the choices"),
        ({"options": ["1. red", "2. blue"], "answer": None, "response": "2"}, "choices beside a reply"),
        ({"options": {"B": "x", "A": "y"}}, "the choices are in no form"),
        ({"options": {"label": ["B", "A"], "text": ["x", "y"]}}, "the choices are in no form"),
        ({"option_1": "red", "option_3": "blue"}, "the column option_1 holds choices"),
        ({"option_1": "red", "option_2": "blue", "answer": 3}, "the gold answer is not one of the choices"),
        ({"ending1": "red", "ending3": "blue"}, "the column ending1 holds choices"),
        ({"box_unit": "permille"}, "the column box_unit holds a unit of boxes that is not known"),
        ({"gt_bbox": [1, 2, 3, 4]}, "the column gt_bbox holds boxes"),
        ({"question": "<VIDEO>?"}, "nothing fills: <VIDEO>"),
        ({"question": "<audio_1>?"}, "nothing fills: <audio_1>"),
        ({"question": "What is in <region>?"}, "nothing fills: <region>"),
        ({"question": "[IMAGE]?"}, r"nothing fills: \[IMAGE\]"),
    ],
)
def test_a_column_that_would_be_lost_is_named(row, reason):
    with pytest.raises(BadRow, match=reason):
        read_row({"question": ASKED, "answer": "red"} | row)


@pytest.mark.parametrize(
    "text", ["List<Object>", "<picture><img src='a'></picture>", "vector<point>", "{image}"]
)
def test_a_text_that_only_looks_like_a_place_is_read(text):
    assert shown(read_row({"question": text, "answer": "1"})) == [text]


@pytest.mark.parametrize("cell", ["", None, [], [""], [None], {}, {"bytes": None, "path": None}, "[]"])
def test_an_empty_cell_of_an_image_is_listed(cell):
    row = {"question": ASKED, "answer": "red", "image": cell}
    assert (read_row(row).images, read_row(row).unread) == ([], ("image (empty)",))
    assert read_row(row | {"image_2": "a.png"}).unread == ()


def test_a_list_of_images_may_be_a_text():
    for cell in ('["a.png", "b.png"]', "['a.png', 'b.png']", ["a.png", "b.png"]):
        assert read_row({"question": ASKED, "images": cell}).images == ["a.png", "b.png"]


TALK = said(user=ASKED, assistant="Red.")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": json.dumps(TALK)},
        {"messages": str(TALK)},
        {"question": json.dumps(TALK)},
        {"messages": TALK, "conversations": spoken(("human", ASKED), ("gpt", "Red."))},
        {"messages": TALK, "prompt": ASKED},
    ],
)
def test_a_conversation_may_be_a_text_and_be_there_twice(row):
    assert shown(read_row(row)) == [ASKED, "Red."]


def test_choices_come_in_many_forms_and_are_shown_once():
    for choices in (
        {"options": ["red", "blue"]},
        {"choices": ("red", "blue")},
        {"options": "A. red B. blue"},
        {"options": '["red", "blue"]'},
        {"options": {"A": "red", "B": "blue"}},
        {"choices": {"text": ["red", "blue"], "label": ["A", "B"]}},
        {"A": "red", "B": "blue", "C": None},
        {"option_a": "red", "option_b": "blue"},
        {"opa": "red", "opb": "blue"},
        {"options": {"A": "red", "B": "blue", "C": None}},
        {"answer_choices": ["red", "blue"]},
    ):
        for gold in ("A", "(A)", "A. red", "red", "<answer>A</answer>"):
            record = read_row({"question": ASKED, "answer": gold, **choices})
            assert (shown(record), record.solution) == ([COLOURS], "A")
    assert shown(read_row({"question": COLOURS, "answer": "B", "options": ["red", "blue"]})) == [COLOURS]
    asked = read_row({"messages": said(user=ASKED), "options": ["red", "blue"], "answer": 1})
    assert (shown(asked), asked.solution) == ([COLOURS], "B")
    for gold in ("AC", "A, C", "A、C", "A和C"):
        row = {"question": ASKED, "options": ["red", "blue", "green"], "answer": gold}
        assert read_row(row).solution == "AC"
    with pytest.raises(BadRow, match="not one of the choices"):
        read_row({"question": ASKED, "options": ["red", "blue"], "answer": "AC"})
    for name in ("answer_index", "correct_choice_idx", "cop", "label"):
        assert read_row({"question": ASKED, "options": ["red", "blue"], name: 1}).solution == "B"


@pytest.mark.parametrize(
    "choices",
    [
        {"options": [{"label": "1", "text": "red"}, {"text": "blue", "label": "2"}]},
        {"options": ["1. red", "2. blue"]},
        {"options": "1. red\n2. blue"},
        {"options": "(1) red (2) blue"},
        {"options": {"1": "red", "2": "blue"}},
        {"choices": {"label": ["1", "2"], "text": ["red", "blue"]}},
        {"option_1": "red", "option_2": "blue"},
        {"option1": "red", "option2": "blue"},
    ],
)
def test_numbers_may_label_choices_and_are_then_what_the_gold_says(choices):
    for gold in ("2", 2, "(2)", "2.", "<answer>2</answer>", "blue", "B"):
        record = read_row({"question": ASKED, "answer": gold, **choices})
        assert (shown(record), record.solution) == ([COLOURS], "B"), gold
    assert read_row({"question": ASKED, "ending0": "red", "ending1": "blue", "label": 1}).solution == "B"
    letters = [{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}]
    assert read_row({"question": ASKED, "options": letters, "answer": 1}).solution == "B"  # counted from 0
    decimals = read_row({"question": ASKED, "options": ["1.5", "2.5"], "answer": "2.5"})
    assert (shown(decimals), decimals.solution) == ([f"{ASKED}\n(A) 1.5\n(B) 2.5"], "B")


def test_a_box_between_its_tags_is_one_and_a_place_for_one_is_not():
    record = read_row({"question": "Find it.", "answer": "<bbox>[1, 2, 30, 40]</bbox>", "image": "red.png"})
    assert kind_of(record.solution) == "bbox"
    assert read_boxes(record.solution) == read_boxes("[1, 2, 30, 40]")
    reply = {"messages": said(user="Find it.", assistant="<bbox>[1, 2, 30, 40]</bbox>")}
    assert read_row(reply).reply == "<bbox>[1, 2, 30, 40]</bbox>"


@pytest.mark.parametrize("detail", ["auto", "low", "high"])
def test_a_pictures_detail_is_listed_in_rows_and_refused_in_calls(detail):
    part = {"type": "image_url", "image_url": {"url": url(RED), "detail": detail}}
    turns = said(user=[part, {"type": "text", "text": ASKED}], assistant="Red.")
    record = read_row({"messages": turns})
    assert shown(record) == ["[]" + ASKED, "Red."]
    assert record.unread == (() if detail == "auto" else ("messages.image_url.detail",))
    if detail == "auto":
        split_images(turns, "")
        return
    with pytest.raises(UserError, match="a picture's detail is not used"):
        split_images(turns, "")


def test_a_conversation_and_its_gold_answer_or_a_problem_and_its_solution():
    for answer in ({"solution": "red"}, {"answer": "red"}, {"ground_truth": "red"}):
        record = read_row({"messages": said(user=ASKED), **answer})
        assert (shown(record), record.solution, record.reply) == ([ASKED], "red", None)
    assert read_row({"messages": said(user=ASKED), "label": "vqa", "solution": "red"}).solution == "red"
    worked = read_row({"problem": ASKED, "solution": "It is red.", "answer": "red"})
    assert (worked.solution, worked.reply, worked.unread) == ("red", None, ("solution",))


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"loss": False}, {"loss_mask": 0}, {"train": False}, {"loss_scale": 0.0}]
)
def test_a_reply_with_weight_0_is_not_trained(mark, tmp_path):
    turns = said(user="One?", assistant="First.", user_="Two?", assistant_="Second.")
    processor = read_processor(resolve("r1ov-tiny"))
    for untrained, trained in ((1, "Second.<|im_end|>"), (3, "First.<|im_end|>")):
        marked = [turn | mark if at == untrained else turn for at, turn in enumerate(turns)]
        batch = processor(read_row({"messages": marked}).messages, return_labels=True)
        kept = batch["labels"][batch["labels"] != IGNORED]
        assert processor.decode(kept, skip_special_tokens=False) == trained
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": None, "messages": [turn | mark for turn in turns]}))
    assert "there is no reply to learn from" in Reader(find_files(str(path)), need="reply")[0].detail


ROWS = [{"problem": f"第{number}题：红色 é \u0a0a ਊ?", "answer": "红"} for number in range(40)]


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "gb18030"]
)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_text_in_another_encoding_is_read_as_its_author_wrote_it(encoding, suffix, tmp_path):
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    written = "\r\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]"
    path = tmp_path / f"a.{suffix}"
    path.write_bytes((("\ufeff" if encoding == "gb18030" else "") + written).encode(encoding))
    rows = open_rows(path)
    assert [rows[number] for number in range(len(rows))] == ROWS


def test_a_text_that_is_not_in_its_encoding_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    path.write_bytes(lines.encode("gb18030"))  # without a mark
    assert all(isinstance(item, BadRow) for item in Reader(find_files(str(path))))
    path.write_bytes(lines.encode("utf-16")[:-1])
    with pytest.raises(UserError, match="not valid utf-16"):
        open_rows(path)


@pytest.mark.parametrize(
    ("name", "content", "command"),
    [
        ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=2), r"jq -c '\.' a\.json"),
        ("a.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS), r"jq -c '\.' a\.jsonl"),
        ("a.jsonl", json.dumps(ROWS, indent=2), r"jq -c '\.\[\]' a\.jsonl"),
    ],
)
def test_rows_that_are_not_one_a_line_are_refused_with_the_way_to_write_them_so(
    name, content, command, tmp_path
):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=command):
        open_rows(tmp_path / name)


def test_what_is_not_read_is_said_by_the_look_and_at_the_start_of_training(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    rows = [
        {
            "problem": ASKED,
            "solution": "<think>t</think><answer>red</answer>",
            "image": "red.png",
            "level": "easy",
        }
    ]
    rows += [
        {
            "problem": "1 + 1?",
            "solution": "<think>t</think><answer>2</answer>",
            "image": "",
            "source": "x",
            "level": "easy",
        }
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    look(LookConfig(data=str(path), image_folder=str(DATA)))
    assert "unread    level 2, source 1, image (empty) 1\n" in capsys.readouterr().out
    out = tmp_path / "run"
    options = {
        "data": str(path),
        "image_folder": str(DATA),
        "out": str(out),
        "save_steps": 1,
        "eval_steps": 0,
    }
    config = SFTConfig(
        **options, max_steps=1, per_device_train_batch_size=2, dataloader_num_workers=0, num_threads=1
    )
    train(config)
    told = capsys.readouterr().err
    assert "of 2 rows 1 have images; not read: level 2, source 1, image (empty) 1" in told
    shutil.rmtree(out / "final")
    path.write_text("\n".join(map(json.dumps, rows[:1])))
    with pytest.raises(UserError, match=r"the rows of --data .* have changed since the run"):
        train(config)


def test_a_fingerprint_changes_with_the_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    prints = set()
    for rows in (ROWS, ROWS[:-1], [*ROWS[:-1], {"problem": "?", "answer": "1"}]):
        path.write_text("\n".join(map(json.dumps, rows)))
        prints.add(open_data(str(path)).fingerprint)
        assert open_data(str(path), seed=7).fingerprint in prints
    assert len(prints) == 3
