"""What a prediction is worth, by rule."""

from r1ov.evaluate.item import Item, Prediction, Verdict


def score(item: Item, prediction: Prediction, lenient: bool = False) -> Verdict:
    """The verdict on one answer. lenient: a last guess from the last sentence, method "tail", where nothing else can be read."""
    raise NotImplementedError
