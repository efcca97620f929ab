"""`python -m expunge`, also as `torchrun --nproc_per_node 2 -m expunge unlearn run.yaml`."""

import sys

from expunge.cli import main

if __name__ == "__main__":
    sys.exit(main())
