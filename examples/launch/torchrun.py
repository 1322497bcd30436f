"""torchrun for torchrun.sh: where the processes fail, their own line is the last one, and their exit status is its own.

Torch's own command adds a traceback of itself and ends with 1. A process that a signal ended says nothing: it is named.
"""

from __future__ import annotations

import logging
import signal
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"torchrun.sh: error: the process of rank {rank} was ended by {name}", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
