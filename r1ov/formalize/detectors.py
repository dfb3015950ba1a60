"""Where things are and what is written, by other people's detectors where they are installed: Grounding DINO
and EasyOCR.
"""

from functools import lru_cache
from importlib.util import find_spec
from threading import Lock
from typing import Any

from PIL import Image

_ONE_AT_A_TIME = Lock()  # stages run in many threads, these models do not
MAX_PHRASES = 50


def find_boxes(
    image: Image.Image, phrases: list[str], model: str | None
) -> dict[str, list[list[float]]] | str:
    """Phrase -> its boxes [x1, y1, x2, y2] in pixels, by Grounding DINO; or the reason why there are none.

    Args:  model: a name on the hub or a folder; None: not wanted.
    Source:  transformers' zero-shot-object-detection pipeline.
    """
    if model in (None, "none"):
        return "no detector was asked for"
    if not phrases:
        return "no objects were named"
    if find_spec("transformers") is None:
        return "transformers is not installed"
    with _ONE_AT_A_TIME:
        try:
            detector = _detector(model)
        except (OSError, ValueError, ImportError) as error:  # as transformers says that it cannot be had
            return f"{model} cannot be loaded ({type(error).__name__})"
        labels = [phrase.strip().rstrip(".") + "." for phrase in phrases[:MAX_PHRASES] if phrase.strip()]
        found = detector(image, candidate_labels=labels)
    boxes: dict[str, list[list[float]]] = {}
    for one in found:
        box = [round(float(one["box"][side]), 1) for side in ("xmin", "ymin", "xmax", "ymax")]
        boxes.setdefault(one["label"].rstrip("."), []).append(box)
    return boxes


def read_text(image: Image.Image, languages: str | None) -> list[dict[str, Any]] | str:
    """The lines of text with their boxes [x1, y1, x2, y2], by EasyOCR; or the reason why there are none.

    Args:  languages: EasyOCR's codes, separated by commas; None: not wanted.
    """
    if languages in (None, "none"):
        return "it was not asked for"
    if find_spec("easyocr") is None:
        return "easyocr is not installed"
    import numpy as np

    with _ONE_AT_A_TIME:
        try:
            reader = _reader(languages)
        except (OSError, ValueError) as error:  # weights that cannot be had, a language that there is not
            return f"easyocr cannot be started ({type(error).__name__})"
        lines = reader.readtext(np.asarray(image))
    found = []
    for corners, text, _confidence in lines:
        xs, ys = zip(*corners, strict=True)
        found.append({"text": str(text), "box": [int(min(xs)), int(min(ys)), int(max(xs)), int(max(ys))]})
    return found


@lru_cache(1)
def _detector(model: str) -> Any:
    from transformers import pipeline

    return pipeline("zero-shot-object-detection", model=model)


@lru_cache(1)
def _reader(languages: str) -> Any:
    import easyocr

    return easyocr.Reader([code.strip() for code in languages.split(",")], verbose=False)
