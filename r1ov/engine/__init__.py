"""Prompts to completions with their log-probs."""

from r1ov.engine.generate import Completion, complete, generate

__all__ = ["Completion", "complete", "generate"]
