"""The playground's held-out splits as a benchmark: endless, so that it is always the first questions that are
asked.
"""

from collections.abc import Iterable
from functools import partial

from PIL import Image

from r1ov.data.image import LazyImage
from r1ov.data.playground import FAMILIES, SPLITS, invent, paint
from r1ov.data.playground.scene import SIZE
from r1ov.errors import UserError
from r1ov.evaluate.item import Item


def playground_items(split: str, limit: int, seed: int = 0, swap: bool = False) -> list[Item]:
    """The first questions of one of the playground's endless splits; their pictures are painted when they are
    needed.

    swap: each with the picture of the family's next question, a control: who still scores then has not
        looked.
    """
    if split not in SPLITS:
        raise UserError(f"--split is {split!r}; the playground has {', '.join(SPLITS)}")
    return [playground_item(split, index, seed, swap) for index in range(limit)]


def playground_item(split: str, index: int, seed: int = 0, swap: bool = False) -> Item:
    family, scene = invent(split, index, seed)
    return Item(
        bench="playground",
        split=split,
        id=f"{split}/{index}",
        question=scene.question,
        images=(
            LazyImage((SIZE, SIZE), partial(_picture, split, index + len(FAMILIES) if swap else index, seed)),
        ),
        answer=scene.answer,
        kind=scene.kind,
        tags={"family": family},
    )


def items_by_id(ids: Iterable[str]) -> list[Item]:
    """The questions of these ids ("test/12"), of any splits. Raises UserError."""
    items = []
    for id in ids:
        split, _, index = id.partition("/")
        if split not in SPLITS or not index.isdecimal() or len(index) > 9:
            raise UserError(f'the playground has no question {id!r:.60}; ids are such as "test/12"')
        items.append(playground_item(split, int(index)))
    return items


def _picture(split: str, index: int, seed: int) -> Image.Image:
    return paint(invent(split, index, seed)[1])
