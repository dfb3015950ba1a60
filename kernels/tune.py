"""The door to the tuner, which lives with the tests: python -m kernels.tune [--only TEXT] [--rehearse]
[--out FILE].

It measures which tiles of attention are fastest on this GPU, and writes them into kernels/triton/tiles.json.
"""

import sys

if __name__ == "__main__":
    from tests.tune_kernels import main

    sys.exit(main())
