"""Study internals. The door: `r1ov.trace`, `r1ov.edit`, `r1ov.compare`, and `python -m r1ov.look`."""

from r1ov.look.compare import Comparison, compare
from r1ov.look.edit import add, blank, mean, take, zero
from r1ov.look.points import watching as edit
from r1ov.look.trace import Trace, load_trace, trace, trace_encoded

__all__ = [
    "Comparison",
    "Trace",
    "add",
    "blank",
    "compare",
    "edit",
    "load_trace",
    "mean",
    "take",
    "trace",
    "trace_encoded",
    "zero",
]
