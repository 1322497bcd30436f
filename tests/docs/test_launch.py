"""The launch scripts: the commands they start, their reaction to signals, and real runs.

Slurm's commands are replaced by small stand-ins on PATH.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from torch.distributed.run import get_args_parser

from megatron.ltd.arguments import parse_run_config
from tests.docs.documents import code_blocks
from tests.end_to_end.processes import steps_logged, wait_for
from tests.end_to_end.runs import metrics, tiny_flags, write_data
from tests.support_errors import assert_names, assert_refused
from tests.support_processes import PATIENCE_SECONDS, child
from tests.warm.start import warm_python

FOLDER = Path("examples") / "launch"
SETTINGS = (
    "GPUS_PER_NODE NPROC NNODES NODE_RANK MASTER_ADDR MASTER_PORT RUN_ID MAX_RESTARTS SCRIPT PYTHON DRY_RUN "
    "CONTAINER_IMAGE CONTAINER_MOUNTS".split()
)


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without variables that a launcher or Slurm may have set, plus ``settings``."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMP_", "NCCL_"))}
    return {name: value for name, value in inherited.items() if name not in SETTINGS} | {"PYTHON": "python"} | settings


def run(repository: Path, script: str, *flags: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(repository / FOLDER / script), *flags]
    return subprocess.run(
        command, env=environment(**settings), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )


def dry_run(repository: Path, script: str, *flags: str, **settings: str) -> list[str]:
    """The commands that the script prints with DRY_RUN=1."""
    ended = run(repository, script, *flags, DRY_RUN="1", **settings)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    return [line.strip() for line in ended.stdout.splitlines()]


ONE_NODE = (
    "python {1}/examples/launch/torchrun.py --nproc-per-node {0} --max-restarts 0 --standalone {1}/pretrain_gpt_ltd.py"
)
SEVERAL = (
    "python {4}/examples/launch/torchrun.py --nproc-per-node 8 --max-restarts {0} --nnodes 2 --rdzv-backend c10d "
    "--rdzv-endpoint {1} --rdzv-id {2} --rdzv-conf is_host={3} {4}/pretrain_gpt_ltd.py"
)
CPU = "env OMP_NUM_THREADS=3 PET_SIGNALS_TO_HANDLE=SIGQUIT CUDA_VISIBLE_DEVICES= "
GPU = (
    "env OMP_NUM_THREADS=3 PET_SIGNALS_TO_HANDLE=SIGQUIT CUDA_DEVICE_MAX_CONNECTIONS=1 NCCL_DEBUG=WARN "
    "PYTORCH_ALLOC_CONF=expandable_segments:True "
)


def test_one_node(repository: Path) -> None:
    flags = ["--lr", "1e-3", "--data-path", "a b"]
    for settings, command in (
        ({"GPUS_PER_NODE": "8"}, GPU + ONE_NODE.format(8, repository)),
        ({"GPUS_PER_NODE": "0"}, CPU + ONE_NODE.format(1, repository)),
        ({"GPUS_PER_NODE": "0", "NPROC": "2"}, CPU + ONE_NODE.format(2, repository)),
        ({"GPUS_PER_NODE": "8", "NPROC": "4"}, GPU + ONE_NODE.format(4, repository)),
        (
            {"GPUS_PER_NODE": "0", "SCRIPT": "finetune_vit_ltd.py"},
            CPU + ONE_NODE.format(1, repository).replace("pretrain_gpt_ltd.py", "finetune_vit_ltd.py"),
        ),
    ):
        shown = dry_run(repository, "torchrun.sh", *flags, OMP_NUM_THREADS="3", **settings)
        assert shown == [f"{command} --lr 1e-3 --data-path a\\ b"]


def test_the_allocator_is_the_users(repository: Path) -> None:
    """The variable that the user sets counts, under its new and its old name."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        (shown,) = dry_run(repository, "torchrun.sh", GPUS_PER_NODE="1", **{name: "max_split_size_mb:64"})
        assert " PYTORCH_ALLOC_CONF=max_split_size_mb:64 " in shown


@pytest.mark.parametrize("node_rank", [0, 1])
def test_two_nodes_by_hand(repository: Path, node_rank: int) -> None:
    settings = {"GPUS_PER_NODE": "8", "NNODES": "2", "MASTER_ADDR": "n0", "NODE_RANK": str(node_rank)}
    more = {"OMP_NUM_THREADS": "3", "MAX_RESTARTS": "5", "RUN_ID": "mine", "MASTER_PORT": "29600"}
    shown = dry_run(repository, "torchrun.sh", **settings, **more)
    assert shown == [GPU + SEVERAL.format(5, "n0:29600", "mine", 1 - node_rank, repository)]


def test_torchrun_knows_every_flag(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun parses all flags. An environment variable sets the signals to handle, as older versions, which lack the
    flag, ignore it.
    """
    settings = {"GPUS_PER_NODE": "8", "NNODES": "2", "MASTER_ADDR": "n0", "NODE_RANK": "1", "OMP_NUM_THREADS": "3"}
    (shown,) = dry_run(repository, "torchrun.sh", "--lr", "1", **settings)
    words = shlex.split(shown)
    monkeypatch.setenv(*next(word for word in words if word.startswith("PET_")).split("="))
    parsed = get_args_parser().parse_args(words[words.index(f"{repository}/examples/launch/torchrun.py") + 1 :])
    assert (parsed.nproc_per_node, parsed.nnodes, parsed.rdzv_endpoint) == ("8", "2", "n0:29500")
    assert parsed.rdzv_conf == "is_host=0" and parsed.training_script_args == ["--lr", "1"]
    assert parsed.signals_to_handle == "SIGQUIT"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"NPROC": "two"}, "NPROC 'two': give a whole number"),
        ({"NPROC": "0"}, "NPROC 0, NNODES 1: both must be at least 1"),
        (
            {"SCRIPT": "pretrain.py"},
            "SCRIPT 'pretrain.py': there is no such file in the checkout; give one such as pretrain_gpt_ltd.py",
        ),
        ({"NNODES": "2"}, "MASTER_ADDR is missing: with NNODES 2 name the first node"),
        ({"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "n0"}, "NODE_RANK 2: with NNODES 2 nodes count from 0 to 1"),
    ],
)
def test_invalid_settings(repository: Path, settings: dict[str, str], line: str) -> None:
    ended = run(repository, "torchrun.sh", **settings)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"torchrun.sh: error: {line}\n")


RUN = (
    "--num-layers 4 --hidden-size 8 --num-attention-heads 2 --seq-length 16 --lr 1e-3 --train-iters 1 --vocab-size 300 "
    "--train-data-path nowhere --tokenizer-type ByteTokenizer"
).split()


def test_the_last_line_of_a_run_that_fails_is_its_own(repository: Path) -> None:
    """There is no traceback of torchrun, and the exit status is that of the process."""
    settings = {"GPUS_PER_NODE": "0", "NPROC": "2", "PYTHON": warm_python(), "OMP_NUM_THREADS": "1"}
    ended = run(repository, "torchrun.sh", *RUN, **settings)
    assert_names(assert_refused(ended.returncode, ended.stderr, "nowhere"), "--train-data-path")


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--no-such-flag"], ["--no-such-flag"]),
        ([*RUN, "--global-batch-size", "3"], ["--global-batch-size 3"]),  # of two processes
        ([*RUN, "--random-ltd", "--ltd-layers", "9"], ["--ltd-layers 9"]),
    ],
)
def test_a_mistake_is_said_before_processes_start(
    repository: Path, tmp_path: Path, flags: list[str], names: list[str]
) -> None:
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(f'#!/bin/bash\necho "$1" >>"{calls}"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    settings = {"GPUS_PER_NODE": "0", "NPROC": "2", "PYTHON": str(python), "OMP_NUM_THREADS": "1"}
    ended = run(repository, "torchrun.sh", *flags, **settings)
    assert_refused(ended.returncode, ended.stderr, *names)
    assert calls.read_text().splitlines() == [str(repository / "pretrain_gpt_ltd.py")]


_ALONE = """
import os, time
from megatron.ltd import errors
def main():
    if os.environ["RANK"] == "0":
        time.sleep(600)  # in a collective that the other process has left
    raise errors.UserError("data/books.bin: cannot be read")
errors._FIRST_PRINTS_SECONDS = 0.1
errors.run_command(main)
"""


def test_a_mistake_of_a_process_that_does_not_print_is_said(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(_ALONE)
    launcher = [sys.executable, str(repository / FOLDER / "torchrun.py"), "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*launcher, str(tmp_path / "alone.py")],
        env=environment(OMP_NUM_THREADS="1", PYTHONPATH=str(repository)), capture_output=True, text=True,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr.splitlines()[-1:]) == (
        2,
        ["alone.py: error: data/books.bin: cannot be read"],
    )


def test_a_process_that_is_killed_is_named(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    launcher = [warm_python(), str(repository / FOLDER / "torchrun.py"), "--standalone", str(tmp_path / "dies.py")]
    ended = subprocess.run(
        launcher, env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (
        1,
        "torchrun.sh: error: the process of rank 0 was ended by SIGKILL",
    )
    assert "Traceback" not in ended.stderr


@pytest.fixture
def slurm(tmp_path: Path, repository: Path) -> dict[str, str]:
    """The environment and stand-in commands of a Slurm job on two nodes; srun executes DO, or waits for a signal."""
    commands = {
        "scontrol": 'echo "scontrol $*" >>"$CALLS"; [[ "$2" != hostnames ]] || printf "n0\\nn1\\n"',
        "scancel": 'echo "scancel $*" >>"$CALLS"; kill -TERM "$(cat "$CALLS.srun")"',
        "srun": 'echo "srun $*" >>"$CALLS"; trap "exit 0" TERM; echo $$ >"$CALLS.srun"; eval "${DO:-$WAIT}"',
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"),
        "WAIT": "sleep 60 >/dev/null 2>&1 & wait",
        "SLURM_JOB_ID": "1234567", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[0-1]",
        "SLURM_SUBMIT_DIR": str(repository), "SLURM_GPUS_ON_NODE": "8", "OMP_NUM_THREADS": "3",
    }  # fmt: skip


def test_slurm_dry_run(repository: Path, slurm: dict[str, str]) -> None:
    srun, torchrun = dry_run(repository, "slurm.sbatch", "--lr", "1e-3", **slurm, SLURM_CPUS_PER_TASK="64")
    assert srun == (
        "env NNODES=2 GPUS_PER_NODE=8 MASTER_ADDR=n0 MASTER_PORT=24567 RUN_ID=1234567-0 srun --nodes 2 "
        "--ntasks-per-node 1 --kill-on-bad-exit=1 --cpus-per-task 64 "
        f"bash {repository}/examples/launch/torchrun.sh --lr 1e-3"
    )
    assert torchrun == GPU + SEVERAL.format(0, "n0:24567", "1234567-0", 1, repository) + " --lr 1e-3"
    _, torchrun = dry_run(repository, "slurm.sbatch", **slurm, SLURM_NODEID="1")
    assert "is_host=1" in torchrun  # the batch script shows the first node's command, wherever it runs


def test_slurm_on_one_node(repository: Path, slurm: dict[str, str]) -> None:
    one = slurm | {"SLURM_JOB_NUM_NODES": "1", "SLURM_RESTART_COUNT": "3"}
    srun, torchrun = dry_run(repository, "slurm.sbatch", **one)
    assert "RUN_ID=1234567-3 srun --nodes 1 --ntasks-per-node 1 --kill-on-bad-exit=1 bash" in srun
    assert torchrun == GPU + ONE_NODE.format(8, repository)


def test_slurm_in_a_container(repository: Path, slurm: dict[str, str]) -> None:
    """The image has its own Python; a ``.venv`` of the mounted checkout is the node's."""
    image = {"CONTAINER_IMAGE": "/images/a b.sqsh", "CONTAINER_MOUNTS": "/data:/data", "PYTHON": ""}
    srun, torchrun = dry_run(repository, "slurm.sbatch", "--lr", "1e-3", **slurm, **image)
    words, here = shlex.split(srun), os.getcwd()
    assert [word for word in words if word.startswith("--container")] == [
        "--container-image=/images/a b.sqsh",
        f"--container-mounts={repository},{here},/data:/data",
        f"--container-workdir={here}",
    ]
    assert words[-4:] == ["bash", f"{repository}/examples/launch/torchrun.sh", "--lr", "1e-3"]
    assert " python /" in torchrun and ".venv" not in torchrun
    (srun, _) = dry_run(repository, "slurm.sbatch", **slurm, CONTAINER_IMAGE="nvcr.io#nvidia/pytorch:25.12-py3")
    assert f"--container-mounts={repository},{here}" in shlex.split(srun)


def test_one_task_per_gpu(repository: Path, slurm: dict[str, str], tmp_path: Path) -> None:
    """The README's command starts each task with what torchrun would set."""
    text = (repository / FOLDER / "README.md").read_text(encoding="utf-8")
    (block,) = [block for block in code_blocks(text, "bash") if "--gpus-per-task" in block]
    stand_ins = {
        "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        "python": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*"',
    }
    for name, script in stand_ins.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    task = {"SLURM_PROCID": "11", "SLURM_LOCALID": "3", "SLURM_NTASKS": "16"}
    variables = environment(**slurm, **task)
    ended = subprocess.run(
        ["bash", "-c", block], env=variables, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert ended.stdout == "11 3 16 n0 29500 pretrain_gpt_ltd.py --data-path corpus_text_document\n", ended.stderr


def test_slurm_runs_a_script_of_the_checkout(repository: Path, slurm: dict[str, str]) -> None:
    script = "examples/gpt3/prepare_data.sh"
    srun, *shown = dry_run(repository, "slurm.sbatch", script, "--input", "a.jsonl", **slurm)
    assert srun.endswith(
        f" srun --nodes 2 --ntasks-per-node 1 --kill-on-bad-exit=1 bash {repository}/{script} --input a.jsonl"
    )
    assert len(shown) == 1 and "tools/preprocess_data.py" in shown[0]
    array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "16"}
    _, part = dry_run(repository, "slurm.sbatch", script, "--input", "a.jsonl", **slurm, **array)
    assert "--input a.jsonl " in f"{part} " and "--shard 3/16 " in part and "parts/corpus-0003-of-0016 " in part
    ended = run(repository, "slurm.sbatch", "examples/none.sh", **slurm)
    assert ended.returncode == 2 and ended.stderr == (
        f"slurm.sbatch: error: examples/none.sh is not in {repository}: name a shell script of the checkout, or give "
        "flags alone\n"
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [({"SLURM_JOB_ID": ""}, "start it with sbatch"), ({"SLURM_SUBMIT_DIR": "/"}, "/ is not a checkout")],
)
def test_slurm_from_the_wrong_place(
    repository: Path, slurm: dict[str, str], changes: dict[str, str], line: str
) -> None:
    ended = run(repository, "slurm.sbatch", **(slurm | changes))
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1 and line in ended.stderr


def test_a_slurm_job_that_gets_sigterm_is_requeued(repository: Path, slurm: dict[str, str]) -> None:
    script, calls = repository / FOLDER / "slurm.sbatch", Path(slurm["CALLS"])
    with child(["bash", str(script)], env=environment(**slurm), stdout=subprocess.PIPE) as job:
        wait_for(job, Path(f"{calls}.srun").exists)
        job.send_signal(signal.SIGTERM)
        said, _ = job.communicate(timeout=PATIENCE_SECONDS)
    assert job.returncode == 0 and "back to the queue" in said
    assert calls.read_text().splitlines()[-2:] == ["scancel --signal=TERM 1234567", "scontrol requeue 1234567"]


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_slurm_job_that_ends_by_itself_is_not_requeued(repository: Path, slurm: dict[str, str], status: int) -> None:
    ended = run(repository, "slurm.sbatch", **slurm, DO=f"exit {status}")
    assert ended.returncode == status
    assert "requeue" not in Path(slurm["CALLS"]).read_text()


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_run_stop_on_sigterm_and_resume(repository: Path, tmp_path: Path) -> None:
    """SIGTERM goes to the script and, as Slurm does, to torchrun.

    The script forwards it to the ranks, torchrun does not fail, and the same command completes the run.
    """
    out = tmp_path / "out"
    flags = tiny_flags(write_data(tmp_path), "--save", out, "--load", out, "--eval-iters", 0, "--train-iters", 400)
    command = ["bash", str(repository / FOLDER / "torchrun.sh"), *flags]
    settings = environment(GPUS_PER_NODE="0", NPROC="2", PYTHON=sys.executable)

    options = {"cwd": tmp_path, "env": settings, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with child(command, **options) as first:
        wait_for(first, lambda: steps_logged(out) >= 3)
        (launcher,) = psutil.Process(first.pid).children()
        for process in (launcher, first):
            process.send_signal(signal.SIGTERM)
        said, _ = first.communicate(timeout=PATIENCE_SECONDS)
    assert first.returncode == 0, said
    assert "SIGTERM arrived" in said and "Traceback" not in said
    with child(command, **options) as second:
        said, _ = second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 0 and "2 processes" in said and "\ndone\n" in said, said
    assert [iteration for _, iteration in metrics(out)] == list(range(1, 401))


def test_the_readme_names_every_setting(repository: Path) -> None:
    text = (repository / FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if re.match(r"\| `[A-Z]", line)]
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    scripts = "".join((repository / FOLDER / name).read_text() for name in ("torchrun.sh", "slurm.sbatch"))
    read = {name for name in re.findall(r"\$\{([A-Z_]+):-", scripts) if not name.startswith("SLURM_")}
    assert named == read | {"DRY_RUN"}


def test_the_readmes_commands_parse(repository: Path) -> None:
    text = (repository / FOLDER / "README.md").read_text(encoding="utf-8")
    lines = "".join(code_blocks(text, "bash")).replace("\\\n", " ").splitlines()
    lines = [line for line in lines if f"{FOLDER}/" in line]
    flags = [shlex.split(line.split(".sh ", 1)[-1].split(".sbatch ", 1)[-1], comments=True) for line in lines]
    assert len(flags) == 6
    for given in flags:
        needed = [] if "--lr" in given else ["--train-iters", "1", "--lr", "1", *_SHAPE]
        parse_run_config([*needed, *given])
    defaults = re.findall(r"^#SBATCH (--[\w-]+)", (repository / FOLDER / "slurm.sbatch").read_text(), re.MULTILINE)
    assert {"--signal", "--requeue", "--open-mode", "--ntasks-per-node"} <= set(defaults)


_SHAPE = ("--num-layers", "3", "--hidden-size", "8", "--num-attention-heads", "2", "--seq-length", "8")
