"""The door to the gate: python -m kernels.gate [--only TEXT] compiles every Triton kernel without a GPU and
judges the machine code.
"""

import sys

if __name__ == "__main__":
    from kernels.triton.gate import main

    sys.exit(main())
