"""What others report, in per cent: for context beside our scores, which come from other prompts, budgets,
extraction or judges.
"""

from typing import NamedTuple

PAPER = "R1-Onevision paper, table 2: VLMEvalKit, answers judged by GPT-4o-mini"
BENCH = "R1-Onevision paper, table 3: answers judged by GPT-4o-mini"
STUDY = "wuxu0119/r1-onevision-robustness-study: rules, no judge"
CARD = "the benchmark's or the model's own card"


class Published(NamedTuple):
    model: str
    metric: str
    score: float
    source: str


_MODELS = ("Qwen2.5-VL-7B", "R1-Onevision-7B", "GPT-4o", "InternVL2.5-8B", "Qwen2-VL-7B", "LLaVA-CoT-11B")
_TABLE_2 = {  # a score each of _MODELS
    ("mathvision", "accuracy, testmini"): (25.4, 29.9, 30.6, 17.1, 21.7, None),
    ("mathverse", "accuracy, all versions"): (43.6, 46.4, 41.2, 35.6, 30.2, None),
    ("mathverse", "accuracy, Vision Only"): (38.2, 40.0, 34.5, 22.8, 25.4, 22.6),
    ("mathvista", "accuracy, testmini"): (63.7, 64.1, 60.0, 64.5, 61.6, 52.5),
    ("wemath", "accuracy over 1,740 items"): (61.0, 61.8, 69.0, 53.8, 50.5, None),
}
_COLUMNS = (
    "accuracy",
    "Junior High School",
    "High School",
    "College",
    "Social Test",
    "Math",
    "Physics",
    "Chemistry",
    "Biology",
    "Deduction",
)
_TABLE_3 = {
    "Gemini-2.0-Flash": (59.1, 56.0, 65.9, 61.2, 39.8, 52.3, 64.4, 74.3, 67.2, 39.8),
    "GPT-4o": (49.6, 51.3, 56.2, 45.3, 26.5, 41.3, 52.5, 71.4, 63.4, 26.5),
    "R1-Onevision-7B": (36.2, 40.1, 39.5, 27.6, 26.5, 33.0, 30.2, 49.5, 53.0, 26.5),
    "Qwen2.5-VL-7B": (32.1, 33.8, 37.1, 25.3, 19.4, 31.5, 27.3, 39.0, 47.0, 19.4),
}
_OTHERS = {
    "mathvista": [
        Published("Qwen2.5-VL-7B", "accuracy, testmini", 68.2, CARD),
        Published("GPT-4o", "accuracy, testmini", 63.8, CARD),
        Published("humans", "accuracy, testmini", 60.3, CARD),
    ],
    "mathvision": [
        Published("Qwen2.5-VL-7B", "accuracy, test", 25.1, CARD),
        Published("GPT-4o", "accuracy, test", 30.4, CARD),
    ],
    "mathverse": [
        Published("Qwen2.5-VL-7B", "accuracy, mean of five versions", 49.2, CARD),
        Published("GPT-4o", "accuracy, mean of five versions", 50.2, CARD),
    ],
    "r1-onevision-bench": [
        Published("Qwen2.5-VL-7B", "accuracy", 36.9, STUDY),
        Published("R1-Onevision-7B (SFT)", "accuracy", 34.0, STUDY),
        Published("R1-Onevision-7B-RL", "accuracy", 37.3, STUDY),
    ],
}


def published(bench: str) -> tuple[Published, ...]:
    found = [
        Published(model, metric, score, PAPER)
        for (name, metric), scores in _TABLE_2.items()
        for model, score in zip(_MODELS, scores, strict=True)
        if name == bench and score is not None
    ]
    if bench == "r1-onevision-bench":
        for model, scores in _TABLE_3.items():
            found += [
                Published(model, column, score, BENCH) for column, score in zip(_COLUMNS, scores, strict=True)
            ]
    return (*found, *_OTHERS.get(bench, ()))
