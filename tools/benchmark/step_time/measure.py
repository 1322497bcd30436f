"""Rounds of measurements: every variant performs one step per round, and is compared within the round.

    round 1:  probe  dense  K=128  K=256  K=384  (other methods)  HF  HF fused GELU     round 2: the same again ...

A temporary slowdown of the machine affects all variants of a round, so ratios are medians of the ratios within a round.
Seconds are the median, minimum and maximum over rounds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

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
        with initialize(ParallelConfig(device=config.device)) as mesh:
            return _Rounds(config, mesh.device, _build(config, mesh)).run()
    finally:
        torch.set_num_threads(threads_before)


def _build(config: StepTimeConfig, mesh: Mesh) -> list[Variant]:
    """The variants in the order of the table."""
    from . import contenders
    from .contenders import build_batch, build_hugging_face, build_ours, build_routing, model_config, plan_of

    shape = model_config(config).shape(config.vocab_size)
    torch.manual_seed(config.seed)
    batch = build_batch(config, mesh.device)
    ours = build_ours(config, batch, mesh)

    routing = build_routing(config, batch)

    def dropping(kept_tokens: int, block_size: int) -> Variant:
        plan, method = plan_of(config, kept_tokens), contenders.build_random_ltd(config, block_size)
        flops = step_flops(shape, plan, config.micro_batch_size)
        step, route_all = partial(ours, plan, method), partial(routing, method, kept_tokens)
        return Variant(f"{method.name}, K = {kept_tokens}", step, flops, route_all)

    dense = plan_of(config, config.seq_length)
    variants = [Variant(DENSE, lambda: ours(dense), step_flops(shape, dense, config.micro_batch_size))]
    variants += [dropping(kept, size) for kept in config.measured_kept_tokens for size in config.block_sizes]
    if config.token_bypass:
        bypass = contenders.build_token_bypass(config)
        flops = step_flops(shape, bypass.plan(0), config.micro_batch_size)
        variants.append(
            Variant(f"TokenBypass, K = {config.seq_length // 2}", lambda: ours(bypass.plan(0), bypass), flops)
        )
    for executed_layers in config.executed_layers:
        drop = contenders.build_layer_drop(config, executed_layers)
        step = partial(ours, drop.plan(0), drop, executed_layers)
        all_run = variants[0].flops - 3 * config.micro_batch_size * head_flops(shape)
        flops = variants[0].flops - all_run * (config.num_layers - executed_layers) // config.num_layers
        variants.append(Variant(f"layer dropping, {executed_layers} of {config.num_layers} layers", step, flops))
    for name, activation in HUGGING_FACE.items():
        variants.append(Variant(name, build_hugging_face(config, batch, activation), variants[0].flops))
    return variants


@dataclass(frozen=True)
class _Rounds:
    """Runs the rounds on one device."""

    config: StepTimeConfig
    device: torch.device
    variants: list[Variant]

    def run(self) -> Measurement:
        from .contenders import build_probe

        probe, probe_flops = build_probe(self.config, self.device)
        rates = []
        total = self.config.warmup_rounds + self.config.rounds
        for number in range(1, total + 1):
            counted = number > self.config.warmup_rounds
            rate = probe_flops / min(self._seconds(probe) for _ in range(_PROBES_A_ROUND))
            for variant in self.variants:
                self._take_turn(variant, counted)
            if counted:
                rates.append(rate)
            self._say(number, total, counted)
        return Measurement(self.variants, rates)

    def _take_turn(self, variant: Variant, counted: bool) -> None:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
            held_bytes = torch.cuda.memory_allocated(self.device)
        seconds = self._seconds(variant.step)
        if on_gpu:
            variant.peak_bytes = max(variant.peak_bytes, torch.cuda.max_memory_allocated(self.device) - held_bytes)
        routing_seconds = [] if variant.routing is None else [self._seconds(variant.routing)]
        if counted:
            variant.seconds.append(seconds)
            variant.routing_seconds += routing_seconds

    def _seconds(self, work: Callable[[], object]) -> float:
        """The seconds of ``work`` on the chosen clock, including its queued work on a GPU."""
        clock = time.process_time if self.config.clock == "cpu" else time.perf_counter
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        started = clock()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return clock() - started

    def _say(self, number: int, total: int, counted: bool) -> None:
        if not counted:
            print(f"round {number} of {total}: warm-up", file=sys.stderr, flush=True)
            return
        steps = ", ".join(f"{variant.name} {variant.seconds[-1]:.3f} s" for variant in self.variants)
        print(f"round {number} of {total}: {steps}", file=sys.stderr, flush=True)
