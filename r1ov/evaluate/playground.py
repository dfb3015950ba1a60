"""The playground's held-out splits as a benchmark: endless, so that it is always the first questions that are asked."""

from collections.abc import Iterable
from functools import partial

from r1ov.data.image import LazyImage
from r1ov.data.playground import SPLITS, invent, paint
from r1ov.data.playground.scene import SIZE
from r1ov.errors import UserError
from r1ov.evaluate.item import Item

DEFAULT_LIMIT = 1000


def playground_items(split: str = "test", limit: int | None = None) -> list[Item]:
    """The first questions of the split; their families take turns."""
    if split not in SPLITS:
        raise UserError(f"--split is {split!r}; the playground has {', '.join(SPLITS)}")
    return [_item(split, index) for index in range(limit or DEFAULT_LIMIT)]


def items_by_id(ids: Iterable[str]) -> list[Item]:
    """The questions of these ids ("test/12"), of any splits. Raises UserError."""
    items = []
    for id in ids:
        split, _, index = id.partition("/")
        if split not in SPLITS or not index.isdecimal() or len(index) > 9:
            raise UserError(f'the playground has no question {id!r}; ids are such as "test/12"')
        items.append(_item(split, int(index)))
    return items


def _item(split: str, index: int) -> Item:
    family, scene = invent(split, index, seed=0)
    return Item(
        bench="playground",
        split=split,
        id=f"{split}/{index}",
        question=scene.question,
        images=(LazyImage((SIZE, SIZE), partial(paint, scene)),),
        answer=scene.answer,
        kind=scene.kind,
        tags={"family": family},
    )
