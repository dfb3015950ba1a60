"""What passes from stage to stage: a row, as the stages see it, as JSON, and as training data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from r1ov.common.page import base64_image
from r1ov.data.image import LazyImage
from r1ov.errors import UserError

Role = Literal["describer", "reasoner", "judge"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """An image and a question on their way to a training conversation; each stage returns a new row that
    knows more.

    `outcome`: None on the way; "done", "rejected" (by a rule or the judge) or "failed" (a model gave no
    usable answer), with `reason` saying why.
    """

    id: str
    question: str
    image: LazyImage | None = None  # None: text only
    gold: str | None = None
    answer_kind: str | None = None  # how the gold is compared: r1ov.reward.accuracy.KINDS
    tag: str | None = None  # what the data says of its kind or source
    truth: Mapping[str, str] = field(default_factory=dict)  # known without a model: description, reasoning
    kind: str | None = None  # by route: chart | scene | text | mixed | math | text_only
    description: str | None = None
    description_format: str | None = None  # CSV, JSON, Mermaid, ...
    draft: str | None = None  # the thought over the description
    thought: str | None = None  # the draft rewritten as if its writer saw the image
    answer: str | None = None
    verdict: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()  # such as: no detector installed, so no boxes
    outcome: Literal["done", "rejected", "failed"] | None = None
    reason: str | None = None

    @property
    def conversations(self) -> list[dict[str, str]]:
        """The two turns as R1-Onevision's data has them, except that the answer is in `<answer>` tags."""
        reply = (
            f"<think>{(self.thought or '').strip()}</think>\n<answer>{(self.answer or '').strip()}</answer>"
        )
        question = ("<image>\n" if self.image else "") + self.question
        return [{"from": "human", "value": question}, {"from": "assistant", "value": reply}]

    def published(self) -> dict[str, Any]:
        """The row in R1-Onevision's columns. The image is base64 of a PNG: upright, RGB, every pixel as the
        stages saw it.
        """
        image = base64_image(self.image.load()) if self.image else None
        return {"id": self.id, "image": image, "conversations": self.conversations}


def row_to_dict(row: Row) -> dict[str, Any]:
    """Returns all that JSON can hold of a row; of its image that is the size."""
    values = dict(vars(row))
    image = values.pop("image")
    return values | {"image_size": image and list(image.size)}


def row_from_dict(values: Mapping[str, Any], image: LazyImage | None = None) -> Row:
    """The inverse, given the image. Raises: TypeError for a key that a row does not have."""
    rest = {key: value for key, value in values.items() if key != "image_size"}
    return Row(**rest | {"notes": tuple(values.get("notes", ())), "image": image})


class Ask(Protocol):
    """Asks the model that plays a role. Raises: AskFailed; BudgetSpent."""

    def __call__(
        self, role: Role, prompt: str, image: LazyImage | None = None, system: str | None = None
    ) -> str: ...


class BudgetSpent(UserError):
    """Nothing more may be asked, and the run stops cleanly; the row is left for another start."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the stages work. A role without a model falls back on `Row.truth`, or fails the row: nothing is
    made up.
    """

    models: frozenset[Role] = frozenset()  # the roles that a model plays
    reasoner_looks: bool = False  # it is r1ov's engine: given image and bare question, and not rewritten
    rounds: int = 1  # of going back to the image, in role-play
    detector: str | None = "IDEA-Research/grounding-dino-tiny"  # of boxes; None: no boxes
    ocr: str | None = "en"  # languages, separated by commas; None: no OCR
