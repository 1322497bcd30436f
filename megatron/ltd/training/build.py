"""Builds all parts of a run, in the order in which mistakes of the user are cheapest to find.

tokenizer, data files -> checkpoint and its identity -> model, optimizer -> plan, schedule -> weights -> datasets -> log
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor

from megatron.ltd.checkpoint.load import TrainingState, load_checkpoint, load_imported, load_megatron_lm
from megatron.ltd.checkpoint.run_format import MODEL
from megatron.ltd.checkpoint.save import CheckpointSaver
from megatron.ltd.checkpoint.start import Start, find_start
from megatron.ltd.data.microbatches import BegunLater, NoTokens, SampleSource
from megatron.ltd.layers import route
from megatron.ltd.models.fp8_sizes import check_tokens
from megatron.ltd.models.fusions import accumulate_in_products, fusions_of
from megatron.ltd.models.graph_rules import check_stages
from megatron.ltd.models.transformer import transformer_config
from megatron.ltd.parallel.agreement import agree, together
from megatron.ltd.parallel.layout import check_batches
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.clock import RunClock
from megatron.ltd.plan.run_plan import RunPlan
from megatron.ltd.training.log import RunLog
from megatron.ltd.training.memory_check import check_memory
from megatron.ltd.training.optimizer import build_optimizer, wrap_chunks
from megatron.ltd.training.run import Run
from megatron.ltd.training.signals import ExitRequests
from megatron.ltd.training.step import Stepper
from megatron.ltd.training.throughput import Throughput, published_peak
from megatron.ltd.training.upkeep import Upkeep
from megatron.ltd.versions import installed_versions
from megatron.ltd.words import in_words, value_of

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig
    from megatron.ltd.workloads.base import Workload


def build_run(config: RunConfig, mesh: Mesh) -> Run:
    """Build all parts of a run. Raises ``UserError`` for what cannot be trained, before anything is written."""
    route.install()
    with together():  # a file may be missing on one node alone
        workload = config.workload.open(config)
    shape, method = workload.shape, config.build_method(workload.special_ids)
    learned_V = method.initial_state(workload.num_token_ids)
    identity = {MODEL: config.workload.weights or config.workload.id, **workload.identity}
    order = dict(workload.order)
    files = {key: _one_fingerprint(each) for key, each in workload.fingerprints.items()}
    agree(in_words({**identity, **order, **files}), "give every node the same files")
    start = find_start(config, identity, order, workload.open_imported, mesh)

    global_batch_size = config.global_batch_size(mesh.data_parallel_size)
    clock = RunClock.build(shape, global_batch_size, method, config.training, config.optimizer)
    check_batches(config.parallel, clock.batch, config.training.micro_batch_size, mesh.data_parallel_size)
    consumed = start.consumed
    plan, schedule = clock.plan(start.progress.iteration, consumed), clock.schedule(start.progress.iteration, consumed)
    check_tokens(config, plan)
    check_stages(config, plan, mesh.data_parallel_size)
    taken = start.check_schedule(config, clock.settings(schedule))
    check_memory(config, workload.sizes, plan, mesh)

    train_data, eval_data = _build_data(workload, plan, clock, start, mesh, every_stage=method.observes)
    initial_clock = start.initial_clock(config, consumed)
    new_weights = (
        workload.new_weights(start.stored) if start.checkpoint is not None and config.checkpoint.finetune else ()
    )
    state = _build_state(
        config, workload, schedule, start, initial_clock, mesh, learned_V, entry_layers=plan.entry_layers,
        new_weights=new_weights,
    )  # fmt: skip
    stepper = Stepper(
        state.chunks,
        state.optimizer,
        method,
        mesh,
        workload.objective,
        seed=config.training.seed,
        micro_batch_size=config.training.micro_batch_size,
        seq_length=config.model.seq_length,
    )
    throughput, log_folder = _throughput(config, mesh), _log_folder(config)
    log = _open_log(config, mesh, log_folder, plan, start.progress.iteration, throughput)
    for note in _notes(config, start, new_weights, taken):
        log.print_line(note)
    record = {
        "schedule": clock.settings(schedule), "identity": identity, "order": order, "config": config.to_dict(),
        "learned": method.observes,
    }  # fmt: skip
    saver = CheckpointSaver(config.checkpoint, mesh, log.print_line)
    exits = ExitRequests(config.training, mesh)
    upkeep = Upkeep(config.training, config.logging, mesh, log_folder)
    return Run(
        config, mesh, workload, method, clock, plan, state, stepper, train_data, eval_data, log, saver, exits,
        upkeep, throughput, record, taken is not None or start.changed_seq_length(config),
    )  # fmt: skip


def _one_fingerprint(each: Sequence[str]) -> str:
    """One fingerprint of many datasets: every process sends it to all others."""
    return each[0] if len(each) == 1 else hashlib.sha256(" ".join(each).encode()).hexdigest()[:12]


def _notes(config: RunConfig, start: Start, new_weights: tuple[str, ...], taken: str | None) -> list[str]:
    """Lines about flags, and about where the run starts."""
    notes, pretrained = [*config.notes, *start.notes], config.workload.weights
    if pretrained is not None and start.checkpoint is None:
        notes.append(
            f"starting from random weights: use --load and --finetune to start from a pretrained "
            f"{value_of(MODEL, pretrained)}"
        )
    if new_weights:
        notes.append(f"initialized randomly, not loaded from the checkpoint: {', '.join(new_weights)}")
    return notes if taken is None else [*notes, taken]


def versions(mesh: Mesh) -> dict[str, Any]:
    """Versions, device and number of processes, for the first line in metrics.jsonl."""
    device = (
        torch.cuda.get_device_name(mesh.device)
        if mesh.device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads"
    )
    return {**installed_versions(), "device": device, "world_size": mesh.world_size}


def _build_data(
    workload: Workload,
    plan: RunPlan,
    clock: RunClock,
    start: Start,
    mesh: Mesh,
    *,
    every_stage: bool,
) -> tuple[SampleSource, dict[str, tuple[SampleSource, int]]]:
    """The training samples of the whole run, and those of one evaluation; a stage that needs none reads none.

    ``every_stage``: all stages need tokens, because the method selects by them.
    """
    progress, first = start.progress, start.progress.data_first_sample
    train_samples = plan.samples(plan.num_steps) + plan.ahead(progress.iteration, progress.consumed_samples, "samples")
    eval_samples = workload.eval_samples(clock.batch.global_batch_samples)
    at_an_end = mesh.pipeline_parallel_rank in (0, mesh.pipeline_parallel_size - 1)
    reads = at_an_end or every_stage or workload.every_layer_needs_data
    train, evaluated = workload.build_data(max(1, train_samples - first), eval_samples, reads=reads)
    if not reads:
        return NoTokens(train_samples), {key: (NoTokens(number), number) for key, number in eval_samples.items()}
    assert train is not None
    return BegunLater(train, first), {key: (found, eval_samples[key]) for key, found in evaluated.items()}


def _build_state(
    config: RunConfig,
    workload: Workload,
    schedule: Mapping[str, Any],
    start: Start,
    initial_clock: int | None,
    mesh: Mesh,
    learned_V: Tensor | None,
    *,
    entry_layers: frozenset[int],
    new_weights: tuple[str, ...],
) -> TrainingState:
    """Model, optimizer, scheduler and ``learned_V``, new or loaded; the last two arguments are a ``Workload``'s."""
    core_config = transformer_config(config.model, config.parallel, config.precision, config.recompute, mesh)
    chunks = wrap_chunks(
        workload.build_chunks(core_config, mesh, entry_layers=entry_layers), config.parallel, config.precision
    )
    if fusions_of(config.model, mesh.device).gradient_accumulation:
        accumulate_in_products(chunks)
    counts_zeros = config.logging.log_num_zeros_in_grad
    optimizer = build_optimizer(chunks, config.optimizer, config.precision, config.parallel, counts_zeros=counts_zeros)
    scheduler = OptimizerParamScheduler(
        optimizer,
        **schedule,
        start_wd=config.optimizer.weight_decay,
        end_wd=config.optimizer.weight_decay,
        wd_incr_steps=schedule["lr_decay_steps"],
        wd_incr_style="constant",
    )
    state = TrainingState(
        chunks, optimizer, scheduler, start.progress, None if learned_V is None else learned_V.to(mesh.device)
    )
    readers = mesh.groups.dp_cp if config.checkpoint.ckpt_fully_parallel_load else None
    if start.checkpoint is not None:
        load_checkpoint(
            start.checkpoint,
            state,
            weights_only=config.checkpoint.finetune or config.checkpoint.no_load_optim,
            stored_in_low_precision=start.stored_in_low_precision,
            initial_clock=initial_clock,
            stored_learned=start.stored.get("learned", False),
            new_weights=new_weights,
            readers=readers,
        )
    elif start.imported is not None:
        load_imported(start.imported, state)
    elif start.megatron_lm is not None:
        load_megatron_lm(start.megatron_lm, state, readers)
    return state


def _open_log(
    config: RunConfig, mesh: Mesh, folder: Path, plan: RunPlan, iteration: int, throughput: Throughput
) -> RunLog:
    """The log of a run that goes on after ``iteration``. Raises ``UserError`` if it cannot be written."""
    flops_left = plan.flops(plan.num_steps) - plan.flops(min(iteration, plan.num_steps))
    save_folder = None if config.checkpoint.save is None else Path(config.checkpoint.save)
    with together():
        log = RunLog(
            config.logging, folder, mesh.is_first, iteration, plan.num_steps, flops_left, throughput,
            config.to_dict(), save_folder,
        )  # fmt: skip
        log.settings(config.settings_file())
    return log


def _throughput(config: RunConfig, mesh: Mesh) -> Throughput:
    device = torch.cuda.get_device_name(mesh.device) if mesh.device.type == "cuda" else ""
    peak = config.logging.peak_tflops or published_peak(device, config.precision.product_dtype)
    return Throughput(mesh.world_size, peak)


def _log_folder(config: RunConfig) -> Path:
    if config.logging.log_dir is not None:
        return Path(config.logging.log_dir)
    if config.checkpoint.save is not None:
        return Path(config.checkpoint.save)
    return Path("runs") / time.strftime("%Y%m%d-%H%M%S")
