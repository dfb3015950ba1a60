"""Stage 1: which kind of picture it is, and so how it is described."""

from dataclasses import replace

from r1ov.common.remote import AskFailed
from r1ov.formalize.parse import one_word
from r1ov.formalize.prompt import prompt, system
from r1ov.formalize.row import Ask, Row
from r1ov.formalize.settings import Settings

KINDS = ("chart", "scene", "text", "mixed", "math")  # of pictures; "text_only" where there is none
# Tags that need no question: the playground's families, and the sources of which R1-Onevision's data was
# made, by their folders' names.
TAGS = {
    "chart": ("charts", "dvqa", "chart2text", "vistext", "robut_wtq", "chartqa", "figureqa", "plotqa"),
    "scene": (
        "counting",
        "spatial",
        "locate",
        "clevr",
        "visual7w",
        "vizwiz",
        "vsr",
        "llava_cot_100k_natural_scene",
    ),
    "text": ("text", "textocr", "docvqa", "screen2words"),
    "mixed": ("ai2d", "infographicvqa", "infographic_vqa", "scienceqa"),
    "math": ("geometry", "pattern", "geo170k", "geomverse", "geometry3k", "intergps", "raven", "iconqa"),
}
_KIND_OF = {tag: kind for kind, tags in TAGS.items() for tag in (kind, *tags)}


def route(row: Row, ask: Ask, settings: Settings) -> Row:
    """The row with its kind: from its tag where that is known, else as the describer sees it."""
    if row.image is None:
        return replace(row, kind="text_only")
    if kind := kind_of_tag(row.tag):
        return replace(row, kind=kind)
    if "describer" not in settings.models:
        raise AskFailed(f"the tag {row.tag!r:.60} tells no kind of picture, and there is no describer to ask")
    reply = ask("describer", prompt("route", question=row.question), row.image, system())
    return replace(row, kind=one_word(reply, KINDS))


def kind_of_tag(tag: str | None) -> str | None:
    """The kind that a tag tells; what stands in parentheses, as in "Geometry3K(MathV360K)", does not count."""
    return _KIND_OF.get((tag or "").partition("(")[0].strip().lower())
