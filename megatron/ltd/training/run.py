"""Everything a run is made of, built in the order in which mistakes are cheapest to find.

tokenizer, data files -> checkpoint and its identity -> model, optimizer -> plan, schedule -> weights -> datasets -> log
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import megatron.core
import torch
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

import megatron.ltd
from megatron.ltd.accounting import ModelShape
from megatron.ltd.config import RunConfig
from megatron.ltd.data.batch import Batch, SampleSource, microbatches
from megatron.ltd.data.datasets import build_datasets, check_sources
from megatron.ltd.errors import UserError
from megatron.ltd.layers import route
from megatron.ltd.methods.base import Method
from megatron.ltd.models.gpt import build_gpt, transformer_config
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.planner import Clock, RunPlan
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import model_vocab_size
from megatron.ltd.training import checkpoint_files
from megatron.ltd.training.checkpoint import (
    Progress,
    TrainingState,
    find_checkpoint,
    first_of_all_ranks,
    load_checkpoint,
    save_checkpoint,
)
from megatron.ltd.training.clock import RunClock, settle_schedule
from megatron.ltd.training.log import RunLog
from megatron.ltd.training.optimizer import build_optimizer, wrap_model
from megatron.ltd.training.resume import changed_settings, check_identity, check_order, data_order, weights_identity
from megatron.ltd.training.signals import ExitRequests
from megatron.ltd.training.step import Stepper, seed_step


@dataclass
class Run:
    """A run that is ready to train; ``loop.train`` drives it."""

    config: RunConfig
    mesh: Mesh
    tokenizer: Tokenizer
    shape: ModelShape
    method: Method
    clock: RunClock
    plan: RunPlan
    state: TrainingState
    stepper: Stepper
    train_data: SampleSource
    valid_data: SampleSource | None
    log: RunLog
    exits: ExitRequests
    record: Mapping[str, Any]
    """What ``run.json`` of every checkpoint says beside the progress."""

    @property
    def progress(self) -> Progress:
        return self.state.progress

    @property
    def learning_rate(self) -> float:
        """The rate that the next update uses."""
        return self.state.optimizer.param_groups[0]["lr"]

    def microbatches_of(self, samples: int) -> int:
        """Microbatches that each rank computes for ``samples`` of all ranks."""
        return samples // (self.config.training.micro_batch_size * self.mesh.data_parallel_size)

    def batches(self, data: SampleSource, consumed_samples: int) -> Iterator[Batch]:
        """This rank's microbatches of ``data`` from ``consumed_samples`` on."""
        data_config, on_gpu = self.config.data, self.mesh.device.type == "cuda"
        return microbatches(
            data,
            consumed_samples=consumed_samples,
            micro_batch_size=self.config.training.micro_batch_size,
            data_parallel_rank=self.mesh.data_parallel_rank,
            data_parallel_size=self.mesh.data_parallel_size,
            separate_documents_at=self.tokenizer.eod if data_config.reset_attention_mask else None,
            num_workers=data_config.workers_on(self.mesh.device.type),
            pin_memory=on_gpu,
        )

    def save(self) -> None:
        """Write a checkpoint of the present state, if the run has a folder for it."""
        folder = self.config.checkpoint.save
        if folder is None:
            return
        started = time.perf_counter()
        save_checkpoint(Path(folder), self.state, self.record, self.mesh, self.config.checkpoint.keep_last)
        where = checkpoint_files.checkpoint_path(Path(folder), self.progress.iteration)
        self.log.say(f"saved {where} in {time.perf_counter() - started:.1f} s")


@dataclass(frozen=True)
class _Start:
    """Where a run starts: the checkpoint it loads, if any, and what that says."""

    checkpoint: Path | None
    stored: Mapping[str, Any]
    progress: Progress
    notes: tuple[str, ...]

    @property
    def continues(self) -> bool:
        return self.checkpoint is not None and self.progress.iteration > 0

    def clock_stands_at(self, config: RunConfig, consumed: Mapping[Clock, int]) -> int | None:
        """Where the learning rate's clock starts; None to take it from the checkpoint."""
        unit = config.optimizer.lr_clock
        if config.checkpoint.no_load_optim or (
            self.continues and self.stored["config"]["optimizer"]["lr_clock"] != unit
        ):
            return consumed[unit]  # type: ignore[index]
        return None


def build_run(config: RunConfig, mesh: Mesh) -> Run:
    """Build every part of a run. Raises ``UserError`` for what cannot be trained, before anything is written."""
    route.install()
    tokenizer = build_tokenizer(config.tokenizer)
    vocab_size = model_vocab_size(config.tokenizer, tokenizer.vocab_size, config.parallel.tensor_model_parallel_size)
    shape, method = config.model.shape(vocab_size), config.build_method()
    identity = weights_identity(config.model, tokenizer, vocab_size)
    order = data_order(config, check_sources(config.data, tokenizer, read_tokens=False))
    start = _find_start(config, identity, order, mesh)

    global_batch_size = config.global_batch_size(mesh.data_parallel_size)
    clock = RunClock.build(shape, global_batch_size, method, config.training, config.optimizer)
    clock.batch.check_divisible(config.training.micro_batch_size, mesh.data_parallel_size)
    consumed = _consumed(start.progress, shape)
    plan, schedule = clock.plan(start.progress.iteration, consumed), clock.schedule(start.progress.iteration, consumed)
    if start.continues and not config.checkpoint.no_load_optim:
        settle_schedule(
            {"lr_clock": start.stored["config"]["optimizer"]["lr_clock"], **start.stored["schedule"]},
            {"lr_clock": clock.unit, **schedule},
            config.optimizer.override_opt_param_scheduler,
        )

    train_data, valid_data = _build_data(config, tokenizer, plan, clock, start)
    state = _build_state(config, vocab_size, schedule, start, start.clock_stands_at(config, consumed), mesh)
    stepper = Stepper(
        state.model,
        state.optimizer,
        method,
        mesh,
        seed=config.training.seed,
        micro_batch_size=config.training.micro_batch_size,
        seq_length=config.model.seq_length,
    )
    iteration = start.progress.iteration
    flops_left = plan.flops(plan.num_steps) - plan.flops(min(iteration, plan.num_steps))
    log = RunLog(config.logging, _log_folder(config), mesh.is_first, iteration, plan.num_steps, flops_left)
    for note in start.notes:
        log.say(note)
    record = {"schedule": schedule, "identity": identity, "order": order, "config": config.to_dict()}
    exits = ExitRequests(config.training, mesh)
    return Run(
        config, mesh, tokenizer, shape, method, clock, plan, state, stepper, train_data, valid_data, log, exits, record
    )  # fmt: skip


def versions(mesh: Mesh) -> dict[str, Any]:
    """What the run stands on, for its first line in metrics.jsonl."""
    device = (
        torch.cuda.get_device_name(mesh.device)
        if mesh.device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads"
    )
    return {
        "megatron-ltd": megatron.ltd.__version__,
        "megatron-core": megatron.core.__version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "device": device,
        "world_size": mesh.world_size,
    }


def _consumed(progress: Progress, shape: ModelShape) -> dict[Clock, int]:
    return {
        "layer-tokens": progress.consumed_layer_tokens,
        "tokens": progress.consumed_samples * shape.seq_length,
        "samples": progress.consumed_samples,
    }


def _find_start(config: RunConfig, identity: Mapping[str, Any], order: Mapping[str, Any], mesh: Mesh) -> _Start:
    """Settle what ``--load`` and ``--save`` mean for this start, and check what is loaded."""
    flags = config.checkpoint
    load = None if flags.load is None else Path(flags.load)
    if flags.save is not None:
        _check_save_folder(Path(flags.save), load, flags.finetune, mesh)
    checkpoint, notes = (None, []) if load is None else find_checkpoint(load, mesh)
    if checkpoint is None:
        starts_empty = flags.save is not None and load is not None and load.resolve() == Path(flags.save).resolve()
        if load is not None and (not starts_empty or flags.finetune or flags.no_load_optim):
            raise UserError(f"--load {load} holds no checkpoint: name a folder that does, or drop --load to start anew")
        return _Start(None, {}, Progress(), ())
    stored = checkpoint_files.read_run(checkpoint)
    check_identity(checkpoint, stored["identity"], identity)
    if flags.finetune:
        notes.append(f"loading {checkpoint}, weights only, counting from step 0")
        return _Start(checkpoint, stored, Progress(), tuple(notes))
    check_order(checkpoint, stored["order"], order)
    notes.append(f"loading {checkpoint}" + (", weights only" if flags.no_load_optim else ""))
    changes = changed_settings(stored["config"], config)
    return _Start(checkpoint, stored, Progress(**stored["progress"]), (*notes, *([changes] if changes else [])))


def _check_save_folder(save: Path, load: Path | None, finetune: bool, mesh: Mesh) -> None:
    """One process looks, and all of them hear what is wrong."""
    refusal = None
    if mesh.is_first:
        try:
            checkpoint_files.check_save_folder(save, load, finetune)
        except UserError as error:
            refusal = str(error)
    refusal = first_of_all_ranks(refusal, mesh)
    if refusal is not None:
        raise UserError(refusal)


def _build_data(
    config: RunConfig, tokenizer: Tokenizer, plan: RunPlan, clock: RunClock, start: _Start
) -> tuple[SampleSource, SampleSource | None]:
    """The training samples of the whole run, and those of one evaluation."""
    ahead = start.progress.consumed_samples - plan.samples(min(start.progress.iteration, plan.num_steps))
    train, valid = build_datasets(
        config.data,
        seq_length=config.model.seq_length,
        seed=config.training.seed,
        train_samples=plan.samples(plan.num_steps) + ahead,
        valid_samples=config.training.eval_iters * clock.batch.global_batch_samples,
        tokenizer=tokenizer,
    )
    assert train is not None
    return train, valid


def _build_state(
    config: RunConfig,
    vocab_size: int,
    schedule: Mapping[str, Any],
    start: _Start,
    clock_stands_at: int | None,
    mesh: Mesh,
) -> TrainingState:
    """Model, optimizer and scheduler, freshly drawn or loaded."""
    core_config = transformer_config(config.model, config.parallel, config.precision, config.recompute, mesh)
    seed_step(config.training.seed, -1, mesh)
    gpt = build_gpt(config.model, core_config, vocab_size, mesh, explicit_mask=config.data.reset_attention_mask)
    model = wrap_model(gpt, config.parallel, config.precision)
    optimizer = build_optimizer(model, config.optimizer, config.precision, config.parallel)
    scheduler = OptimizerParamScheduler(
        optimizer,
        **schedule,
        start_wd=config.optimizer.weight_decay,
        end_wd=config.optimizer.weight_decay,
        wd_incr_steps=schedule["lr_decay_steps"],
        wd_incr_style="constant",
    )
    state = TrainingState(model, optimizer, scheduler, start.progress)
    if start.checkpoint is not None:
        load_checkpoint(
            start.checkpoint,
            state,
            weights_only=config.checkpoint.finetune or config.checkpoint.no_load_optim,
            clock_stands_at=clock_stands_at,
        )
    return state


def _log_folder(config: RunConfig) -> Path:
    if config.logging.log_dir is not None:
        return Path(config.logging.log_dir)
    if config.checkpoint.save is not None:
        return Path(config.checkpoint.save)
    return Path("runs") / time.strftime("%Y%m%d-%H%M%S")
