"""Rules for the scripts of all examples: --help, one-line errors, short files, and their settings files."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.ltd.arguments import build_parser
from megatron.ltd.evaluation.lm_eval.harness_args import HarnessArgs
from megatron.ltd.evaluation.lm_eval.harness_command import TaskFlags
from megatron.ltd.flags import FlagParser, add_flags
from megatron.ltd.flags.files import read_settings
from megatron.ltd.workloads import BERT, BERT_CLASSIFIER, GPT, VIT
from tests.docs.example_scripts import run

MOST_LINES = 60
CLUSTER = {
    "GPUS_PER_NODE", "NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "RUN_ID", "MAX_RESTARTS", "SCRIPT",
    "PYTHON", "MEGATRON_LTD", "CONTAINER_IMAGE", "CONTAINER_MOUNTS",
}  # fmt: skip
"""Variables that a cluster or another script sets, besides SLURM_*; the README of examples/launch lists them."""
STANDARD = {
    "TINY", "DRY_RUN", "VIRTUAL_ENV", "PYTHONPATH", "OMP_NUM_THREADS", "CUDA_DEVICE_MAX_CONNECTIONS", "NCCL_DEBUG",
    "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF",
}  # fmt: skip
TASKS = {"gpt3": GPT, "gpt3_1.3b": GPT, "gpt3_350m": GPT, "gpt2_finetune": GPT, "quickstart": GPT, "vit": VIT}


def scripts(repository: Path) -> list[Path]:
    examples = repository / "examples"
    return sorted([*examples.glob("*/*.sh"), *examples.glob("*/*.sbatch")])


def names(repository: Path) -> list[str]:
    return [path.relative_to(repository / "examples").as_posix() for path in scripts(repository)]


def test_help_prints_the_opening_comment(repository: Path, tmp_path: Path) -> None:
    """--help prints the comment at the top of the script and starts nothing, wherever it is on the command line."""
    assert len(names(repository)) >= 9
    for name in names(repository):
        ended = run(repository, tmp_path, name, "--help")
        assert (ended.returncode, ended.stderr) == (0, ""), name
        assert f"examples/{name}" in ended.stdout and "#" not in ended.stdout and "pipefail" not in ended.stdout, name
        assert run(repository, tmp_path, name, "-h").stdout == ended.stdout
        if not name.startswith("launch/slurm"):
            assert run(repository, tmp_path, name, "words", "--lr", "1", "--help").stdout == ended.stdout, name
    assert list(tmp_path.iterdir()) == []


def test_help_of_the_setup_and_of_the_doctor_starts_nothing(repository: Path, tmp_path: Path) -> None:
    for script in ("setup_env.sh", "docs.sh"):
        ended = run(repository, tmp_path, f"../tools/{script}", "--help")
        assert (ended.returncode, ended.stderr) == (0, "") and f"bash tools/{script}" in ended.stdout
    doctor = [sys.executable, "-m", "megatron.ltd.doctor"]
    ended = subprocess.run([*doctor, "--help"], cwd=repository, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "") and "Check this machine" in ended.stdout
    for words in (["--all"], ["--help=all"], ["all\nof", "it"]):
        ended = subprocess.run([*doctor, *words], cwd=repository, capture_output=True, text=True, check=False)
        (line,) = ended.stderr.splitlines()
        assert ended.returncode == 2 and " ".join(words).replace("\n", " ") in line and "takes no flags" in line


def test_scripts_are_short_and_read_few_variables(repository: Path) -> None:
    for path in scripts(repository):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MOST_LINES or path.parent.name == "launch", path
    texts = "".join(
        path.read_text(encoding="utf-8") for path in [*scripts(repository), repository / "examples/common.sh"]
    )
    read = {name for name in re.findall(r"\$\{([A-Z][A-Z0-9_]+):", texts) if not name.startswith("SLURM_")}
    assert read <= CLUSTER | STANDARD


def settings_files(repository: Path) -> list[Path]:
    return sorted((repository / "examples").glob("*/*.yaml"))


def test_settings_files_contain_only_flags_and_begin_with_a_comment(repository: Path) -> None:
    """Every number of a recipe is a setting on its own line."""
    assert len(settings_files(repository)) >= 25
    evaluation = FlagParser(None)
    for config_class in (HarnessArgs, TaskFlags):
        add_flags(evaluation, config_class)
    for path in settings_files(repository):
        folder = path.parent.name
        if "evaluate" in path.name:
            keys = re.findall(r"^(\w[\w-]*):", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert set(keys) <= {"tasks", "num_fewshot", "batch_size", "task-data"}
        else:
            tasks = (
                [BERT_CLASSIFIER if "finetune" in path.name else BERT] if folder == "bert_large" else [TASKS[folder]]
            )
            read_settings([str(path)], build_parser(tasks[0]).flags)
        assert path.read_text(encoding="utf-8").startswith("# "), path


REFUSED = {
    "no size": ("gpt3/pretrain.sh", [], {}, "SIZE '': give 1.3b or 350m, then a variant such as random_ltd"),
    "no variant": ("gpt3/pretrain.sh", ["350m"], {}, "no variant is given: name dense, random_ltd or"),
    "another variant": ("gpt3/pretrain.sh", ["350m", "250B"], {}, "250B: there are no settings of this name"),
    "an unknown flag": (
        "gpt3/pretrain.sh",
        ["350m", "dense", "--no-such"],
        {"NPROC": "1"},
        "--no-such: there is no such flag",
    ),
    "processes": (
        "gpt3/pretrain.sh",
        ["350m", "dense", "--plan-gpus", "3"],
        {"DRY_RUN": "1"},
        "--global-batch-size 256 is not a multiple of --micro-batch-size 16 x 3 data-parallel processes = 48",
    ),
    "no vocabulary": ("gpt3/pretrain.sh", ["350m", "dense"], {}, "encoder.json"),
    "GPUS_PER_NODE": ("gpt3/pretrain.sh", ["350m", "dense"], {"GPUS_PER_NODE": "all"}, "GPUS_PER_NODE 'all': give"),
    "no input": ("gpt3/prepare_data.sh", [], {}, "--input: "),
    "input as a word": ("gpt3/prepare_data.sh", ["a.jsonl"], {}, "a.jsonl: no flag takes this value"),
    "a shard": ("gpt3/prepare_data.sh", ["--shard", "3", "--input", "a"], {}, "--shard 3"),
    "a merge": ("gpt3/prepare_data.sh", ["--merge", "all"], {}, "--merge all: give the number of parts, such as 16"),
    "parts that are missing": ("gpt3/prepare_data.sh", ["--merge", "2"], {}, "corpus-0001-of-0002_text_document"),
    "nothing to evaluate": ("gpt3/evaluate.sh", [], {}, "no run is given: name folders with checkpoints"),
    "no such run": ("gpt3/evaluate.sh", ["dense"], {}, "dense: there is no checkpoint; train with pretrain.sh first"),
    "vit": ("vit/run.sh", ["sparse"], {}, "sparse: there are no settings of this name; give a YAML file"),
    "vit images": ("vit/run.sh", ["recipe", "--no-such-flag"], {}, "--no-such-flag: there is no such flag"),
    "bert variant": ("bert_large/pretrain.sh", [], {}, "no variant is given: name random_ltd, token_bypass"),
    "bert files": ("bert_large/prepare_data.sh", ["a", "b"], {}, "give three files: the text to train on"),
    "bert sentences": ("bert_large/finetune.sh", ["dense"], {}, "give the pretrained variant and two files"),
    "gpt2 files": (
        "gpt2_finetune/run.sh",
        ["--bf16"],
        {},
        "give the folder of a GPT-2 and two text files, or set TINY=1",
    ),
    "gpt2 folder": ("gpt2_finetune/run.sh", ["a", "b", "c"], {}, "a b c: the first must be a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_give_a_one_line_error(repository: Path, tmp_path: Path, case: str) -> None:
    """The error is one line, also where torchrun started the processes, and no run is started."""
    script, arguments, settings, message = REFUSED[case]
    settings = {"GPUS_PER_NODE": "0", **settings}
    ended = run(repository, tmp_path, script, *arguments, **settings)
    lines = ended.stderr.splitlines()
    assert (ended.returncode, len(lines)) == (2, 1), ended.stdout + ended.stderr
    assert message in lines[0] and re.match(r"[\w.]+: error: ", lines[0]), lines
    assert not list(tmp_path.rglob("config.yaml"))


def test_scripts_work_in_a_path_with_a_space(repository: Path, tmp_path: Path) -> None:
    """The checkout and the folder of the user: every word of the command is one word."""
    checkout, home = tmp_path / "my checkout", tmp_path / "my runs"
    checkout.symlink_to(repository)
    home.mkdir()
    for words in (["gpt3/pretrain.sh", "1.3b", "dense"], ["bert_large/pretrain.sh", "dense"], ["vit/run.sh"]):
        ended = run(checkout, home, words[0], *words[1:], DRY_RUN="1")
        assert (ended.returncode, ended.stderr) == (0, ""), words
        command = next(shlex.split(line) for line in ended.stdout.splitlines() if "torchrun.py" in line)
        assert str(checkout / "examples/launch/torchrun.py") in command and command[0] == "env"
        files = command[command.index("--config") + 1 :]
        assert Path(files[0]).is_file() and str(checkout) in files[0]
