"""Prompts to completions with their log-probs."""

from r1ov.engine.generate import Completion, Plan, Timing, decode, generate, prepare

__all__ = ["Completion", "Plan", "Timing", "decode", "generate", "prepare"]
