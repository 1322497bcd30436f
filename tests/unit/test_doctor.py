"""The doctor: no complaint about this machine, and a finding with advice for each possible problem."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from torch import Tensor

from megatron.ltd.doctor import hardware, layer, processes, software
from megatron.ltd.doctor.__main__ import hiding_packages
from megatron.ltd.doctor.finding import NOTE, OK, WRONG, Finding, report
from megatron.ltd.layers import routed_layer
from megatron.ltd.layers.route import KeptTokens, Route
from megatron.ltd.models import kernels
from megatron.ltd.routing.gather_scatter import flat_rows
from tests.support_processes import PATIENCE_SECONDS


def doctor(repository: Path, *command: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join(str(entry) for entry in (path, repository) if entry is not None)
    environment = os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": "1", "RANK": "0", "WORLD_SIZE": "4"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=repository.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


def test_a_healthy_machine(repository: Path) -> None:
    """The doctor is run by its path, in case the module is not found, and with a launcher's environment variables."""
    ended = doctor(repository, str(repository / "megatron" / "ltd" / "doctor"))
    lines = ended.stdout.splitlines()
    assert (ended.returncode, ended.stderr, lines[-1]) == (0, "", "all is well"), ended.stdout + ended.stderr
    states = {line[7:27].strip(): line.split()[0] for line in lines[:-1]}
    assert set(states.values()) <= {OK, NOTE}
    checked = "python megatron-ltd torch megatron-core psutil pyyaml backends layer".split()
    assert {states[name] for name in [*checked, "processes, gloo"]} == {OK}


def test_half_installed_transformer_engine(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").write_text('raise RuntimeError("meta package\\nmore")\n')
    ended = doctor(repository, "-m", "megatron.ltd.doctor", path=tmp_path)
    assert ended.returncode == 1 and ended.stderr == "", ended.stderr
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith(WRONG)]
    assert "transformer-engine" in line and "RuntimeError: meta package" in line
    assert ": uninstall it (pip uninstall transformer-engine)" in line
    assert "fix transformer-engine first" in ended.stdout and ended.stdout.endswith("1 thing is wrong\n")


def test_a_package_that_hides_the_namespace(repository: Path, tmp_path: Path) -> None:
    """Python cannot find the doctor by its module name then, but run by its path the doctor explains why."""
    (tmp_path / "megatron").mkdir()
    (tmp_path / "megatron" / "__init__.py").touch()
    assert doctor(repository, "-m", "megatron.ltd.doctor", path=tmp_path).returncode == 1
    ended = doctor(repository, str(repository / "megatron" / "ltd" / "doctor"), path=tmp_path)
    assert ended.returncode == 1 and ended.stderr == ""
    assert f"{tmp_path / 'megatron' / '__init__.py'} hides megatron.core and megatron.ltd" in ended.stdout
    assert "take its folder off PYTHONPATH" in ended.stdout


def test_hiding_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty entry of sys.path is the working folder; a ``megatron`` folder without __init__.py hides nothing."""
    (tmp_path / "a" / "megatron").mkdir(parents=True)
    (tmp_path / "b" / "megatron").mkdir(parents=True)
    (tmp_path / "b" / "megatron" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path / "b")
    assert hiding_packages([str(tmp_path / "a"), str(tmp_path / "none")]) == []
    assert hiding_packages(["", str(tmp_path / "a")]) == [Path("megatron/__init__.py")]


def test_report_of_findings_and_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([Finding(OK, "a", "1"), Finding(NOTE, "b", "none")]) == 0
    assert report([Finding(WRONG, "a", "is 1", "use 2"), Finding(WRONG, "b", "is 3", "use 4")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "all is well" and lines[-1] == "2 things are wrong"
    assert lines[3] == "wrong  a                   is 1: use 2"


@pytest.mark.parametrize(
    ("requirement", "text"),
    [("torch>=99", "and >=99 is needed"), ("no-such-thing>=1", "is not installed (>=1 is needed)")],
)
def test_unmet_requirements(requirement: str, text: str) -> None:
    found = software._required(Requirement(requirement), importable=True)
    assert found.state == WRONG and text in found.text and "setup_env.sh" in found.advice


def test_a_package_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "package_version", lambda name: "1.0")
    (tmp_path / "broken_thing.py").write_text('raise OSError("libfoo.so.1: cannot open")\n')
    monkeypatch.syspath_prepend(tmp_path)
    found = software._required(Requirement("broken-thing"), importable=True)
    assert found.state == WRONG and "1.0 cannot be imported (OSError: libfoo.so.1: cannot open)" in found.text


def test_requirements_of_the_checkout_equal_pyproject(repository: Path) -> None:
    from setuptools.config.pyprojecttoml import read_configuration

    declared = read_configuration(repository / "pyproject.toml", expand=False)["project"]["dependencies"]
    assert software._declared_in_checkout() == declared


def test_a_driver_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    found = hardware._no_gpu()
    assert found.state == WRONG and "built without CUDA" in found.text and "CUDA build" in found.advice
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "nvidia-smi" in hardware._no_gpu().advice


def test_small_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"total": 64 << 20})
    monkeypatch.setattr(hardware.shutil, "disk_usage", lambda path: usage)
    (found,) = [found for found in hardware.check() if found.name == "shared memory"]
    assert found.state == NOTE and "64 MiB" in found.text and "--shm-size" in found.advice


def _wrong_sum(backend: str, rank: int, world_size: int) -> str | None:
    return "the sum came out wrong" if rank == 1 else None


def _die(backend: str, rank: int, world_size: int) -> str | None:
    os._exit(3)


def _hang(backend: str, rank: int, world_size: int) -> str | None:
    time.sleep(1000)
    return None


@pytest.mark.parametrize(
    ("talk", "seconds", "text"),
    [
        (_wrong_sum, 600.0, "2 processes failed on rank 1 (the sum came out wrong)"),
        (_die, 600.0, "died without a message"),
        (_hang, 1.0, "2 processes did not finish within 1 s"),
    ],
    ids=["wrong", "dead", "stuck"],
)
def test_processes_that_cannot_communicate(talk: object, seconds: float, text: str) -> None:
    started = time.monotonic()
    found = processes.exchange("gloo", 2, seconds, talk)  # type: ignore[arg-type]
    assert found.state == WRONG and text in found.text and "GLOO_SOCKET_IFNAME" in found.advice
    assert time.monotonic() - started < PATIENCE_SECONDS


def test_slow_kernels_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU without Transformer Engine; a CPU has no faster ones."""
    assert [found.name for found in layer.check()] == ["layer"]
    on_gpu = torch.device("cuda", 0)
    monkeypatch.setattr(kernels, "slow_kernels", lambda chunks, device, slow=kernels.slow_kernels: slow(chunks, on_gpu))
    works, slow = layer.check()
    assert (works.state, slow.state) == (OK, NOTE)
    assert slow.text.startswith("layers run on PyTorch's kernels; Transformer Engine's are faster on this device")


def _finding() -> Finding:
    (found,) = layer.check()
    return found


def test_a_layer_that_loses_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def merge(rest_SBH: Tensor, *others: object) -> Tensor:
        return rest_SBH

    monkeypatch.setattr(routed_layer, "merge_tokens", merge)
    found = _finding()
    assert found.state == WRONG and "a layer on half of its tokens is off by" in found.text


def test_a_model_that_drops_at_full_length(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept_tokens(self: Route, layer_number: int, place: object = None) -> KeptTokens:
        kept_BK = torch.arange(32).repeat(2, 1)
        return KeptTokens(kept_BK, kept_BK, kept_BK, flat_rows(kept_BK))

    monkeypatch.setattr(Route, "kept_tokens", kept_tokens)
    found = _finding()
    assert found.state == WRONG and "at full length is not the dense model's" in found.text
