"""``tools/evaluate.py`` as a user calls it: results in lm-eval's files, and one error line for bad input."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.errors import run_command
from megatron.ltd.evaluation.lm_eval.harness_command import evaluate
from tests.end_to_end.runs import ending, reseal, snapshot
from tests.support_errors import assert_refused, refused

PASSAGES = ("the model keeps some of its tokens", "every other token skips this layer", "kept tokens stay in order")


@pytest.fixture(scope="module")
def task_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three passages as the data of LAMBADA."""
    folder = tmp_path_factory.mktemp("task_data")
    (folder / "lambada_openai").mkdir()
    (folder / "lambada_openai" / "test.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in PASSAGES)
    )
    return folder


def status(flags: Sequence[object]) -> tuple[int, str]:
    """The exit status and the standard error of ``tools/evaluate.py``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        return ending(lambda: run_command(lambda: evaluate([*map(str, flags), "--device", "cpu"], None)), "evaluate.py")


def test_results_have_lm_evals_format_and_the_iteration(
    straight: Path, task_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model of the tiny run takes 16 bytes, so every passage is truncated at its beginning."""
    before = snapshot(straight)
    code, said = status(
        ["--load", straight, "--task-data", task_data, "--tasks", "lambada_openai", "--output_path", tmp_path]
    )
    assert code == 0, said
    assert said.splitlines() == [
        "3 of 3 requests are longer than the model (16 tokens): they lose the beginning of their context"
    ]  # without lm-eval's log lines and progress bars
    printed = capsys.readouterr().out
    assert "| lambada_openai |" in printed and "bootstrapping" not in printed
    (path,) = tmp_path.rglob("results_*.json")
    found = json.loads(path.read_text())
    config = found["config"]
    assert (config["model"], config["iteration"], config["consumed_tokens"]) == ("megatron-ltd", 6, 6 * 4 * 16)
    assert config["num_truncated"] == 3 and config["model_args"]["pretrained"] == str(straight)
    assert found["n-samples"]["lambada_openai"]["effective"] == 3
    assert found["results"]["lambada_openai"]["perplexity,none"] > 1
    assert snapshot(straight) == before


TASK = ["--task-data", "{data}", "--tasks", "lambada_openai"]
CASES = {
    "nothing": ([], ["--load"]),
    "no checkpoint": (["--load", "{out}"], ["--load {out}", "--save"]),
    "no tasks": (["--load", "{run}"], ["--tasks"]),
    "unknown flag": (["--load", "{run}", "--taks", "x"], ["--taks", "--tasks"]),
    "unknown flag of ours": (["--load", "{run}", "--vocab-fiel", "x"], ["--vocab-fiel", "--vocab-file"]),
    "number": (["--load", "{run}", "--limit", "few"], ["--limit", "few"]),
    "settings": (["--load", "{run}", "--gen_kwargs", "few"], ["--gen_kwargs", "few"]),
    "broken JSON": (["--load", "{run}", "--metadata", '{{"a": '], ["--metadata", "JSON"]),
    "unknown task": (
        ["--load", "{run}", "--task-data", "{data}", "--tasks", "lambada_openia"],
        ["--tasks lambada_openia", "lambada_openai"],
    ),
    "pattern": (
        ["--load", "{run}", "--task-data", "{data}", "--tasks", "hella*"],
        ["--tasks hella", "--task-data {data}"],
    ),
    "file of a task": (["--load", "{run}", "--tasks", "{out}/none.yaml"], ["--tasks {out}/none.yaml"]),
    "no examples": (["--load", "{run}", *TASK, "--limit", "0"], ["--limit 0"]),
    "chat": (["--load", "{run}", *TASK, "--apply_chat_template"], ["--apply_chat_template"]),
    "task without data": (
        ["--load", "{run}", "--task-data", "{data}", "--tasks", "hellaswag"],
        ["hellaswag", "--task-data {data}", "lambada_openai"],
    ),
    "two sources of tasks": (
        ["--load", "{run}", *TASK, "--include_path", "x"],
        ["--include_path x", "--task-data {data}"],
    ),
    "target below a file": (
        ["--load", "{run}", *TASK, "--output_path", "{out}/file/x"],
        ["--output_path {out}/file/x"],
    ),
    "samples to nowhere": (["--load", "{run}", *TASK, "--log_samples"], ["--output_path", "--log_samples"]),
    "samples and a limit": (
        ["--load", "{run}", *TASK, "--samples", '{{"a": [0]}}', "--limit", "1"],
        ["--samples", "--limit"],
    ),
    "batch size": (["--load", "{run}", "--tasks", "lambada_openai", "--batch_size", "many"], ["--batch_size", "many"]),
    "layout": (["--load", "{run}", *TASK, "--tensor-model-parallel-size", "2"], ["--tensor-model-parallel-size 2"]),
    "a cache of each process": (
        ["--load", "{run}", "--tasks", "x", "--use_cache", "c", "--tensor-model-parallel-size", "2"],
        ["--use_cache c", "--tensor-model-parallel-size 2"],
    ),
    "model argument": (
        ["--load", "{run}", "--tasks", "lambada_openai", "--model_args", "vocab_fiel=x"],
        ["--model_args vocab_fiel=x", "vocab_file"],
    ),
    "twice": (
        ["--load", "{run}", "--tasks", "lambada_openai", "--model_args", "pretrained=x"],
        ["--model_args pretrained=x", "--load"],
    ),
    "a model of lm-eval's": (
        ["--model", "dummy", "--load", "{run}", "--tasks", "lambada_openai"],
        ["--load", "--model dummy"],
    ),
}


@pytest.mark.parametrize(("flags", "names"), CASES.values(), ids=CASES.keys())
def test_refused_flags(flags: list[str], names: list[str], straight: Path, task_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    places = {"run": straight, "data": task_data, "out": tmp_path}
    assert_refused(*status([flag.format(**places) for flag in flags]), *(name.format(**places) for name in names))
    assert snapshot(tmp_path) == {"file": b"mine"}


def test_data_that_cannot_be_downloaded(straight: Path, task_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a machine without internet on which the task's data are not cached."""

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
    assert_refused(*status(["--load", straight, "--tasks", "lambada_openai"]), "lm-eval", "megatron-ltd[eval]")


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_without_a_logging_package(
    straight: Path, task_data: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == package else inner(name))
    typed = ["--load", straight, "--task-data", task_data, "--tasks", "lambada_openai"]
    assert_refused(*status([*typed, f"--{package}_args", "project=x"]), f"--{package}_args", package)


def test_lm_evals_other_commands(task_data: Path) -> None:
    """``validate`` takes its tasks as one string."""
    with refused("--tasks lambada_openia"):
        evaluate(["validate", "--tasks", "lambada_openia"], None)


def test_git_is_silent_where_there_is_no_repository(
    straight: Path, task_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error message of git would bypass Python's standard error and appear in the terminal."""
    monkeypatch.chdir(tmp_path)
    code, said = status(["--load", straight, "--task-data", task_data, "--tasks", "lambada_openai", "--limit", 1])
    assert code == 0, said
    assert "git" not in capfd.readouterr().err


def test_a_checkpoint_whose_tokenizer_is_elsewhere(trained: Path, task_data: Path) -> None:
    """The checkpoint contains the tokenizer's path on the machine it was trained on, which does not exist here."""
    checkpoint = checkpoint_files.checkpoint_path(trained, 6)
    record = checkpoint_files.read_run(checkpoint)
    record["config"]["tokenizer"] |= {"tokenizer_type": "GPT2BPETokenizer", "vocab_file": "/gone/vocab.json"}
    checkpoint_files.write_run(checkpoint, record)
    reseal(checkpoint)
    typed = ["--load", trained, "--task-data", task_data, "--tasks", "lambada_openai"]
    assert_refused(*status(typed), checkpoint, "--vocab-file /gone/vocab.json")
    assert status([*typed, "--tokenizer-type", "ByteTokenizer"])[0] == 0
