"""Made-up records: dense loss falls by 0.5 per factor e of steps, and a seed shifts the loss of all arms equally."""

from __future__ import annotations

import math

from evidence.records import Record

DENSE_FLOPS = 10**9


def dense_loss(share: float, seed: int = 0) -> float:
    """The loss of a dense run with this share of 100 steps."""
    return 3.0 - 0.5 * math.log(share) + 0.1 * seed


def record(arm: str, seed: int, loss: float, *, cost: float = 1.0, lr: float = 3e-3, steps: int = 100) -> Record:
    """A record of the setting s256; ``cost`` is relative to dense FLOPs."""
    dense_flops = DENSE_FLOPS * steps // 100
    return Record(
        key=f"{arm}{lr}{seed}", setting="s256", arm=arm, lr=lr, seed=seed, steps=steps, loss=loss,
        flops=int(dense_flops * cost), dense_flops=dense_flops, layer_tokens=1, cpu_seconds=1.0, data_sha256="00",
        flags="", date="2026-01-01", machine="a machine", versions="torch 2",
    )  # fmt: skip


def dense(seed: int, share: float = 1.0, name: str = "dense", lr: float = 3e-3) -> Record:
    """The record of a dense run with this share of 100 steps."""
    return record(name, seed, dense_loss(share, seed), steps=round(100 * share), lr=lr)
