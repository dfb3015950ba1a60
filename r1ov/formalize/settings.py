"""How the stages work."""

from dataclasses import dataclass

from r1ov.formalize.row import Role


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A role without a model falls back on `Row.truth`, or fails the row: nothing is made up."""

    models: frozenset[Role] = frozenset()  # the roles that a model plays
    reasoner_looks: bool = False  # the reasoner is r1ov's engine: it is asked with picture and bare question, and no rewriting follows
    rounds: int = 1  # of going back to the picture, in role-play
    detector: str | None = (
        "IDEA-Research/grounding-dino-tiny"  # of boxes, where transformers is installed; None: no boxes
    )
    ocr: str | None = "en"  # EasyOCR's languages, separated by commas, where it is installed; None: no OCR
