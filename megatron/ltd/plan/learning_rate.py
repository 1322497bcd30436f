"""The learning rate at any value of the clock, without stepping a scheduler.

    lr     |     .....
           |   .       ...          warm-up: linear from --lr-warmup-init to --lr; decay: --lr-decay-style
    min lr | .            .......   then --min-lr
           +--------------------- clock (layer tokens, tokens or samples)

The values are those of Megatron-Core's ``OptimizerParamScheduler``, to the last bit, which a test checks. Plans use
this module, because they are made before torch is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (math.cos(math.pi * done) + 1.0),
    "exponential": lambda done: 2.0 * math.pow(0.5, done) - 1.0,
    "minus_sqrt": lambda done: 1.0 - math.sqrt(done),
}
"""By style: the share of (lr - min lr) that is left after the share ``done`` of the decay."""


def learning_rate(schedule: Mapping[str, Any], clock: int) -> float:
    """The rate of the update at this value of the clock; ``schedule`` is that of ``RunClock.schedule``."""
    first, peak, least = schedule["init_lr"], float(schedule["max_lr"]), schedule["min_lr"]
    warmup, end, style = schedule["lr_warmup_steps"], schedule["lr_decay_steps"], schedule["lr_decay_style"]
    if warmup and clock <= warmup:
        return first + (peak - first) * float(clock) / float(warmup)
    if style == "constant":
        return peak
    if clock > end:
        return least
    if style == "inverse-square-root":
        return max(least, peak * max(warmup, 1) ** 0.5 / max(clock, 1) ** 0.5)
    if style == "WSD":
        style, start = schedule["lr_wsd_decay_style"], end - schedule["wsd_decay_steps"]
        left = 1.0 if clock <= start else _DECAYS[style](float(clock - start) / float(end - start))
    else:
        left = _DECAYS[style](float(clock - warmup) / float(end - warmup))
    return least + left * (peak - least)
