"""Where a run's rows come from, and the account of those that cannot be used."""

from typing import Literal

from r1ov.common.processes import World
from r1ov.data.formats.mixture import open_data
from r1ov.data.formats.tally import Tally
from r1ov.data.playground.source import Playground
from r1ov.data.steps import Source, StepData
from r1ov.train.run.config import PLAYGROUND, TrainConfig


def open_source(config: TrainConfig, need: Literal["reply", "solution"]) -> tuple[Source, int | None]:
    """The training data, and how many rows it has; None if it has no end.

    Args: need: what a row must have, replies to imitate or solutions to be scored against.
    """
    if config.data == PLAYGROUND:
        return Playground("train" if need == "reply" else "rl", config.seed), None
    mixture = open_data(config.data, seed=config.seed, need=need, lazy=True, **config.reading)
    return mixture, len(mixture)


def count(data: StepData, tally: Tally, world: World) -> None:
    """Adds a step's rows to the account, those that a single rank could not decode included."""
    for item in data.items:
        tally.add(item)
    undecoded = data.undecoded
    if world.sum(float(len(undecoded)))[0]:
        for share in world.gather(undecoded):
            for bad in share:
                tally.add(bad)
