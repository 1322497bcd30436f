"""Log-probabilities of given tokens, with the vocabulary sharded over the tensor-parallel ranks.

N positions in texts, V vocabulary, v = V / ranks.

    log p(target) = logit(target) - log sum over V of exp(logit)

Four reductions of at most N numbers replace gathered logits. Ids from ``num_token_ids`` on are padding of the
vocabulary and have no probability here, as in an exported model, which has no such rows. (The softmax of training
includes them, so its loss is higher by the probability that they still have.)
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

_NO_TOKEN = 1 << 62


def target_log_probabilities(
    logits_Nv: Tensor, targets_N: Tensor, group: ProcessGroup, num_token_ids: int
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, fp32 [nat], and whether no token is likelier, bool; on every rank of ``group``.

    ``logits_Nv`` are those of this rank, V = v x ranks, and changed in place if they are fp32. Of equally likely tokens
    the one with the lowest id counts as the likeliest.
    """
    logits_Nv = logits_Nv.float()
    first_id = group.rank() * logits_Nv.shape[1]
    num_true = min(max(num_token_ids - first_id, 0), logits_Nv.shape[1])
    logits_Nv[:, num_true:] = -torch.inf
    own_max_N = logits_Nv.amax(dim=1)
    max_N = _reduced(own_max_N.clone(), dist.ReduceOp.MAX, group)
    own_targets_N = targets_N - first_id
    is_own_N = (own_targets_N >= 0) & (own_targets_N < logits_Nv.shape[1])
    target_logits_N = logits_Nv.gather(1, own_targets_N.clamp(0, logits_Nv.shape[1] - 1)[:, None])[:, 0]
    target_logits_N = _reduced(torch.where(is_own_N, target_logits_N, 0.0), dist.ReduceOp.SUM, group)
    # Finding the ids of the largest logits is slow, and needed only if the logit of the target is among them.
    are_likeliest_N = target_logits_N == max_N
    at_max = are_likeliest_N.nonzero()[:, 0]
    lowest = torch.where(own_max_N[at_max] == max_N[at_max], logits_Nv[at_max].argmax(dim=1) + first_id, _NO_TOKEN)
    are_likeliest_N[at_max] = _reduced(lowest, dist.ReduceOp.MIN, group) == targets_N[at_max]
    exponentials_N = _reduced(logits_Nv.sub_(max_N[:, None]).exp_().sum(dim=1), dist.ReduceOp.SUM, group)
    return target_logits_N - max_N - exponentials_N.log(), are_likeliest_N


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType, group: ProcessGroup) -> Tensor:
    if group.size() > 1:
        dist.all_reduce(tensor, operation, group=group)
    return tensor
