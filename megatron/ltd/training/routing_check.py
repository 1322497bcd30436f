"""A check that all ranks keep the same tokens, at the start of a run and every ``--check-routing-every`` steps.

    each rank    step, samples consumed -> the plan -> kept tokens of a few samples of the step -> one digest per layer
    all ranks    compare the digests; where they differ, the run ends

Kept tokens are a pure function, so ranks that share a sample draw the same ones without communication. Ranks with other
software or faulty hardware would train on other tokens, and the loss would hardly show it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.ltd.checkpoint.load import Progress
from megatron.ltd.format import format_ranges
from megatron.ltd.layers.route import Route
from megatron.ltd.methods.base import Method, Samples
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.schedules.step_plan import StepPlan

_NUM_SAMPLES = 4


def routing_problem(
    plan: StepPlan,
    method: Method,
    mesh: Mesh,
    progress: Progress,
    step_samples: int,
    learned_V: Tensor | None = None,
) -> str | None:
    """Compare over all ranks what the next step, of ``step_samples`` samples, will compute. Every rank calls this.

    For a method that ``observes``, ranks compare what it has learned: only some ranks hold the tokens of the samples.

    Returns None if they agree, and otherwise the same line on every rank, naming ranks, step and layer.
    """
    if mesh.world_size == 1:
        return None
    consumed_samples = progress.consumed_samples
    count = min(_NUM_SAMPLES, step_samples)
    samples = [consumed_samples + number * step_samples // count for number in range(count)]
    seen = Samples(torch.tensor(samples, device=mesh.device), learned_V=learned_V)
    route = Route(plan, method, seen, progress.iteration)
    own = [progress.iteration, consumed_samples, step_samples, *layer_digests(route)]
    difference = _difference(_over_ranks(own, mesh), progress.iteration)
    if difference is None:
        return None
    return (
        f"{difference}, so that they would train different models; this step was not saved. Make sure that every node "
        "has the same software and working hardware, then continue from the last checkpoint with --load"
    )


def layer_digests(route: Route) -> list[int]:
    """63 bits for each layer: how much it keeps, and exactly which tokens of the route's samples."""
    plan, learned_V, digests = route.plan, route.samples.learned_V, []
    learned = b"" if learned_V is None else _bytes(learned_V)
    for layer_number, amounts in enumerate(zip(plan.kept_tokens, plan.keep_probability, strict=True), start=1):
        digest = hashlib.blake2b(struct.pack("<qd", *amounts), digest_size=8)
        digest.update(bytes([route.executes(layer_number)]) + b"entry" * (layer_number in plan.entry_layers))
        if learned_V is not None:
            digest.update(learned * (amounts[0] < plan.seq_length))
        elif (kept := route.kept_tokens(layer_number)) is not None:
            digest.update(_bytes(kept.kept_BK))
        digests.append(int.from_bytes(digest.digest(), "little") >> 1)
    return digests


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().numpy().tobytes()


def _over_ranks(own: Sequence[int], mesh: Mesh) -> list[list[int]]:
    """Every rank's numbers, by rank."""
    mine = torch.tensor(own, dtype=torch.int64, device=mesh.device)
    everyone = [torch.empty_like(mine) for _ in range(mesh.world_size)]
    dist.all_gather(everyone, mine)
    return [numbers.tolist() for numbers in everyone]


def _difference(everyone: Sequence[Sequence[int]], step: int) -> str | None:
    """The first difference between the ranks: their progress, or the tokens of a layer. None if they agree."""
    first = everyone[0]
    for position, expected in enumerate(first):
        odd = [rank for rank, numbers in enumerate(everyone) if numbers[position] != expected]
        if odd:
            who = f"rank{'s' if len(odd) > 1 else ''} {format_ranges(odd)}"
            if position < 3:
                what = ("steps done", "samples consumed", "samples in the next step")[position]
                return f"{who} and rank 0 disagree on the {what} ({everyone[odd[0]][position]} and {expected})"
            return f"in step {step + 1} {who} would keep other tokens in layer {position - 2} than rank 0"
    return None
