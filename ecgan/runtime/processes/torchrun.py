"""torchrun as ``ecgan train --nproc-per-node`` starts it: a sentence where a rank fails."""

import sys

from ecgan.runtime.distributed import run_torchrun

if __name__ == "__main__":
    sys.exit(run_torchrun(sys.argv[1:]))
