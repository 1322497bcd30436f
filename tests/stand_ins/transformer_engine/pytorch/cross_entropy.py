"""Cross entropy of logits that are split over the vocabulary."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ..signatures import VERSION, recorded
from .distributed import add_up, collective, group_size, keep


def _cross_entropy(logits: Tensor, target: Tensor, group: ProcessGroup | None, ignore_idx: int) -> Tensor:
    rank = 0 if group is None else group.rank()
    logits = logits.float()
    largest = logits.detach().amax(-1)
    if group_size(group) > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    total = collective((logits - largest[..., None]).exp().sum(-1), group, add_up, keep)
    own = target - rank * logits.shape[-1]
    is_own = (own >= 0) & (own < logits.shape[-1])
    chosen = logits.gather(-1, own.clamp(0, logits.shape[-1] - 1)[..., None])[..., 0] * is_own
    losses = largest + total.log() - collective(chosen, group, add_up, keep)
    return torch.where(target == ignore_idx, 0.0, losses)


if VERSION == "2.9.0":  # autograd's apply takes no keywords, and the first argument has another name

    @recorded("pytorch.cross_entropy.parallel_cross_entropy", ignores=("is_cg_capturable",))
    def parallel_cross_entropy(
        _input: Tensor, target: Tensor, dist_process_group: ProcessGroup | None, ignore_idx: int
    ) -> Tensor:
        """The loss of each token, [B, S] of logits [B, S, V]."""
        return _cross_entropy(_input, target, dist_process_group, ignore_idx)

else:

    @recorded("pytorch.cross_entropy.parallel_cross_entropy", ignores=("is_cg_capturable",))
    def parallel_cross_entropy(
        inp: Tensor, target: Tensor, dist_process_group: ProcessGroup | None, ignore_idx: int
    ) -> Tensor:
        """The loss of each token, [B, S] of logits [B, S, V]."""
        return _cross_entropy(inp, target, dist_process_group, ignore_idx)
