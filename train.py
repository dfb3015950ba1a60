"""Trains a model: `torchrun train.py --stage sft` or `--stage grpo`; `python train.py ...` is one process.

With no other flag, sft draws r1ov-tiny's architecture afresh and teaches it the playground, and grpo improves
r1ov-tiny-sft by reinforcement learning, on a laptop's CPU in minutes. `--stage grpo --help` lists that
stage's flags.
"""

import sys

from r1ov.cli import parse_cli, run
from r1ov.train.run.config import GRPOConfig, SFTConfig
from r1ov.train.run.presets import PRESETS


def main() -> None:
    is_grpo = "--stage grpo" in " ".join(sys.argv[1:]).replace("--stage=", "--stage ")
    stage = "grpo" if is_grpo else "sft"
    config = parse_cli(
        GRPOConfig if stage == "grpo" else SFTConfig,
        prog="train.py",
        description=__doc__,
        presets=PRESETS[stage],
    )
    # torch takes seconds to import: not before the command line is known to be right
    if stage == "grpo":
        from r1ov.train.grpo import train
    else:
        from r1ov.train.sft import train
    train(config)


if __name__ == "__main__":
    sys.exit(run(main))
