"""All turns in order: each contender is built, its missing rows are measured, and it is freed.

    visit 1:  1.3b local   1.3b Transformer Engine   1.3b Hugging Face ...   350m local ...       visit 2: the same

A row that fails is stored with its reason, and the next one has a model of its own; without its dense row a contender
has no others. If that does not fit into the memory, the contender is measured with half the micro-batch, and as many
tokens a step.
"""

from __future__ import annotations

import datetime
import shlex
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from common.page import about

from megatron.ltd.errors import UserError
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.fusions import check_routing_kernels
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.mesh import Mesh, choose_device, initialize
from megatron.ltd.training.throughput import published_peak

from . import contenders
from .cases import Arm, Case, cases, check_run_flags
from .config import AS_IN_A_RUN, CONTENDERS, OURS, GpuConfig
from .measure import ModelMeter, first_line
from .record import Record, Row
from .report import page, row_line

_PACKAGES = ("torch", "megatron-core", "transformer-engine", "transformers", "triton")


def run(config: GpuConfig) -> str:
    """Measure what the folder of ``--output`` does not have, and return its page. Raises ``UserError``."""
    device = choose_device(config.device)
    if device.type == "cpu" and not config.tiny:
        raise UserError(f"--device {config.device}: the models are too large for a CPU; add --tiny")
    products = check_run_flags(config)
    for kernels in config.ltd_kernels:
        check_routing_kernels(ModelConfig(ltd_kernels=kernels), device)
    record = _record(config, device, products)
    with initialize(ParallelConfig(device=device.type)) as mesh:
        skipped = {name: contenders.reason_to_skip(name, device.type) for name in config.contenders}
        for name, reason in skipped.items():
            if reason is not None:
                print(f"skipped {CONTENDERS[name]}: {reason}", flush=True)
        for turn in cases(config, device.type):
            if skipped[turn[0].contender] is None:
                _take_turn(turn, config, mesh, record)
    return page(record)


def _record(config: GpuConfig, device: torch.device, dtype: str) -> Record:
    """The rows so far; ``dtype``: the type whose peak they are measured by."""
    facts = about("gpu.py", *_PACKAGES)
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    if on_gpu:
        facts["machine"] = f"{name}, CUDA {torch.version.cuda}, {facts['machine']}"
    chosen = asdict(config)
    settings: dict[str, Any] = {key: chosen[key] for key in ("tiny", "run_flags", "rounds", "warmup_rounds")}
    settings |= {"device": name, "versions": facts["versions"], "peak_tflops": published_peak(name, dtype)}
    settings |= {"peak_dtype": dtype}
    return Record(Path(config.output), settings, facts)


def _take_turn(turn: list[Case], config: GpuConfig, mesh: Mesh, record: Record) -> None:
    for case in turn:
        first = _Turn(case, config, mesh, record).run()
        if not first.out_of_memory:
            return


class _Turn:
    """The rows of a case, on a model that is built when the first of them is missing."""

    def __init__(self, case: Case, config: GpuConfig, mesh: Mesh, record: Record) -> None:
        self._case, self._config, self._mesh, self._record = case, config, mesh, record
        self._held = ExitStack()
        self._step_of: contenders.StepOf | None = None
        self._meter = ModelMeter(mesh.device)

    def run(self) -> Row:
        """Measure the missing rows, and return the first one."""
        first, *others = self._case.arms
        try:
            found = self._row(first)
            if not found.failed:
                for arm in others:
                    self._row(arm)
        finally:
            self._free()
        return found

    def _row(self, arm: Arm) -> Row:
        empty = _empty_row(self._case, arm)
        known = self._record.rows.get(empty.key)
        if known is not None and not (known.failed and self._config.retry_failed):
            return known
        try:
            row = self._measured(arm, empty)
        except Exception as error:  # whatever a model, a kernel or a compiler raises
            memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
            row = replace(empty, failed=first_line(error), out_of_memory=memory)
        if row.failed:
            self._free()
        self._record.add(row, page)
        print(row_line(row, self._record.settings["peak_tflops"]), flush=True)
        if row.failed:
            self._meter.check(row_line(row, None))
        return row

    def _measured(self, arm: Arm, row: Row) -> Row:
        if self._step_of is None:
            self._meter = ModelMeter.on(self._mesh.device)
            self._step_of = self._held.enter_context(contenders.built(self._case, self._mesh))
        step = self._step_of(arm, None)
        # Graphs of a number of tokens replace those of another, and would be captured in every round.
        alone = arm == Arm() or self._case.contender not in OURS
        beside = None if alone else self._step_of(Arm(), None)
        rounds = {"warmup_rounds": self._config.warmup_rounds, "rounds": self._config.rounds}
        row = replace(row, **self._meter.measure(step, beside, **rounds))
        if self._case.contender not in AS_IN_A_RUN or self._case.visit > 1:
            return row
        try:
            profile = self._meter.profile(self._step_of(arm, 1))
        except RuntimeError as error:
            print(f"not profiled: {first_line(error)}", flush=True)
            return row
        routing = profile.routing_seconds * self._case.num_microbatches
        return replace(row, routing_seconds=routing if arm.kept_tokens else None, kernels=profile.kernels)

    def _free(self) -> None:
        self._step_of = None
        self._held.close()


def _empty_row(case: Case, arm: Arm) -> Row:
    """The row before it is measured."""
    forecast, ours = case.forecast(arm), case.contender in AS_IN_A_RUN
    return Row(
        model=case.model.name,
        contender=case.contender,
        arm=arm.name,
        kept_tokens=arm.kept_tokens,
        block_size=arm.block_size,
        micro_batch_size=case.micro_batch_size,
        visit=case.visit,
        samples=forecast.plan.samples(1),
        tokens=forecast.plan.tokens(1),
        flops=forecast.plan.flops(1),
        dense_flops=forecast.plan.dense_flops(1),
        date=datetime.date.today().isoformat(),
        command=shlex.join(case.command(arm)) if ours else None,
        planned_bytes=forecast.fullest.total if ours else None,
        ltd_kernels=arm.kernels,
    )
