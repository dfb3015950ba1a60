"""Trains a model: `torchrun train.py --stage sft`, or `python train.py --stage sft` as one process.

With no other flag it draws r1ov-tiny's architecture afresh and teaches it the playground, on a laptop's CPU in minutes.
"""

import sys

from r1ov.cli import parse_cli, run
from r1ov.train.config import SFTConfig


def main() -> None:
    config = parse_cli(SFTConfig, prog="train.py", description=__doc__)
    from r1ov.train.sft import train  # torch takes seconds to import: not before the command line is known to be right

    train(config)


if __name__ == "__main__":
    sys.exit(run(main))
