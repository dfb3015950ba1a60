"""The playground: images drawn on the fly, each with a question, a formal description, a chain of thought and
a gold answer. The door is `sample(split, index, seed)`; `source.Playground` gives the same as records.

It mirrors how the R1-Onevision data was made (cross-modal formalization) in seven small families. A sample is
a pure function of (seed, split, index). Which split a scene may appear in is decided by a hash of its formal
description, so no scene is ever shared between splits, whatever the seeds.
"""

import hashlib
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

from PIL import Image

from r1ov.data.playground import charts, counting, geometry, locate, pattern, spatial, text
from r1ov.data.playground.scene import Canvas, Scene

FAMILIES = {
    "counting": counting.make,
    "charts": charts.make,
    "geometry": geometry.make,
    "text": text.make,
    "spatial": spatial.make,
    "pattern": pattern.make,
    "locate": locate.make,
}
# The levels that take turns in each split, one sample of every family at a time. A few hard ones in "train":
# reinforcement sharpens what a model does now and then, not what it never does.
SPLITS = {
    "train": (*("normal",) * 9, "hard"),
    "rl": ("normal", "hard", "hard"),
    "test": ("normal",),
    "generalisation": ("beyond",),
}
_HOMES = ["test"] * 2 + ["generalisation"] * 2 + ["rl"] * 4 + ["train"] * 8  # by the hash of a scene


@dataclass(frozen=True, kw_only=True)
class Sample:
    image: Image.Image  # (112, 112) RGB
    question: str
    description: str
    reasoning: str | None  # None in the split "rl"
    answer: str
    kind: str  # how the answer is compared: mcq | yes_no | number | text | bbox
    family: str


def split_of(family: str, scene: Scene) -> str:
    """Returns the only split that may hold this scene."""
    return _HOMES[hashlib.sha256(f"{family}\n{scene.description}".encode()).digest()[0] % len(_HOMES)]


def invent(split: str, index: int, seed: int) -> tuple[str, Scene]:
    """Returns the family and the scene of a sample, not yet painted."""
    if split not in SPLITS:
        raise ValueError(f"no playground split is called {split!r}; there are {', '.join(SPLITS)}")
    turn, place = divmod(index, len(FAMILIES))
    family, level = list(FAMILIES)[place], SPLITS[split][turn % len(SPLITS[split])]
    for attempt in count():
        scene = FAMILIES[family](Random(f"{seed}/{split}/{index}/{attempt}"), level)
        if split_of(family, scene) == split:
            return family, scene


def paint(scene: Scene) -> Image.Image:
    """Returns the scene's image, (SIZE, SIZE) RGB."""
    canvas = Canvas(scene.paper)
    scene.draw(canvas)
    return canvas.finish()


def sample(split: str = "train", index: int = 0, seed: int = 0) -> Sample:
    """Returns sample number `index` of an endless split; the families take turns."""
    family, scene = invent(split, index, seed)
    return Sample(
        image=paint(scene),
        question=scene.question,
        description=scene.description,
        reasoning=None if split == "rl" else scene.reasoning,
        answer=scene.answer,
        kind=scene.kind,
        family=family,
    )


def messages(sample: Sample) -> list[dict]:
    """Returns the sample as a conversation, with a reply if it has a thought."""
    return conversation(sample.image, sample.question, sample.reasoning, sample.answer)


def conversation(image: Any, question: str, reasoning: str | None, answer: str) -> list[dict]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    user = {"role": "user", "content": content}
    reply = {"role": "assistant", "content": f"<think>{reasoning}</think>\n<answer>{answer}</answer>"}
    return [user] if reasoning is None else [user, reply]
