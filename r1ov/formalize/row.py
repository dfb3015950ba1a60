"""What passes from stage to stage, and how a stage asks a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from r1ov.data.image import LazyImage
from r1ov.errors import UserError

Role = Literal["describer", "reasoner", "judge"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A picture and a question on their way to a training conversation; each stage returns a new one with
    more known.

    `outcome`: None while under way; "done", or "rejected" (by a rule or the judge) or "failed" (a model could
    not be had), with `reason` saying why.
    """

    id: str
    question: str
    image: LazyImage | None  # None: text only
    gold: str | None
    answer_kind: str | None = None  # how the gold is compared: r1ov.reward.accuracy.KINDS
    tag: str | None = None  # what the data says of its kind or source
    truth: Mapping[str, str] = field(
        default_factory=dict
    )  # what is known without a model: the playground's description, reasoning
    kind: str | None = None  # by route: chart | scene | text | mixed | math | text_only
    description: str | None = None
    description_format: str | None = None  # CSV, JSON, Mermaid, ...
    draft: str | None = None  # the thought over the description
    thought: str | None = None  # the draft rewritten into looking
    answer: str | None = None
    verdict: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()  # such as: no detector installed, so no boxes
    outcome: Literal["done", "rejected", "failed"] | None = None
    reason: str | None = None


class Ask(Protocol):
    """Asks the model that plays a role. Raises: AskFailed."""

    def __call__(
        self, role: Role, prompt: str, image: LazyImage | None = None, system: str | None = None
    ) -> str: ...


class BudgetSpent(UserError):
    """The run's budget is used up: nothing more may be asked, and the run stops cleanly."""
