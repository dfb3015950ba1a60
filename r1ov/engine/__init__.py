"""From prompts to completions with their log-probs. The door: `generate`, or `prepare` and then `decode`."""

from r1ov.engine.decode import Completion, Plan, Timing, decode
from r1ov.engine.generate import generate, needs, prepare

__all__ = ["Completion", "Plan", "Timing", "decode", "generate", "needs", "prepare"]
