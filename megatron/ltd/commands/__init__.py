"""``megatron-ltd COMMAND``: every command of this project under one name, for an installation without the checkout.

    megatron-ltd pretrain-gpt --data-path ...                             is pretrain_gpt_ltd.py
    torchrun --nproc-per-node 8 -m megatron.ltd pretrain-gpt ...          the same on several devices
    megatron-ltd preprocess --input ...                                   is tools/preprocess_data.py

A command's module is imported when the command runs, and the list of all imports none of them.
"""

from __future__ import annotations

import sys

try:
    import difflib
    from collections.abc import Callable, Mapping
    from dataclasses import dataclass
    from importlib import import_module
    from pathlib import Path

    from megatron.ltd import __version__
    from megatron.ltd.errors import RunStopped, UserError, run_command
except KeyboardInterrupt:  # Ctrl-C before ``run_command`` can answer it
    print(f"{sys.argv[0].rpartition('/')[2]}: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

PROGRAM = "megatron-ltd"


@dataclass(frozen=True)
class Command:
    """A command: the function that it is, what it does in a few words, and its script in the checkout."""

    function: str
    """``module:name`` in this folder, or with the whole name of a module; it reads ``sys.argv``."""
    what: str
    script: str | None = None


COMMANDS: Mapping[str, Command] = {
    "pretrain-gpt": Command("train:pretrain_gpt", "pretrain a GPT", "pretrain_gpt_ltd.py"),
    "pretrain-bert": Command("train:pretrain_bert", "pretrain a BERT", "pretrain_bert_ltd.py"),
    "finetune-bert": Command("train:finetune_bert", "finetune a BERT on labelled sentences", "finetune_bert_ltd.py"),
    "finetune-vit": Command("train:finetune_vit", "finetune a vision transformer", "finetune_vit_ltd.py"),
    "plan": Command("train:plan", "print what pretraining a GPT will compute, save, hold in memory and take in time"),
    "preprocess": Command("preprocess_data:main", "convert text to a dataset of tokens", "tools/preprocess_data.py"),
    "merge-datasets": Command("merge_datasets:main", "merge datasets of tokens", "tools/merge_datasets.py"),
    "train-tokenizer": Command("train_tokenizer:main", "train a tokenizer on text", "tools/train_tokenizer.py"),
    "builtin-corpus": Command(
        "builtin_corpus:main", "write Python's standard library as a corpus, for trials", "tools/builtin_corpus.py"
    ),
    "evaluate": Command("evaluate:main", "score a trained model on lm-eval's tasks", "tools/evaluate.py"),
    "prepare-tasks": Command(
        "prepare_tasks:main", "convert published files to task data for evaluate", "tools/prepare_tasks.py"
    ),
    "compare-runs": Command("compare_runs:main", "compare the task scores of runs", "tools/compare_runs.py"),
    "generate": Command("generate_text:main", "continue a text with a trained model", "tools/generate_text.py"),
    "export": Command("export_hf:main", "convert a checkpoint to a Hugging Face folder", "tools/export_hf.py"),
    "import": Command(
        "import_hf:main", "convert Hugging Face's or Megatron-LM's to a checkpoint", "tools/import_hf.py"
    ),
    "summarize-runs": Command("summarize_runs:main", "compare loss and cost of runs", "tools/summarize_runs.py"),
    "plot-run": Command("plot_run:main", "plot runs", "tools/plot_run.py"),
    "report": Command("report:main", "write an HTML page about a run", "tools/report.py"),
    "doctor": Command("megatron.ltd.doctor.__main__:command", "check this machine"),
}
"""By name, in the order of their list."""


def main() -> None:
    """The entry point: run the command that the first word names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        sys.argv[:2] = [f"{PROGRAM} {name}"]  # the name in messages
        run_command(lambda: _run(COMMANDS[name]))
        return
    sys.argv[0] = PROGRAM
    run_command(lambda: _answer(name))


def run_script(name: str) -> None:
    """What the script of a command does. Its imports can be interrupted, as everything after them."""
    run_command(lambda: _load(COMMANDS[name])())


def _load(command: Command) -> Callable[[], object]:
    module, _, function = command.function.partition(":")
    found: Callable[[], object] = getattr(import_module(module if "." in module else f"{__name__}.{module}"), function)
    return found


def _run(command: Command) -> None:
    """Run a command; its errors name commands in place of scripts."""
    try:
        _load(command)()
    except (UserError, RunStopped) as error:
        text = str(error)
        for name, other in COMMANDS.items():
            text = text.replace(other.script or "\0", f"{PROGRAM} {name}")
        raise type(error)(text) from None


def _answer(name: str) -> None:
    """Answer a first word that is not a command. Raises ``UserError`` unless it asks for help or the version."""
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print(f"{PROGRAM} {__version__}")
    elif not name:
        raise UserError("no command is given; --help lists them")
    else:
        raise UserError(f"{name}: there is no such command; {_advice(name)}")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.what}" for name, command in COMMANDS.items()]
    head = f"usage: {PROGRAM} COMMAND [flags]\n\nToken and layer dropping for pretraining on Megatron-Core.\n\n"
    return head + "\n".join(lines) + f"\n\n{PROGRAM} COMMAND --help lists the flags of a command."


def _advice(name: str) -> str:
    """The commands that ``name`` may be a misspelling or the script of."""
    if name.startswith("-"):
        return "a command comes before its flags; --help lists them"
    scripts = {Path(command.script).stem: known for known, command in COMMANDS.items() if command.script is not None}
    stem = Path(name).stem
    close = [scripts[stem]] if stem in scripts else difflib.get_close_matches(stem, COMMANDS, n=3, cutoff=0.55)
    return f"use {' or '.join(close)}" if close else "--help lists them"
