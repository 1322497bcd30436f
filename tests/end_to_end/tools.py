"""Runs a tool of ``tools/`` in this process like its command line, with the exit status and error line that a user
sees, and the commands that read a checkpoint.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from megatron.ltd.workloads import BERT, BERT_CLASSIFIER, VIT
from tests.end_to_end.runs import bert_flags, ending, run_status, tiny_flags
from tests.support import REPOSITORY
from tests.support_vit import vit_flags


def tool_status(tool: str, *flags: object) -> tuple[int, str]:
    """Run ``tools/<tool>``; return its exit status and standard error."""
    return ending(lambda: runpy.run_path(str(REPOSITORY / "tools" / tool), run_name="__main__"), tool, *flags)


def tool_refusal(tool: str, *flags: object) -> str:
    """The single error line of a tool that fails with exit status 2."""
    status, said = tool_status(tool, *flags)
    lines = said.splitlines()
    assert status == 2 and len(lines) == 1, (status, said)
    return lines[0].removeprefix(f"{tool}: error: ")


def load(run: Path, data: str, folder: Path) -> tuple[int, str]:
    """Continue the tiny run whose checkpoints are in ``run``, and log to ``folder``; see ``tool_status``."""
    return run_status(tiny_flags(data, "--load", run, "--log-dir", folder))


def finetune(run: Path, data: str, folder: Path) -> tuple[int, str]:
    return run_status(tiny_flags(data, "--load", run, "--finetune", "--log-dir", folder))


def generate(run: Path, data: str, folder: Path) -> tuple[int, str]:
    return tool_status("generate_text.py", "--load", run, "--prompt", "a", "--device", "cpu")


def export(run: Path, data: str, folder: Path) -> tuple[int, str]:
    return tool_status("export_hf.py", "--load", run, "--output", folder / "exported", "--no-tokenizer")


def bert(run: Path, data: str, folder: Path) -> tuple[int, str]:
    return run_status([*bert_flags(folder), "--load", str(run), "--log-dir", str(folder)], workload=BERT)


def bert_classifier(run: Path, data: str, folder: Path) -> tuple[int, str]:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "the model", "label": label}) + "\n" for label in ("yes", "no")))
    own = ("--save", str(folder / "own"), "--load", str(folder / "own"), "--pretrained-checkpoint", str(run))
    flags = bert_flags(folder, "--train-data-path", str(rows), "--valid-data-path", str(rows))
    return run_status([*flags, *own], workload=BERT_CLASSIFIER)


def vit(run: Path, data: str, folder: Path) -> tuple[int, str]:
    return run_status(
        [*vit_flags(folder), "--device", "cpu", "--load", str(run), "--log-dir", str(folder)], workload=VIT
    )


def evaluate(run: Path, data: str, folder: Path) -> tuple[int, str]:
    (folder / "lambada_openai").mkdir()
    (folder / "lambada_openai" / "test.jsonl").write_text(json.dumps({"text": "the model keeps some tokens"}) + "\n")
    return tool_status(
        "evaluate.py", "--load", run, "--task-data", folder, "--tasks", "lambada_openai", "--device", "cpu"
    )
