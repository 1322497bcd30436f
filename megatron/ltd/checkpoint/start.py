"""Where a run starts: at step 0, from a checkpoint that it continues, or from other weights, ours or Hugging Face's.

    --load and --save -> the newest complete checkpoint, a Hugging Face model, or none -> does it fit? -> Start

Every rank gets the same answer: folders that differ between nodes are refused. ``compatibility`` decides whether a run
fits its checkpoint; ``load`` reads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.checkpoint.compatibility import (
    changed_settings,
    check_identity,
    check_lengths,
    check_order,
    check_schedule,
    replaced_order,
    unused_scales,
)
from megatron.ltd.checkpoint.differences import flag_changes
from megatron.ltd.checkpoint.from_megatron_lm import MegatronLM, check_old_format, find_megatron_lm
from megatron.ltd.checkpoint.load import Progress, find_checkpoint, first_of_all_ranks
from megatron.ltd.errors import UserError, writes_to
from megatron.ltd.hugging_face.config_file import is_hugging_face
from megatron.ltd.hugging_face.weights import ImportedModel
from megatron.ltd.parallel.agreement import agree_on_folder, together
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.run_plan import Clock

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig

OpenImported = Callable[[Path], tuple[ImportedModel, Mapping[str, Any], Mapping[str, Any]]]
"""``Workload.open_imported``."""
SEQ_LENGTH = "seq_length"
"""The id of the length of samples, which text may have and images have not."""
_SHARE = "use a folder that all nodes share"


@dataclass(frozen=True)
class Start:
    """The checkpoint that is loaded, if any, its run.json, and lines for the user about it."""

    checkpoint: Path | None
    stored: Mapping[str, Any]
    progress: Progress
    notes: tuple[str, ...]
    imported: ImportedModel | None = None
    """The Hugging Face model whose weights are loaded, instead of a checkpoint's."""
    megatron_lm: Path | None = None
    """The checkpoint of Megatron-LM whose weights are loaded, instead of one of this program."""

    @property
    def continues(self) -> bool:
        return self.checkpoint is not None and self.progress.iteration > 0

    @property
    def stored_in_low_precision(self) -> bool:
        """Whether the checkpoint's run used bf16 or fp16, and therefore stored main weights in fp32."""
        precision = self.stored["config"]["precision"]
        return precision["bf16"] or precision["fp16"]

    @property
    def consumed(self) -> dict[Clock, int]:
        """What the run has consumed so far, in every unit of the clock."""
        return {
            "layer-tokens": self.progress.consumed_layer_tokens,
            "tokens": self.progress.consumed_tokens,
            "samples": self.progress.consumed_samples,
        }

    def initial_clock(self, config: RunConfig, consumed: Mapping[Clock, int]) -> int | None:
        """The initial value of the learning-rate clock; None to take it from the checkpoint."""
        unit = config.optimizer.lr_clock
        if config.checkpoint.no_load_optim or (
            self.continues and (self.stored["config"].get("optimizer") or {}).get("lr_clock") != unit
        ):
            return consumed[unit]  # type: ignore[index]
        return None

    def check_schedule(self, config: RunConfig, schedule: Mapping[str, Any]) -> str | None:
        """Check that a continued run keeps the checkpoint's schedule, unless a flag says otherwise; then a line about
        it.

        Without the optimizer's state the schedule is that of the flags too.
        """
        if self.checkpoint is None or not self.continues:
            return None
        asked_by = "--override-opt-param-scheduler" if config.optimizer.override_opt_param_scheduler else None
        asked_by = asked_by or ("--no-load-optim" if config.checkpoint.no_load_optim else None)
        settings, stored = self.stored["config"], self.stored["schedule"]
        lengths = flag_changes(settings, config, ["schedule", "numbers"])
        changes = {name: change for name, change in lengths.items() if name.startswith(("train_", "lr_"))}
        if self.changed_seq_length(config) and asked_by is None:
            return check_lengths(self.checkpoint, stored, schedule, changes)
        return check_schedule(self.checkpoint, stored, schedule, asked_by, settings, changes)

    def changed_seq_length(self, config: RunConfig) -> bool:
        """Whether the run continues with samples of another length."""
        length = config.model.seq_length
        return self.continues and self.stored["order"].get(SEQ_LENGTH, length) != length


def find_start(
    config: RunConfig,
    identity: Mapping[str, Any],
    order: Mapping[str, Any],
    open_imported: OpenImported,
    mesh: Mesh,
) -> Start:
    """Find what ``--load`` and ``--save`` mean for this start, and check what is loaded. Every rank calls this.

    ``open_imported`` opens a Hugging Face folder: see ``Workload``. Raises ``UserError`` for folders that cannot be
    used, and for a checkpoint of another run.
    """
    flags = config.checkpoint
    load = None if flags.load is None else Path(flags.load)
    if flags.save is not None:
        _check_save_folder(Path(flags.save), load, flags.finetune, mesh)
    if load is not None:
        agree_on_folder(lambda: {f"the content of --load {load}": _content(load)}, _SHARE)
        if is_hugging_face(load):
            return _start_from_hugging_face(load, config, open_imported)
        check_old_format(load)
        foreign = find_megatron_lm(load)
        if foreign is not None:
            return _start_from_megatron_lm(foreign, config, identity)
    checkpoint, notes = (None, []) if load is None else find_checkpoint(load, mesh)
    if checkpoint is None:
        starts_empty = flags.save is not None and load is not None and load.resolve() == Path(flags.save).resolve()
        needs_one = flags.finetune or flags.no_load_optim or flags.exit_on_missing_checkpoint
        if load is not None and (not starts_empty or needs_one):
            raise UserError(
                f"--load {load}: has no checkpoint; use a folder with one, or remove --load to start at step 0"
            )
        return Start(None, {}, Progress(), ())
    with together():
        stored = checkpoint_files.read_run_to_use(checkpoint)
        changes = flag_changes(stored["config"], config, ["model", "order"])
        check_identity(checkpoint, stored["identity"], identity, changes)
        if flags.finetune:
            notes.append(f"loading {checkpoint}, weights only, counting from step 0")
            return Start(checkpoint, stored, Progress(), tuple(notes))
        if stored["config"].get("checkpoint", {}).get("no_save_optim") and not flags.no_load_optim:
            raise UserError(
                f"--load {load}: {checkpoint.name} was saved with --no-save-optim; add --no-load-optim to continue "
                "with a new optimizer, or --finetune to start at step 0"
            )
        settings = stored["config"].get("model") or {}
        progress = Progress.read(stored["progress"], settings.get(SEQ_LENGTH, config.model.seq_length))
        others = None
        if flags.override_data:
            changes = flag_changes(stored["config"], config, ["order"])
            others = replaced_order(checkpoint, stored["order"], order, changes)
            _check_batch_steps(config, stored["order"])
            progress.data_first_sample = progress.consumed_samples if others else progress.data_first_sample
        else:
            check_order(checkpoint, stored["order"], order, changes)
    notes.append(f"loading {checkpoint}" + (", weights only" if flags.no_load_optim else ""))
    more = (others, changed_settings(stored["config"], config), unused_scales(stored["config"], config))
    return Start(checkpoint, stored, progress, (*notes, *(line for line in more if line is not None)))


def _start_from_hugging_face(load: Path, config: RunConfig, open_imported: OpenImported) -> Start:
    """Use the weights of a Hugging Face model. Raises ``UserError`` if it is incomplete, or not the run's model."""
    flags = config.checkpoint
    with together():
        if not flags.finetune:
            raise UserError(
                f"--load {load}: is a Hugging Face model, not a run to continue; add --finetune to use its weights"
            )
        if flags.save is not None and Path(flags.save).resolve() == load.resolve():
            raise UserError(f"--save {flags.save}: is the Hugging Face folder of --load; use another folder")
        imported, described, wanted = open_imported(load)
        check_identity(load, described, wanted)
    note = f"loading the weights of Hugging Face's {imported.architecture.model_type} in {load}, counting from step 0"
    return Start(None, {}, Progress(), (note,), imported)


def _start_from_megatron_lm(checkpoint: Path, config: RunConfig, identity: Mapping[str, Any]) -> Start:
    """Use the weights of a checkpoint of Megatron-LM. Raises ``UserError`` if they are not those of the run's model."""
    with together():
        if not config.checkpoint.finetune:
            raise UserError(
                f"--load {config.checkpoint.load}: {checkpoint.name} is a checkpoint of Megatron-LM, not of a run to "
                "continue; add --finetune to use its weights"
            )
        found = MegatronLM.open(checkpoint)
        described = found.identity()
        found.check_rest(identity)
        wanted = {"norm_epsilon": getattr(config.model, "norm_epsilon", None), **identity}
        check_identity(checkpoint, described, {name: wanted.get(name) for name in described})
    tokenizer = found.args.get("tokenizer_type")
    note = f"loading the weights of Megatron-LM's {checkpoint}, counting from step 0"
    note += f"; its tokenizer was {tokenizer}" if isinstance(tokenizer, str) else ""
    return Start(None, {}, Progress(), (note,), megatron_lm=checkpoint)


def _check_batch_steps(config: RunConfig, stored: Mapping[str, Any]) -> None:
    """Refuse batches that change at numbers of tokens in a run whose samples had another length."""
    now, steps = config.model.seq_length, config.training.step_batch_size_schedule
    if steps and stored.get(SEQ_LENGTH, now) != now:
        raise UserError(
            f"--seq-length {now}: the samples had {stored[SEQ_LENGTH]} tokens before, and --step-batch-size-schedule "
            "counts the tokens of equal samples; give --global-batch-size and --override-opt-param-scheduler instead"
        )


def _content(folder: Path) -> str:
    """The content of a folder of checkpoints or of a Hugging Face model, as a node sees it."""
    if is_hugging_face(folder):
        files = sorted((path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file())
        return "a Hugging Face model of " + ", ".join(f"{name} ({size} bytes)" for name, size in files)
    iterations = checkpoint_files.candidates(folder)
    if not iterations:
        return "no checkpoint"
    newest = (
        f"{len(iterations)} checkpoint{'s' if len(iterations) > 1 else ''}, the newest of iteration {iterations[0]}"
    )
    problem = checkpoint_files.tracker_problem(folder)
    return newest if problem is None else f"{newest} ({problem})"


def _check_save_folder(save: Path, load: Path | None, finetune: bool, mesh: Mesh) -> None:
    """Check that the first process can write to the folder, and that all processes see what it writes."""
    with together():
        if mesh.is_first:
            check_save_folder(save, load, finetune)
    if mesh.world_size == 1:
        return
    probe = save / str(first_of_all_ranks(f".share-test-{os.getpid()}" if mesh.is_first else None, mesh))
    try:
        with together():
            if mesh.is_first:
                probe.touch()
        agree_on_folder(
            lambda: {f"a file that rank 0 wrote in --save {save}": "there" if probe.exists() else "missing"}, _SHARE
        )
    finally:
        if mesh.is_first:
            probe.unlink(missing_ok=True)


def check_save_folder(save: Path, load: Path | None, finetune: bool) -> None:
    """Raise ``UserError`` for a folder that cannot be written, or with checkpoints that this run does not continue."""
    found = checkpoint_files.candidates(save)
    if found and (finetune or load is None or checkpoint_files.run_folder(load).resolve() != save.resolve()):
        fix = f"continue them with --load {save}" + (" and without --finetune" if finetune else "")
        raise UserError(
            f"--save {save}: already has checkpoints (the last at iteration {found[0]}) that this run does not "
            f"continue; {fix}, or use an empty folder"
        )
    with writes_to(f"--save {save}", "use a folder that you can write to"):
        save.mkdir(parents=True, exist_ok=True)
        probe = save / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
