"""Where things are and what is written, by other people's models where they are installed: Grounding DINO,
RapidOCR. One that is missing or broken is noted once, and done without.
"""

from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

from PIL import Image

from r1ov.common.files import one_line, say


class Unavailable(Exception):
    """There is no such helper, or it was not asked for."""


_ONE_AT_A_TIME = Lock()  # stages run in many threads, these models do not
MAX_PHRASES = 50


def find_boxes(image: Image.Image, phrases: list[str], model: str) -> dict[str, list[list[float]]]:
    """Returns phrase -> its boxes [x1, y1, x2, y2] in pixels, by Grounding DINO.

    Args: model: a name on the hub, a folder, or none.
    Raises: Unavailable.
    Source: transformers' zero-shot-object-detection pipeline.
    """
    if model == "none":
        raise Unavailable("none was asked for")
    labels = [phrase.strip().rstrip(".") + "." for phrase in phrases[:MAX_PHRASES] if phrase.strip()]
    if not labels:
        raise Unavailable("no objects were named")
    boxes = {}
    for one in _found(image, _grounding_dino, model, candidate_labels=labels):
        box = [round(float(one["box"][side]), 1) for side in ("xmin", "ymin", "xmax", "ymax")]
        boxes.setdefault(one["label"].rstrip("."), []).append(box)
    return boxes


def read_text(image: Image.Image) -> list[dict]:
    """Returns the lines of text with their boxes [x1, y1, x2, y2], by RapidOCR, which reads English, Chinese
    and Japanese.

    Raises: Unavailable.
    """
    result = _found(image, _rapidocr)
    lines = []
    for corners, text in zip(result.boxes, result.txts, strict=True) if result.txts else ():
        xs, ys = zip(*corners, strict=True)
        lines.append({"text": str(text), "box": [int(min(xs)), int(min(ys)), int(max(xs)), int(max(ys))]})
    return lines


@cache
def _started(start: Callable, *name: str) -> Callable | str:
    """Returns the helper, or why there is none."""
    try:
        return start(*name)
    except (
        Exception,
        SystemExit,
    ) as error:  # a package that does not fit this machine fails in any way, at import too
        cause = one_line(f"{type(error).__name__}: {error}")[:100]
        reason = f"{start.__name__.strip('_')} cannot be started ({cause})"
        say(f"note      {reason}")
        return reason


def _found(image: Image.Image, start: Callable, *name: str, **asked: Any) -> Any:
    """Raises: Unavailable."""
    with _ONE_AT_A_TIME:
        helper = _started(start, *name)
        if isinstance(helper, str):
            raise Unavailable(helper)
        try:
            return helper(image, **asked)
        except Exception as error:  # as above
            raise Unavailable(one_line(f"{type(error).__name__}: {error}")) from error


def _grounding_dino(model: str) -> Callable:
    from transformers import pipeline

    return pipeline("zero-shot-object-detection", model=model)


def _rapidocr() -> Callable:
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "error"})
