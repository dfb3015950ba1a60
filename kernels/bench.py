"""The door to the bench, which lives with the tests: python -m kernels.bench [--out FILE] [--only GROUPS]
[--quick].
"""

import sys

if __name__ == "__main__":
    from tests.bench_kernels import main

    sys.exit(main())
