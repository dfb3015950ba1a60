"""The door to the gate, which lives with the tests: python -m kernels.gate [--only TEXT].

It compiles every Triton kernel without a GPU and judges the machine code.
"""

import sys

if __name__ == "__main__":
    from tests.gate_kernels import main

    sys.exit(main())
