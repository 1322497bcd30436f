"""Whether Gloo survives several collectives of one group in flight, without Megatron-Core. Run by hand, not a test:

    python -m tests.distributed.gloo_stress 300                    as overlapping data parallelism launches them
    python -m tests.distributed.gloo_stress 300 --one-at-a-time    as ``parallel.cpu_backend`` does

Four processes, two groups: reduce the parts of buffers, then gather them, for so many seconds. A process that dies
ends the run with the stacks of all; otherwise the number of rounds is printed. Other programs beside it make a failure
likelier.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.distributed as dist
from torch.distributed import _coalescing_manager

from tests.distributed import gloo_stress
from tests.distributed.pool import Pool

_BUFFERS = 8


def rounds(seconds: float, one_at_a_time: bool) -> int:
    """The number of rounds that this rank computes in ``seconds``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    group = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    number, end = 0, time.monotonic() + seconds
    while True:
        over = torch.tensor(float(time.monotonic() > end))
        dist.all_reduce(over)
        if over:
            return number
        number += 1
        buffers = [torch.ones(2, 2500 + 50 * n) for n in range(_BUFFERS)]
        for collective in ("reduce", "gather"):
            handles = []
            for buffer in buffers:
                with _coalescing_manager(group, async_ops=not one_at_a_time) as handle:
                    if collective == "reduce":
                        dist.reduce_scatter_single(buffer[rank % 2], buffer.view(-1), group=group, async_op=True)
                    else:
                        dist.all_gather_single(buffer.view(-1), buffer[rank % 2], group=group, async_op=True)
                handles.append(handle)
            for handle in handles:
                handle.wait()
        assert all((buffer == 2).all() for buffer in buffers)


def main() -> None:
    """Run the rounds on four ranks and print their number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--one-at-a-time", action="store_true")
    config = parser.parse_args()
    with Pool() as pool:
        found = pool.run(
            gloo_stress.rounds, config.seconds, config.one_at_a_time, world_size=4, seconds=config.seconds + 300
        )
    print(f"{found[0]} rounds")


if __name__ == "__main__":
    main()
