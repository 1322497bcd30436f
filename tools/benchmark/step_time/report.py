"""Measurements as figures, a table and JSON.

realised saving   1 - seconds / seconds of the dense step of the same round      theoretical: the same for FLOPs
of the products   FLOP/s of the step / FLOP/s of a large matrix product of the same round
routing           seconds of sampling, gather and scatter alone / seconds of the step of the same round
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from common.page import about

from megatron.ltd.versions import cpu_model

from .config import StepTimeConfig
from .measure import DENSE, HUGGING_FACE, Measurement, Variant


@dataclass(frozen=True)
class Figures:
    """The figures of one variant; ratios are medians over rounds of the ratios within a round."""

    name: str
    step_seconds: float
    fastest_seconds: float
    slowest_seconds: float
    flops: int
    flops_per_second: float
    share_of_products: float
    theoretical_saving: float | None
    realised_saving: float | None
    times_of: dict[str, float]
    """Seconds divided by those of each Hugging Face variant"""
    routing_share: float | None
    peak_bytes: int


def _ratio(numerators: Iterable[float], denominators: Iterable[float]) -> float:
    return median(above / below for above, below in zip(numerators, denominators, strict=True))


def figures(measurement: Measurement) -> list[Figures]:
    """The figures of every variant, in order."""
    by_name = {variant.name: variant for variant in measurement.variants}
    return [_figures_of(variant, by_name, measurement.probe_flops_per_second) for variant in measurement.variants]


def _figures_of(variant: Variant, by_name: dict[str, Variant], probe: Sequence[float]) -> Figures:
    dense = by_name[DENSE]
    saves, routes = variant.flops < dense.flops, bool(variant.routing_seconds)
    return Figures(
        name=variant.name,
        step_seconds=median(variant.seconds),
        fastest_seconds=min(variant.seconds),
        slowest_seconds=max(variant.seconds),
        flops=variant.flops,
        flops_per_second=variant.flops / median(variant.seconds),
        share_of_products=_ratio([variant.flops / seconds for seconds in variant.seconds], probe),
        theoretical_saving=1 - variant.flops / dense.flops if saves else None,
        realised_saving=1 - _ratio(variant.seconds, dense.seconds) if saves else None,
        times_of={name: _ratio(variant.seconds, by_name[name].seconds) for name in HUGGING_FACE},
        routing_share=_ratio(variant.routing_seconds, variant.seconds) if routes else None,
        peak_bytes=variant.peak_bytes,
    )


def table(rows: Sequence[Figures]) -> tuple[list[str], list[list[str]]]:
    """The header and one row per variant, as text."""
    shows_memory = any(row.peak_bytes for row in rows)
    header = ["", "seconds a step", "min – max", "GFLOP/s", "of the products"]
    header += ["FLOPs saved", "time saved", "time / FLOPs", *(f"x {name}" for name in HUGGING_FACE), "routing"]
    lines = []
    for row in rows:
        cells = [row.name, f"{row.step_seconds:.3f}", f"{row.fastest_seconds:.3f} – {row.slowest_seconds:.3f}"]
        cells += [f"{row.flops_per_second / 1e9:.0f}", f"{row.share_of_products:.0%}"]
        if row.theoretical_saving is None or row.realised_saving is None:
            cells += ["", "", ""]
        else:
            cells += [f"{row.theoretical_saving:.1%}", f"{row.realised_saving:.1%}"]
            cells += [f"{row.realised_saving / row.theoretical_saving:.2f}"]
        cells += [f"{row.times_of[name]:.2f}" for name in HUGGING_FACE]
        cells += ["" if row.routing_share is None else f"{row.routing_share:.1%}"]
        lines.append(cells + [f"{row.peak_bytes / 2**30:.2f}"] * shows_memory)
    return header + ["GiB a step"] * shows_memory, lines


def circumstances(config: StepTimeConfig, measurement: Measurement) -> dict[str, str]:
    """The circumstances of the measurement."""
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    threads = config.threads or torch.get_num_threads()
    return about(
        "step_time.py", "torch", "megatron-core", "transformers",
        machine=torch.cuda.get_device_name() if on_gpu else f"{cpu_model()}, {os.cpu_count()} cores, {threads} threads",
        shape=f"{config.num_layers} layers, hidden {config.hidden_size}, {config.num_attention_heads} heads, "
        f"S {config.seq_length}, B {config.micro_batch_size}, vocabulary {config.vocab_size}, "
        f"{'bf16' if config.bf16 else 'fp32'}, {config.rounds} rounds"
        + (", CPU seconds" if config.clock == "cpu" else ""),
    ) | {"matrix product": f"{median(measurement.probe_flops_per_second) / 1e9:.0f} GFLOP/s"}  # fmt: skip


def to_json(
    config: StepTimeConfig, measurement: Measurement, rows: Sequence[Figures], about: dict[str, str]
) -> dict[str, Any]:
    """The flags, circumstances and figures, and the seconds of every round."""
    return {
        "config": asdict(config),
        "about": about,
        "figures": [asdict(row) for row in rows],
        "rounds": {
            "probe_flops_per_second": measurement.probe_flops_per_second,
            "step_seconds": {variant.name: variant.seconds for variant in measurement.variants},
            "routing_seconds": {
                variant.name: variant.routing_seconds for variant in measurement.variants if variant.routing_seconds
            },
        },
    }
