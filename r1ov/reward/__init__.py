"""From a reply's text to a score: one home for "is this answer right?", shared by training and evaluation."""

from r1ov.reward.accuracy import accuracy_reward
from r1ov.reward.format import format_reward, split_reply

__all__ = ["accuracy_reward", "format_reward", "split_reply"]
