"""``tools/evaluate.py`` as a user calls it: results in lm-eval's own files, and one line for what cannot be."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.errors import run_command
from megatron.ltd.evaluation.lm_eval.harness_command import evaluate
from tests.end_to_end.runs import reseal, snapshot
from tests.support_errors import refused

PASSAGES = ("the model keeps some of its tokens", "every other token skips this layer", "kept tokens stay in order")


@pytest.fixture(scope="module")
def task_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three passages for LAMBADA."""
    folder = tmp_path_factory.mktemp("task_data")
    (folder / "lambada_openai").mkdir()
    (folder / "lambada_openai" / "test.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in PASSAGES)
    )
    return folder


def status(flags: Sequence[object]) -> tuple[int, str]:
    """Exit status and what was said on standard error, but for lm-eval's log and progress."""
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["evaluate.py"])
            patch.setenv("HF_DATASETS_OFFLINE", "1")
            run_command(lambda: evaluate([*map(str, flags), "--device", "cpu"], None))
    except SystemExit as end:
        return int(end.code or 0), stderr.getvalue()
    return 0, stderr.getvalue()


def refusal(flags: Sequence[object]) -> str:
    """The one line that the command is refused with; its exit status is 2."""
    code, said = status(flags)
    lines = said.splitlines()
    assert code == 2 and len(lines) == 1, (code, said)
    return lines[0].removeprefix("evaluate.py: error: ")


def test_results_are_lm_evals_with_the_models_iteration(
    straight: Path, task_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny run's model takes 16 bytes, so that every passage loses its beginning."""
    before = snapshot(straight)
    code, said = status(
        ["--load", straight, "--task-data", task_data, "--tasks", "lambada_openai", "--output_path", tmp_path]
    )
    assert code == 0, said
    assert "|lambada_openai|" in capsys.readouterr().out
    (path,) = tmp_path.rglob("results_*.json")
    found = json.loads(path.read_text())
    config = found["config"]
    assert (config["model"], config["iteration"], config["consumed_tokens"]) == ("megatron-ltd", 6, 6 * 4 * 16)
    assert config["num_truncated"] == 3 and config["model_args"]["pretrained"] == str(straight)
    assert found["n-samples"]["lambada_openai"]["effective"] == 3
    assert found["results"]["lambada_openai"]["perplexity,none"] > 1
    assert snapshot(straight) == before


CASES = {
    "nothing": ([], ["--load is missing", "--save of a run"]),
    "no checkpoint": (["--load", "{out}"], ["--load {out} holds no checkpoint: name the --save folder"]),
    "no tasks": (["--load", "{run}"], ["--tasks is missing"]),
    "unknown flag": (["--load", "{run}", "--taks", "x"], ["--taks: there is no such flag; use --task"]),
    "unknown flag of ours": (
        ["--load", "{run}", "--vocab-fiel", "x"],
        ["--vocab-fiel: there is no such flag", "--vocab-file"],
    ),
    "number": (["--load", "{run}", "--limit", "few"], ["--limit", "invalid float value: 'few'"]),
    "unknown task": (
        ["--load", "{run}", "--task-data", "{data}", "--tasks", "lambada_openia"],
        ["--tasks lambada_openia: lm-eval has no such task", "lambada_openai"],
    ),
    "pattern": (
        ["--load", "{run}", "--task-data", "{data}", "--tasks", "hella*"],
        ["--tasks hella*: --task-data {data} holds no task whose name fits"],
    ),
    "file of a task": (
        ["--load", "{run}", "--tasks", "{out}/none.yaml"],
        ["--tasks {out}/none.yaml: there is no such file"],
    ),
    "no examples": (
        ["--load", "{run}", "--task-data", "{data}", "--tasks", "lambada_openai", "--limit", "0"],
        ["--limit is 0: it must be above 0"],
    ),
    "chat": (
        ["--load", "{run}", "--task-data", "{data}", "--tasks", "lambada_openai", "--apply_chat_template"],
        ["--apply_chat_template is given: a model of this program has no chat template"],
    ),
    "task without data": (
        ["--load", "{run}", "--task-data", "{data}", "--tasks", "hellaswag"],
        ["no data for hellaswag in --task-data {data}", "only tasks that are there: lambada_openai"],
    ),
    "two sources of tasks": (
        ["--load", "{run}", "--task-data", "{data}", "--tasks", "lambada_openai", "--include_path", "x"],
        ["--include_path x and --task-data {data} are both given: keep one"],
    ),
    "target below a file": (
        ["--load", "{run}", "--task-data", "{data}", "--tasks", "lambada_openai", "--output_path", "{out}/file/x"],
        ["--output_path {out}/file/x cannot be written", "Not a directory"],
    ),
    "samples to nowhere": (
        ["--load", "{run}", "--task-data", "{data}", "--tasks", "lambada_openai", "--log_samples"],
        ["Specify --output_path if providing --log_samples"],
    ),
    "batch size": (
        ["--load", "{run}", "--tasks", "lambada_openai", "--batch_size", "many"],
        ["--batch_size is many: it must be auto or a number above 0"],
    ),
    "layout": (
        ["--load", "{run}", "--task-data", "{data}", "--tasks", "lambada_openai", "--tensor-model-parallel-size", "2"],
        ["1 process was started", "--tensor-model-parallel-size 2", "multiple of 2"],
    ),
    "a cache of each process": (
        ["--load", "{run}", "--tasks", "x", "--use_cache", "c", "--tensor-model-parallel-size", "2"],
        ["--use_cache c is given with --tensor-model-parallel-size 2", "leave it out"],
    ),
    "model argument": (
        ["--load", "{run}", "--tasks", "lambada_openai", "--model_args", "vocab_fiel=x"],
        ["--model_args vocab_fiel=x: megatron-ltd knows no vocab_fiel; use vocab_file"],
    ),
    "twice": (
        ["--load", "{run}", "--tasks", "lambada_openai", "--model_args", "pretrained=x"],
        ["--model_args pretrained=x and --load are both given"],
    ),
    "a model of lm-eval's": (
        ["--model", "dummy", "--load", "{run}", "--tasks", "lambada_openai"],
        ["--load is for models of this program", "--model dummy"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "fragments"), CASES.values(), ids=CASES.keys())
def test_flags(flags: list[str], fragments: list[str], straight: Path, task_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    names = {"run": straight, "data": task_data, "out": tmp_path}
    line = refusal([flag.format(**names) for flag in flags])
    for fragment in fragments:
        assert fragment.format(**names) in line
    assert snapshot(tmp_path) == {"file": b"mine"}


def test_data_that_cannot_be_downloaded(straight: Path, task_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No internet, and nothing of the task here."""

    def load_dataset(*_args: object, **_kwargs: object) -> None:
        raise ConnectionError(why)

    monkeypatch.setattr("lm_eval.api.task.datasets.load_dataset", load_dataset)
    why = "Couldn't reach 'EleutherAI/lambada_openai' on the Hub (LocalEntryNotFoundError)"
    flags = ("--load", straight, "--tasks", "lambada_openai", "--task-data", task_data)
    code, said = status(flags)
    line = said.splitlines()[-1]
    assert code == 2 and "Traceback" not in said
    assert f"data cannot be downloaded ({why})" in line and "--task-data" in line


def test_without_lm_eval(straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "lm_eval" else inner(name))
    line = refusal(["--load", straight, "--tasks", "lambada_openai"])
    assert "the package lm-eval is not installed" in line and "pip install 'megatron-ltd[eval]'" in line


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_without_a_logging_package(
    straight: Path, task_data: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == package else inner(name))
    typed = ["--load", straight, "--task-data", task_data, "--tasks", "lambada_openai"]
    line = refusal([*typed, f"--{package}_args", "project=x"])
    assert f"--{package}_args is given: the package {package} is not installed" in line


def test_lm_evals_other_commands(task_data: Path) -> None:
    """``validate`` takes its tasks as one text."""
    with refused("--tasks"):
        evaluate(["validate", "--tasks", "lambada_openia"], None)


def test_git_is_silent_where_there_is_no_repository(
    straight: Path, task_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """git's own complaint would go past Python, to the terminal."""
    monkeypatch.chdir(tmp_path)
    code, said = status(["--load", straight, "--task-data", task_data, "--tasks", "lambada_openai", "--limit", 1])
    assert code == 0, said
    assert "git" not in capfd.readouterr().err


def test_a_checkpoint_whose_tokenizer_is_elsewhere(trained: Path, task_data: Path) -> None:
    """The path that the checkpoint holds is that of the machine it was trained on."""
    checkpoint = checkpoint_files.checkpoint_path(trained, 6)
    record = checkpoint_files.read_run(checkpoint)
    record["config"]["tokenizer"] |= {"tokenizer_type": "GPT2BPETokenizer", "vocab_file": "/gone/vocab.json"}
    checkpoint_files.write_run(checkpoint, record)
    reseal(checkpoint)
    line = refusal(["--load", trained, "--task-data", task_data, "--tasks", "lambada_openai"])
    assert f"not where checkpoint {checkpoint} had them: --vocab-file /gone/vocab.json: cannot be read" in line
    typed = [
        "--load",
        trained,
        "--task-data",
        task_data,
        "--tasks",
        "lambada_openai",
        "--tokenizer-type",
        "ByteTokenizer",
    ]
    assert status(typed)[0] == 0
