"""From a reply's text to a score: one home for "is this answer right?", shared by training and evaluation."""

# ruff: noqa: F401  names for others

from r1ov.common.files import split_reply
from r1ov.reward.accuracy import KINDS, Grade, accuracy_reward, grade, score_answer
from r1ov.reward.format import format_reward, shape_reward
from r1ov.reward.rules.boxes import BOX_UNITS, Frame
from r1ov.reward.rules.numbers import Rules
