"""The command line: the flags of every part of a run, read into one ``RunConfig``. Imports no torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.ltd.checkpoint.files import candidates, place_of, stored_config
from megatron.ltd.checkpoint.from_megatron_lm import MegatronLM, check_old_format, find_megatron_lm
from megatron.ltd.config import PARTS, WORKLOAD_PARTS, Entry, RunConfig, flag_classes
from megatron.ltd.errors import UserError
from megatron.ltd.flags import FlagParser, add_flags, from_record, read_flags
from megatron.ltd.forecast.config import PlanConfig, leave_open
from megatron.ltd.hugging_face.config_file import is_hugging_face
from megatron.ltd.hugging_face.model import described_flags
from megatron.ltd.megatron_lm.accepted import settled
from megatron.ltd.megatron_lm.refused import refusal
from megatron.ltd.methods import METHODS
from megatron.ltd.workloads import GPT


def build_parser(workload: Entry = GPT) -> FlagParser:
    """The command line of ``workload``."""
    parser = FlagParser(workload.description, explain=refusal)
    for config_class in flag_classes(workload):
        add_flags(parser, config_class)
    return parser


def parse_run_config(arguments: Sequence[str] | None, workload: Entry = GPT) -> RunConfig:
    """Read the command line and the files of ``--config``. Raises ``UserError`` for values that no run can have.

    With ``--use-checkpoint-args`` the model's shape and the tokenizer of the checkpoint, or of the Hugging Face folder,
    replace the defaults; a flag that was given still wins. Flags of Megatron-LM that ask for what is so anyway are
    accepted, see ``megatron_lm.accepted``.
    """
    parser = build_parser(workload)
    words, notes = settled(sys.argv[1:] if arguments is None else arguments, parser.flags)
    namespace = parser.parse_args(words)
    try:
        return _run_config(namespace, workload, notes, replaceable=parser.from_files.keys())
    except UserError as error:
        raise parser.with_origin(error) from None


def _run_config(
    namespace: argparse.Namespace, workload: Entry, notes: list[str], replaceable: Collection[str]
) -> RunConfig:
    """The run that the flags describe. The question of a plan may replace the fields in ``replaceable``.

    ``notes`` are lines about flags, to which some may be added.
    """
    given = dict(vars(namespace))
    _settle_sequence_parallel(namespace, notes)
    planning = read_flags(namespace, PlanConfig)
    leave_open(namespace, planning, replaceable)
    _settle_pretrained(namespace)
    if hasattr(namespace, "load"):
        namespace.load = place_of(namespace.load, getattr(namespace, "ckpt_step", None))
    if getattr(namespace, "use_checkpoint_args", False) and hasattr(namespace, "load"):
        folder = Path(namespace.load)
        stored = _stored_flags(folder)
        for part in {"model", "tokenizer"} & workload.parts.keys():
            if stored.get(part):
                from_record(stored[part], workload.parts[part], f"--load {folder}", part)
            for name, value in _as_flags(stored.get(part) or {}).items():
                if not hasattr(namespace, name):
                    setattr(namespace, name, value)
    _settle_tokenizer(namespace, workload, notes)
    classes = {**dict.fromkeys(WORKLOAD_PARTS), **workload.parts, **PARTS}
    parts: dict[str, Any] = {
        name: None if config_class is None else read_flags(namespace, config_class)
        for name, config_class in classes.items()
    }
    methods: dict[str, Any] = {name: read_flags(namespace, entry.config_class) for name, entry in METHODS.items()}
    typed = given.keys() - set(replaceable)
    return RunConfig(
        workload=workload, **parts, methods=methods, planning=planning, given=given, typed=typed, notes=tuple(notes)
    )


def _stored_flags(folder: Path) -> Mapping[str, Any]:
    """The settings of the model and the tokenizer in ``folder``, by part and field."""
    if is_hugging_face(folder):
        return described_flags(folder)
    check_old_format(folder)
    foreign = find_megatron_lm(folder)
    return stored_config(folder) if foreign is None else MegatronLM.open(foreign).flags()


def _settle_sequence_parallel(flags: argparse.Namespace, notes: list[str]) -> None:
    """With one tensor-parallel process there is nothing to split, and scripts may ask for it all the same."""
    if getattr(flags, "sequence_parallel", False) and getattr(flags, "tensor_model_parallel_size", 1) == 1:
        del flags.sequence_parallel
        notes.append("--sequence-parallel is accepted: with --tensor-model-parallel-size 1 there is nothing to split")


def _settle_tokenizer(flags: argparse.Namespace, workload: Entry, notes: list[str]) -> None:
    """The files of a GPT-2 tokenizer name its type."""
    has_files = hasattr(flags, "vocab_file") and hasattr(flags, "merge_file")
    if "tokenizer" in workload.parts and has_files and not hasattr(flags, "tokenizer_type"):
        flags.tokenizer_type = "GPT2BPETokenizer"
        notes.append("--tokenizer-type is GPT2BPETokenizer, because --vocab-file and --merge-file are given")


def _settle_pretrained(flags: argparse.Namespace) -> None:
    """While ``--load`` holds no checkpoint, load the weights of ``--pretrained-checkpoint`` instead.

    Nodes that see different contents of the folder then have different flags, which is reported when they connect.
    """
    if not hasattr(flags, "pretrained_checkpoint"):
        return
    if not hasattr(flags, "load") or hasattr(flags, "finetune"):
        what = "with --finetune" if hasattr(flags, "finetune") else "without --load"
        raise UserError(
            f"--pretrained-checkpoint {flags.pretrained_checkpoint}: it is given {what}; give the folder of --save as "
            "--load too, and leave out --finetune"
        )
    if not candidates(Path(flags.load)):
        flags.load, flags.finetune = flags.pretrained_checkpoint, True


def _as_flags(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a checkpoint's settings as flags, which mean the same with another ``--seq-length``."""
    if stored.get("max_position_embeddings", 0) is None:  # as many positions as its samples had tokens
        return {**stored, "max_position_embeddings": stored["seq_length"]}
    return dict(stored)
