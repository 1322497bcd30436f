"""Each tool that reads a model takes an older checkpoint, named by its step or by its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from megatron.ltd.checkpoint.files import TRACKER, checkpoint_path
from tests.end_to_end.tools import tool_refusal, tool_status
from tests.support_errors import assert_names

Read = Callable[..., object]


def generated(out: Path, capsys: pytest.CaptureFixture[str], *load: object) -> object:
    capsys.readouterr()
    flags = ("--prompt", "the", "--num-tokens-to-generate", 200, "--device", "cpu")
    assert tool_status("generate_text.py", *load, *flags) == (0, "")
    return capsys.readouterr().out


def exported(out: Path, capsys: pytest.CaptureFixture[str], *load: object) -> object:
    assert tool_status("export_hf.py", *load, "--output", out, "--no-tokenizer") == (0, "")
    return {name: tensor.tolist() for name, tensor in load_file(out / "model.safetensors").items()}


def scored(out: Path, capsys: pytest.CaptureFixture[str], *load: object) -> object:
    """The iteration that lm-eval's file has, and the score."""
    pytest.importorskip("lm_eval")
    data = out / "data"
    (data / "lambada_openai").mkdir(parents=True)
    (data / "lambada_openai" / "test.jsonl").write_text(json.dumps({"text": "every other token skips"}) + "\n")
    task = ("--task-data", data, "--tasks", "lambada_openai", "--output_path", out, "--device", "cpu")
    assert tool_status("evaluate.py", *load, *task)[0] == 0
    (path,) = out.rglob("results_*.json")
    found = json.loads(path.read_text())
    return found["config"]["iteration"], found["results"]["lambada_openai"]["perplexity,none"]


@pytest.mark.parametrize("read", [generated, exported, scored])
def test_the_checkpoint_of_a_step(
    read: Read, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both spellings give what a folder with that checkpoint alone gives, and the newest one is another."""
    alone = tmp_path / "alone"
    shutil.copytree(checkpoint_path(straight, 2), checkpoint_path(alone, 2))
    (alone / TRACKER).write_text("2")
    expected = read(tmp_path / "1", capsys, "--load", alone)
    assert read(tmp_path / "2", capsys, "--load", straight, "--ckpt-step", 2) == expected
    assert read(tmp_path / "3", capsys, "--load", checkpoint_path(straight, 2)) == expected
    assert read(tmp_path / "4", capsys, "--load", straight) != expected


@pytest.mark.parametrize(
    ("tool", "more"),
    [
        ("generate_text.py", ("--prompt", "a", "--device", "cpu")),
        ("export_hf.py", ("--output", "{out}", "--no-tokenizer")),
        ("evaluate.py", ("--tasks", "lambada_openai", "--device", "cpu")),
    ],
)
def test_a_step_that_was_not_saved(tool: str, more: tuple[str, ...], straight: Path, tmp_path: Path) -> None:
    if tool == "evaluate.py":
        pytest.importorskip("lm_eval")
    flags = [word.format(out=tmp_path / "out") for word in more]
    assert_names(tool_refusal(tool, "--load", straight, "--ckpt-step", 3, *flags), "--ckpt-step 3", straight, 2, 4, 6)
    assert_names(tool_refusal(tool, "--load", tmp_path, "--ckpt-step", 3, *flags), "--ckpt-step 3", tmp_path)
