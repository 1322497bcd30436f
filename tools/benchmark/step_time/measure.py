"""Rounds of measurements: every variant performs one step per round, and is compared within the round.

    round 1:  probe  dense  K=128  K=256  K=384  (other methods)  HF  HF fused GELU     round 2: the same again ...

A temporary slowdown of the machine affects all variants of a round, so ratios are medians of the ratios within a round.
Seconds are the median, minimum and maximum over rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import torch
from common.meter import Meter, Work
from common.page import CLOCKS

from megatron.ltd.methods.base import Method
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.mesh import Mesh, initialize
from megatron.ltd.plan.accounting import head_flops, step_flops

from .config import StepTimeConfig

DENSE = "dense"
HUGGING_FACE = {"Hugging Face": "gelu_new", "Hugging Face, fused GELU": "gelu_pytorch_tanh"}
_PROBES_A_ROUND = 3


@dataclass
class Variant:
    """A measured variant and its measurements; lists have one entry per measured round."""

    name: str
    step: Callable[[], object]
    flops: int
    routing: Callable[[], object] | None = None
    """Performs only the sampling, gather and scatter of a step; for random-LTD"""
    seconds: list[float] = field(default_factory=list)
    routing_seconds: list[float] = field(default_factory=list)
    """Seconds of ``routing``"""
    peak_bytes: int = 0
    """Most memory that a step allocated; 0 on a CPU, where it is not measured"""


@dataclass(frozen=True)
class Measurement:
    """All variants, and the rate of a large matrix product in each round [FLOP/s]."""

    variants: list[Variant]
    probe_flops_per_second: list[float]


def measure(config: StepTimeConfig) -> Measurement:
    """Build and measure all variants; progress is printed to stderr. Raises ``UserError``."""
    threads_before = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        with initialize(ParallelConfig(device=config.device)) as mesh, _built(config, mesh) as variants:
            return _rounds(config, Meter(mesh.device, CLOCKS[config.clock]), variants)
    finally:
        torch.set_num_threads(threads_before)


@contextmanager
def _built(config: StepTimeConfig, mesh: Mesh) -> Iterator[list[Variant]]:
    """The variants in the order of the table."""
    from . import contenders

    torch.manual_seed(config.seed)
    batch = contenders.build_batch(config, mesh.device)
    with contenders.built_run(contenders.flags_of(config), mesh) as run:
        shape, routing = run.workload.shape, contenders.build_routing(config, batch)

        def ours(name: str, method: Method, flops: int | None = None, executed_layers: int | None = None) -> Variant:
            computed = step_flops(shape, method.plan(0), config.micro_batch_size) if flops is None else flops
            return Variant(name, contenders.ours(run, batch, method, executed_layers), computed)

        variants = [ours(DENSE, run.method)]
        for kept, size in product(config.measured_kept_tokens, config.block_sizes):
            method = contenders.build_random_ltd(config, kept, size)
            variants.append(ours(f"{method.name}, K = {kept}", method))
            variants[-1].routing = partial(routing, method)
        if config.token_bypass:
            kept = config.seq_length // 2
            method = contenders.build_method(config, f"--token-bypass --token-bypass-kept-tokens {kept}")
            variants.append(ours(f"TokenBypass, K = {kept}", method))
        for layers in config.executed_layers:
            all_layers = variants[0].flops - 3 * config.micro_batch_size * head_flops(shape)
            flops = variants[0].flops - all_layers * (config.num_layers - layers) // config.num_layers
            name = f"layer dropping, {layers} of {config.num_layers} layers"
            variants.append(ours(name, contenders.build_layer_drop(config, layers), flops, layers))
        for name, activation in HUGGING_FACE.items():
            variants.append(Variant(name, contenders.build_hugging_face(config, batch, activation), variants[0].flops))
        yield variants


def _rounds(config: StepTimeConfig, meter: Meter, variants: list[Variant]) -> Measurement:
    probe, probe_flops = build_probe(config, meter.device)
    rates = []
    total = config.warmup_rounds + config.rounds
    for number in range(1, total + 1):
        counted = number > config.warmup_rounds
        rate = probe_flops / min(meter.seconds(probe) for _ in range(_PROBES_A_ROUND))
        for variant in variants:
            _take_turn(variant, meter, counted)
        if counted:
            rates.append(rate)
            said = ", ".join(f"{variant.name} {variant.seconds[-1]:.3f} s" for variant in variants)
        print(f"round {number} of {total}: {said if counted else 'warm-up'}", file=sys.stderr, flush=True)
    return Measurement(variants, rates)


def build_probe(config: StepTimeConfig, device: torch.device) -> tuple[Work, int]:
    """A large matrix product in the dtype of the step, and its FLOPs; its rate is the upper limit for a step."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: left @ right, 2 * size**3


def _take_turn(variant: Variant, meter: Meter, counted: bool) -> None:
    held_bytes = meter.allocated_bytes()
    seconds, peak_bytes = meter.seconds_and_peak(variant.step)
    variant.peak_bytes = max(variant.peak_bytes, (peak_bytes or held_bytes) - held_bytes)
    routing_seconds = [] if variant.routing is None else [meter.seconds(variant.routing)]
    if counted:
        variant.seconds.append(seconds)
        variant.routing_seconds += routing_seconds
