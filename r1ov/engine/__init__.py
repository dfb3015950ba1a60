"""Prompts to completions with their log-probs."""

from r1ov.engine.decode import Completion, Timing, decode
from r1ov.engine.generate import generate
from r1ov.engine.plan import Plan, prepare

__all__ = ["Completion", "Plan", "Timing", "decode", "generate", "prepare"]
