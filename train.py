"""Trains a model: `python train.py --stage sft` or `--stage grpo`; by torchrun on several GPUs or nodes.

With no other flag, sft draws r1ov-tiny's architecture afresh and teaches it the playground, and grpo improves
r1ov-tiny-sft by reinforcement learning, on a laptop's CPU in minutes. `--stage grpo --help` lists that
stage's flags.
"""

import argparse
import os
import sys

from r1ov.cli import parse_cli, run
from r1ov.errors import UserError
from r1ov.train.run.config import GRPOConfig, SFTConfig
from r1ov.train.run.presets import GRPO, SFT


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--stage", nargs="?")
    is_grpo = parser.parse_known_args()[0].stage == "grpo"
    options, presets = (GRPOConfig, GRPO) if is_grpo else (SFTConfig, SFT)
    stages = {"--stage sft": SFTConfig, "--stage grpo": GRPOConfig}
    config = parse_cli(options, prog="train.py", description=__doc__, presets=presets, elsewhere=stages)
    if config.preset not in (None, *presets):
        raise UserError(f"--preset is {config.preset!r}; there are {', '.join(presets)}")
    if config.nproc_per_node > 1 and "WORLD_SIZE" not in os.environ:
        from r1ov.common.processes import launch

        launch(config.nproc_per_node)
        return
    # torch takes seconds to import: not before the command line is known to be right
    if is_grpo:
        from r1ov.train.grpo import train
    else:
        from r1ov.train.sft import train
    train(config)


if __name__ == "__main__":
    sys.exit(run(main))
