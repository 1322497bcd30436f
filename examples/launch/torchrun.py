"""torchrun for torchrun.sh: if a process fails, its own message is the last one, and its exit status is returned.

Torch's own command adds a traceback of the launcher and exits with 1. A process that was ended by a signal prints
nothing itself, so the signal is named here; so does one that leaves its message to the first process of the node, and
its message is printed here if it was the only one that failed.
"""

from __future__ import annotations

import logging
import signal
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.multiprocessing.errors.error_handler"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            ended_by = signal.Signals(-failure.exitcode).name
            print(f"torchrun.sh: error: the process of rank {rank} was ended by {ended_by}", file=sys.stderr)
        elif isinstance(failure.message, dict) and not failure.message["extraInfo"].get("printed", True):
            print(failure.message["message"], file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
