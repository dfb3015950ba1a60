"""Where things are and what is written, by other people's models where they are installed: Grounding DINO,
RapidOCR, EasyOCR. One that is missing or broken is noted once, and done without.
"""

import sys
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

from PIL import Image

from r1ov.common.files import one_line


class Unavailable(Exception):
    """There is no such helper, or it was not asked for."""


_ONE_AT_A_TIME = Lock()  # stages run in many threads, these models do not
MAX_PHRASES = 50
RAPID_LANGUAGES = {"en", "ch_sim", "ch_tra", "ja"}  # of the models inside its wheel, by EasyOCR's codes


def find_boxes(image: Image.Image, phrases: list[str], model: str | None) -> dict[str, list[list[float]]]:
    """Returns phrase -> its boxes [x1, y1, x2, y2] in pixels, by Grounding DINO.

    Args: model: a name on the hub or a folder; None or "none": not wanted.
    Raises: Unavailable.
    Source: transformers' zero-shot-object-detection pipeline.
    """
    labels = [phrase.strip().rstrip(".") + "." for phrase in phrases[:MAX_PHRASES] if phrase.strip()]
    if not labels:
        raise Unavailable("no objects were named")
    boxes: dict[str, list[list[float]]] = {}
    for one in _found([_grounding_dino], model, image, labels):
        box = [round(float(one["box"][side]), 1) for side in ("xmin", "ymin", "xmax", "ymax")]
        boxes.setdefault(one["label"].rstrip("."), []).append(box)
    return boxes


def read_text(image: Image.Image, languages: str | None) -> list[dict[str, Any]]:
    """Returns the lines of text with their boxes [x1, y1, x2, y2], by RapidOCR, else EasyOCR.

    Args: languages: EasyOCR's codes, separated by commas; None or "none": not wanted.
    Raises: Unavailable.
    """
    languages = (languages or "none").replace(" ", "")
    starts = [_easyocr] if set(languages.split(",")) - RAPID_LANGUAGES else [_rapidocr, _easyocr]
    lines = []
    for corners, text in _found(starts, languages, image):
        xs, ys = zip(*corners, strict=True)
        lines.append({"text": str(text), "box": [int(min(xs)), int(min(ys)), int(max(xs)), int(max(ys))]})
    return lines


def _found(starts: list[Callable], name: str | None, *inputs: Any) -> Any:
    """Returns what the first helper that can be started finds. Raises: Unavailable."""
    if name in (None, "none"):
        raise Unavailable("none was asked for")
    reasons = []
    with _ONE_AT_A_TIME:
        for start in starts:
            helper = _started(start, name)
            if callable(helper):
                return helper(*inputs)
            reasons.append(helper)
    raise Unavailable(", ".join(reasons))


@cache
def _started(start: Callable, name: str) -> Callable | str:
    try:
        return start(name)
    except Exception as error:  # a package that does not fit this machine fails in any way, at import too
        cause = one_line(f"{type(error).__name__}: {error}")[:100]
        reason = f"{start.__name__.strip('_')} cannot be started ({cause})"
        print(f"note      {reason}", file=sys.stderr)
        return reason


def _grounding_dino(model: str) -> Callable:
    from transformers import pipeline

    detect = pipeline("zero-shot-object-detection", model=model)
    return lambda image, labels: detect(image, candidate_labels=labels)


def _rapidocr(_languages: str) -> Callable:
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Global.log_level": "error"})

    def read(image: Image.Image) -> list:
        result = engine(image)
        return list(zip(result.boxes, result.txts, strict=True)) if result.txts else []

    return read


def _easyocr(languages: str) -> Callable:
    import easyocr
    import numpy as np

    reader = easyocr.Reader(languages.split(","), verbose=False)
    return lambda image: [line[:2] for line in reader.readtext(np.asarray(image))]
