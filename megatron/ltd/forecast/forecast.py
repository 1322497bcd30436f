"""``--plan``: the forecast of a run, from its flags alone. No device, no data, no other process, and no torch.

    flags -> sizes, layout -> method, clock -> (answer to a question) -> plan, learning rate, memory, time

It uses the same clock, plan and schedule as the run. Not here: the text of the forecast (``report``).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.ltd.errors import UserError, writes_to
from megatron.ltd.forecast.config import SAVING_WORDS
from megatron.ltd.forecast.duration import Speed
from megatron.ltd.forecast.layout import Layout
from megatron.ltd.forecast.memory import stage_memory
from megatron.ltd.forecast.report import Answer, Forecast
from megatron.ltd.forecast.solve import OutOfReach, SavingUnit, ends_dense, least_growth, plan_within, saved
from megatron.ltd.models.fp8_sizes import check_tokens
from megatron.ltd.models.graph_rules import check_stages
from megatron.ltd.parallel.layout import check_batches
from megatron.ltd.plan.accounting import ModelShape
from megatron.ltd.plan.clock import RunClock
from megatron.ltd.plan.learning_rate import learning_rate
from megatron.ltd.plan.run_plan import RunPlan
from megatron.ltd.tokenizers.config import GPT2_VOCAB_SIZE, assumes_vocab_size
from megatron.ltd.words import by_default

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig
from megatron.ltd.checkpoint.run_format import FORMAT_VERSION


def say_plan(config: RunConfig) -> None:
    """Print the plan of a run, and write it to ``--plan-json``; only the first of several processes does.

    Raises ``UserError`` for settings that cannot be trained, a target that cannot be reached, and a file that cannot be
    written.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    target = None if config.planning.plan_json is None else Path(config.planning.plan_json)
    if target is not None:
        _check_new(target)
    forecast = plan_ahead(config, int(os.environ.get("WORLD_SIZE", "1")))
    if target is not None:
        content = {"format_version": FORMAT_VERSION, **forecast.to_dict()}
        with writes_to(f"--plan-json {target}", "give another file"), target.open("x", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
    print(forecast.text())
    for line in [*config.warnings, *_assumptions(config), *warnings_of(forecast.plan)]:
        print(line)


def plan_ahead(config: RunConfig, num_started: int = 1) -> Forecast:
    """The forecast. Raises ``UserError`` for settings that cannot be trained, or a target that cannot be reached."""
    planning = config.planning
    if planning.plan_step_seconds is not None and planning.plan_gpus is None and num_started == 1:
        raise UserError(
            f"--plan-step-seconds {planning.plan_step_seconds:g}: it does not say on how many GPUs it was measured; "
            "add --plan-gpus"
        )
    sizes = config.workload.sizes(config)
    layout = Layout.of(config.parallel, config.planning.plan_gpus, num_started, config.model.num_layers)
    clock = _clock(config, sizes.shape, layout)
    check_batches(config.parallel, clock.batch, config.training.micro_batch_size, layout.data_parallel_size)
    batch_samples, precision = clock.batch.global_batch_samples, config.precision
    speed = Speed.of(config.planning, precision.product_dtype, layout.num_gpus, sizes.shape, batch_samples)
    answer: Answer | None = None
    if config.planning.plan_target_saving is not None:
        clock, answer = _least_growth(config, sizes.shape, layout)
    elif config.planning.plan_gpu_hours is not None:
        assert speed is not None, "checked with the flags"
        clock, answer = _affordable_length(clock, config.planning.plan_gpu_hours, speed)
    plan, schedule = clock.plan(), clock.schedule()
    check_tokens(config, plan)
    check_stages(config, plan, layout.data_parallel_size)
    return Forecast(
        workload=config.workload,
        method=clock.method.name,
        settings=clock.method.settings,
        defaults=by_default(clock.method.settings, config.given),
        sizes=sizes,
        plan=plan,
        rate=partial(rate_at, clock, plan, schedule),
        train_tokens=_train_tokens(clock, plan),
        layout=layout,
        dtype=precision.dtype,
        memory=stage_memory(config, sizes, layout, plan),
        speed=speed,
        gpu=planning.plan_gpu,
        answer=answer,
    )


def _assumptions(config: RunConfig) -> list[str]:
    """Lines about what no flag says, and the plan assumes."""
    if config.tokenizer is None or not assumes_vocab_size(config.tokenizer):
        return []
    return [
        f"warning: neither --tokenizer-type nor --vocab-size is given: planned with GPT-2's {GPT2_VOCAB_SIZE:,} tokens"
    ]


def rate_at(clock: RunClock, plan: RunPlan, schedule: Mapping[str, Any], step: int, ahead: int = 0) -> float:
    """The learning rate of the update at the end of the 0-based ``step``.

    ``ahead``: how far the clock is beyond the plan, in a run that was continued with other settings.
    """
    return learning_rate(schedule, max(0, plan.clock(step, clock.unit) + ahead))


def warnings_of(plan: RunPlan) -> list[str]:
    """Warnings about a plan, one line each."""
    if ends_dense(plan):
        return []
    return [
        f"warning: the run ends while layers still drop tokens (its last step keeps "
        f"{plan.stages[-1].plan.min_kept_tokens} of {plan.shape.seq_length}), so it does not end on the dense model: "
        "let the kept tokens grow to all, shorten the growth or lengthen the run"
    ]


def _clock(config: RunConfig, shape: ModelShape, layout: Layout) -> RunClock:
    batch_samples = config.global_batch_size(layout.data_parallel_size)
    return RunClock.build(shape, batch_samples, config.build_method(), config.training, config.optimizer)


def _train_tokens(clock: RunClock, plan: RunPlan) -> int:
    """The ``--train-tokens`` that give as many steps as the plan has."""
    steps = plan.num_steps
    if clock.unit == "layer-tokens":
        return plan.layer_tokens(steps) // clock.shape.num_layers
    return plan.tokens(steps)


def _least_growth(config: RunConfig, shape: ModelShape, layout: Layout) -> tuple[RunClock, Answer]:
    """The run with the least growth length that reaches ``--plan-target-saving``."""
    target = config.planning.plan_target_saving
    assert target is not None
    tokens, clock = config.training.train_tokens, _clock(config, shape, layout)
    horizon = clock.from_tokens(tokens) if tokens is not None and clock.unit == "layer-tokens" else None
    question = f"--plan-target-saving {target:g}"
    unit: SavingUnit = "flops" if config.planning.plan_saving_of == "flops" else "layer-tokens"
    what = SAVING_WORDS[unit]
    try:
        growth_steps = least_growth(
            lambda growth_steps: _clock(config.growing_over(growth_steps), shape, layout).plan(),
            Fraction(str(target)),
            horizon,
            unit,
        )
    except OutOfReach as reach:
        raise UserError(
            f"{question}: growth that ends within the run saves {float(reach.least):.4f} to {float(reach.most):.4f} of "
            f"the {what}; give a share between them, or start from fewer kept tokens"
        ) from None
    clock = _clock(config.growing_over(growth_steps), shape, layout)
    plan = clock.plan()
    share = growth_steps / plan.num_steps
    about = (
        f"the least that does: saves {float(saved(plan, unit)):.6f} of the {what}, and is {share:.4f} of "
        f"{plan.num_steps:,} steps"
    )
    return clock, Answer({"--plan-target-saving": target}, {config.growth_flag: growth_steps}, about)


def _affordable_length(clock: RunClock, gpu_hours: float, speed: Speed) -> tuple[RunClock, Answer]:
    """The longest run that ``--plan-gpu-hours`` pays for."""
    question = f"--plan-gpu-hours {gpu_hours:g}"
    plan = plan_within(clock.shape, clock.batch, clock.method.stages, speed.flops_of(gpu_hours))
    if not plan.stages:
        raise UserError(f"{question}: pays for less than the first step; give more")
    steps = plan.num_steps
    settled = dataclasses.replace(clock, training=dataclasses.replace(clock.training, train_iters=steps))
    about = f"the most that they pay for: costs {speed.gpu_hours(plan.flops(steps)):,.2f} GPU-hours"
    return settled, Answer(
        {"--plan-gpu-hours": gpu_hours}, {"--train-tokens": _train_tokens(clock, plan), "--train-iters": steps}, about
    )


def _check_new(path: Path) -> None:
    """Raises ``UserError`` if the file of ``--plan-json`` exists, or cannot be created."""
    if path.exists():
        raise UserError(f"--plan-json {path}: exists; give a new file, or remove it")
    if not path.parent.is_dir():
        raise UserError(f"--plan-json {path}: {path.parent} is not a folder; make it, or give another file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--plan-json {path}: the folder {path.parent} cannot be written to; give another file")
