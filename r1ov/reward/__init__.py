"""From a reply's text to a score: one home for "is this answer right?", shared by training and evaluation.

Names are loaded at their first use: whoever asks only for the shape of a reply loads no algebra.
"""

from importlib import import_module

_HOMES = {
    "r1ov.common.files": ("split_reply",),
    "r1ov.reward.format": ("format_reward", "shape_reward"),
    "r1ov.reward.accuracy": ("KINDS", "Grade", "accuracy_reward", "grade", "score_answer"),
    "r1ov.reward.combine": ("soft_overlong", "total_reward"),
    "r1ov.reward.rules.boxes": ("BOX_UNITS", "Frame"),
    "r1ov.reward.rules.numbers": ("Rules",),
}


def __getattr__(name: str):
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
