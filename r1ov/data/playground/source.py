"""The playground as a source of training data, beside the readers of files."""

from dataclasses import dataclass
from functools import partial

from r1ov.data.formats.records import Record
from r1ov.data.image import LazyImage
from r1ov.data.playground import conversation, invent, paint
from r1ov.data.playground.scene import SIZE


@dataclass(frozen=True)
class Playground:
    """Records without end: playground[i] is `sample(split, i, seed)`, its image painted only when it is
    needed.
    """

    split: str = "train"
    seed: int = 0
    fingerprint = ()  # of no files

    def __getitem__(self, number: int) -> Record:
        family, scene = invent(self.split, number, self.seed)
        image = LazyImage((SIZE, SIZE), partial(paint, scene))
        return Record(
            messages=conversation(
                image, scene.question, None if self.split == "rl" else scene.reasoning, scene.answer
            ),
            solution=scene.answer,
            kind=scene.kind,
            id=str(number),
            format=family,
            where=f"playground, {self.split}, seed {self.seed}, sample {number}",
        )
