"""The flags of a resumed run: which state comes from the checkpoint, and which settings from the command line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.checkpoint.files import checkpoint_path, read_manifest
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.table import format_rate
from megatron.ltd.training.build import build_run
from megatron.ltd.training.run import Run
from tests.end_to_end.runs import TINY, metrics, refusal, run_status, snapshot, tiny_flags
from tests.support import assert_differs, world
from tests.support_errors import assert_names, assert_refused

OVERRIDE = "--override-opt-param-scheduler"


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with world() as mesh:
        yield mesh


@contextmanager
def built(mesh: Mesh, data: str, *flags: object) -> Iterator[Run]:
    """The run before its first step, closed at the end of the block."""
    run = build_run(parse_run_config(tiny_flags(data, *flags)), mesh)
    try:
        yield run
    finally:
        run.log.close()


def weights(run: Run) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.state.chunks[0].parameters()])


def moments(run: Run) -> list[torch.Tensor]:
    adam = run.state.optimizer.chained_optimizers[0].optimizer
    return [state["exp_avg"] for state in adam.state.values()]


@pytest.fixture
def half(straight: Path, tmp_path: Path) -> Path:
    """A folder that contains only the checkpoint of iteration 4."""
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "iter_0000004").symlink_to(straight / "iter_0000004")
    (tmp_path / "half" / "latest_checkpointed_iteration.txt").write_text("4")
    return tmp_path / "half"


def test_settings_come_from_flags_and_state_from_the_checkpoint(
    mesh: Mesh, data: str, half: Path, tmp_path: Path
) -> None:
    """Megatron-Core saves settings of parameter groups in the checkpoint; loading must not silently restore them."""
    flags = ["--load", half, "--log-dir", tmp_path, "--override-opt-param-scheduler"]
    new = ["--lr", 2e-3, "--min-lr", 1e-4, "--weight-decay", 0.5, "--adam-beta1", 0.8, "--adam-eps", 1e-6]
    with built(mesh, data, *flags) as before, built(mesh, data, *flags, *new) as after:
        for group, old in zip(after.state.optimizer.param_groups, before.state.optimizer.param_groups, strict=True):
            assert (group["max_lr"], group["min_lr"], group["eps"]) == (2e-3, 1e-4, 1e-6)
            assert group["betas"] == (0.8, 0.999)
            assert group["weight_decay"] == 0.5 * group["wd_mult"]
            assert (old["max_lr"], old["betas"][0], old["eps"]) == (1e-3, 0.9, 1e-8)
            assert group["step"] == old["step"] == 4
        assert torch.equal(weights(after), weights(before))
        assert all(map(torch.equal, moments(after), moments(before))) and moments(after)
        assert after.progress == before.progress


def test_another_learning_rate_with_the_override(
    data: str, straight: Path, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = tiny_flags(data, "--load", half, "--save", half, "--lr", 2e-3, "--override-opt-param-scheduler")
    assert run_status(flags) == (0, "")
    rates = []
    for iteration in (5, 6):  # warm-up and cosine are proportional to the peak
        lr, before = (metrics(folder)["train", iteration]["lr"] for folder in (half, straight))
        assert lr == pytest.approx(2 * before, rel=1e-12)
        rates.append(format_rate(lr))
    lines = [re.split("  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    head = next(number for number, cells in enumerate(lines) if "learning rate" in cells)
    column = lines[head].index("learning rate")
    shown = {cells[0]: cells[column] for cells in lines[head + 1 : head + 5]}
    assert shown == {"1 - 2": "-", "3 - 4": "-", "5": rates[0], "6": rates[1]}  # past steps had other rates


def test_another_clock_with_the_override(mesh: Mesh, data: str, half: Path, tmp_path: Path) -> None:
    """The position of the clock is converted to the new unit."""
    flags = ["--load", half, "--log-dir", tmp_path, "--override-opt-param-scheduler", "--lr-clock", "samples"]
    with built(mesh, data, *flags) as run:
        assert run.state.scheduler.num_steps == 16  # 4 steps of 4 samples


def test_finetune_loads_only_the_weights(mesh: Mesh, data: str, half: Path, tmp_path: Path) -> None:
    with (
        built(mesh, data, "--load", half, "--log-dir", tmp_path) as source,
        built(mesh, data, "--load", half, "--log-dir", tmp_path, "--finetune", "--seed", 5, "--lr", 0.5) as run,
    ):
        assert torch.equal(weights(run), weights(source))
        assert (run.progress.iteration, run.progress.consumed_samples, run.progress.consumed_layer_tokens) == (0, 0, 0)
        assert run.state.scheduler.num_steps == 0 and run.learning_rate == 0.0
        assert not any(moment.any() for moment in moments(run))
        assert source.progress.iteration == 4


def test_no_load_optim_resets_adam_only(mesh: Mesh, data: str, half: Path, tmp_path: Path) -> None:
    with (
        built(mesh, data, "--load", half, "--log-dir", tmp_path) as source,
        built(mesh, data, "--load", half, "--log-dir", tmp_path, "--no-load-optim") as run,
    ):
        assert torch.equal(weights(run), weights(source))
        assert run.progress == source.progress
        assert run.learning_rate == source.learning_rate > 0.0
        assert not any(moment.any() for moment in moments(run))
        assert all(moment.any() for moment in moments(source))


def _without_flags(flags: list[str], *names: str) -> list[str]:
    kept = list(flags)
    for name in names:
        position = kept.index(name)
        del kept[position : position + 2]
    return kept


def test_checkpoint_arguments(data: str, straight: Path, half: Path) -> None:
    """The model's shape and the tokenizer come from the checkpoint; flags that are given take precedence."""
    shape = ("--num-layers", "--hidden-size", "--num-attention-heads", "--seq-length", "--tokenizer-type")
    flags = [*_without_flags(tiny_flags(data, "--load", half, "--save", half), *shape), "--use-checkpoint-args"]
    assert run_status(flags) == (0, "")
    whole, continued = metrics(straight), metrics(half)
    assert continued == {key: whole[key] for key in whole if key[1] > 4}
    assert_differs(refusal([*flags, "--hidden-size", "32"]), "hidden_size", "32", "16")


def test_changed_flags_are_reported(data: str, half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = tiny_flags(data, "--load", half, "--save", half, "--weight-decay", 0.5, "--hidden-dropout", 0.2)
    assert run_status(flags) == (0, "")
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if "--weight-decay" in line)
    assert_differs(line, "hidden_dropout", "0.2", "0.1")
    assert_differs(line, "weight_decay", "0.5", "0.01")


def test_a_finished_run_says_how_to_go_on(
    data: str, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = shutil.copytree(straight, tmp_path / "finished")
    assert run_status(tiny_flags(data, "--save", finished, "--load", finished)) == (0, "")
    said = capsys.readouterr().out
    assert "already at step 6 of 6" in said and "--train-iters" in said
    assert f"megatron-ltd export --load {finished}" in said
    assert metrics(finished) == metrics(straight)
    assert snapshot(finished / "iter_0000006") == snapshot(straight / "iter_0000006")


def test_a_longer_run_is_told_what_keeps_its_schedule(data: str, half: Path) -> None:
    """With the flag that the error names, the run continues."""
    longer = tiny_flags(data, "--save", half, "--load", half, "--train-iters", 8)
    line = refusal(longer)
    assert_names(line, "--train-iters 8", "then 6", "--lr-decay-iters 6", OVERRIDE)
    assert run_status([*longer, "--lr-decay-iters", "6"]) == (0, "")


def test_a_run_that_keeps_nothing_says_so(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_status(tiny_flags(data, "--train-iters", 3)) == (0, "")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: --save"))
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"runs/{folder.name};" in line and (folder / "metrics.jsonl").is_file()


def test_a_moved_dataset_is_the_same(straight: Path, half: Path, data: str, tmp_path: Path) -> None:
    for ending in ("bin", "idx", "json"):
        (tmp_path / f"moved.{ending}").symlink_to(f"{data}.{ending}")
    assert run_status(tiny_flags(str(tmp_path / "moved"), "--load", half, "--save", half)) == (0, "")
    assert metrics(half)["train", 6] == metrics(straight)["train", 6]


def test_dense_continues_with_random_ltd(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dense run can continue with random-LTD and vice versa, but only with the override; otherwise it may be a
    mistake.
    """
    common = ["--load", tmp_path, "--save", tmp_path, "--lr-decay-tokens", 384, "--lr-warmup-iters", 0]
    dropping = tiny_flags(data, *common)
    dense = [flag for flag in dropping if flag != "--random-ltd"]
    assert run_status([*dense, "--exit-interval", "2"]) == (0, "")
    assert_differs(refusal(dropping), "method", "random-LTD (--random-ltd)", "dense")
    capsys.readouterr()
    assert run_status([*dropping, OVERRIDE, "--exit-interval", "4"]) == (0, "")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if OVERRIDE in line)
    assert_differs(line, "method", "random-LTD (--random-ltd)", "dense")
    line = refusal(dense)
    assert_differs(line, "method", "dense", "random-LTD (--random-ltd)")
    assert OVERRIDE in line
    assert run_status([*dense, OVERRIDE]) == (0, "")
    kept = [metrics(tmp_path)["train", iteration]["kept_tokens"] for iteration in range(1, 7)]
    assert kept == [16, 16, 8, 8, 16, 16]


def test_another_global_batch_with_the_override(data: str, straight: Path, half: Path) -> None:
    """The order of samples continues where it was, with more samples per step."""
    flags = tiny_flags(data, "--load", half, "--save", half, "--global-batch-size", 8, OVERRIDE)
    assert run_status(flags) == (0, "")
    steps, before = metrics(half), metrics(straight)
    assert [steps["train", iteration]["consumed_samples"] for iteration in (5, 6)] == [4 * 4 + 8, 4 * 4 + 16]
    assert [steps["train", iteration]["kept_tokens"] for iteration in (5, 6)] == [
        before["train", iteration]["kept_tokens"] for iteration in (5, 6)
    ]


def test_a_default_global_batch_size_is_compared_by_value(data: str, tmp_path: Path) -> None:
    """The default is one micro-batch per process: another size changes it, but the same value may be given."""
    flags = tiny_flags(data, "--load", tmp_path, "--save", tmp_path)
    position = flags.index("--global-batch-size")
    default = [*flags[:position], *flags[position + 2 :]]
    assert run_status([*default, "--exit-interval", "2"]) == (0, "")
    assert_differs(refusal([*default, "--micro-batch-size", "1"]), "global_batch_size", "1", "2")
    assert run_status([*default, "--micro-batch-size", "1", "--global-batch-size", "2"]) == (0, "")


def test_without_optimizer_state_the_schedule_comes_from_the_flags(
    data: str, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = tiny_flags(data, "--load", half, "--save", half, "--no-load-optim", "--lr", 2e-3, "--ltd-growth-steps", 6)
    assert run_status(flags) == (0, "")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "--no-load-optim" in line)
    assert_differs(line, "ltd_growth_steps", "6", "5")
    assert_differs(line, "lr", "0.002", "0.001")


@pytest.mark.parametrize("named", ["step", "folder"])
def test_an_older_checkpoint(data: str, straight: Path, tmp_path: Path, named: str) -> None:
    """Resume from the checkpoint of step 2 in a folder with later ones, and save there: the same run is repeated."""
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    loaded = ("--load", folder, "--ckpt-step", 2) if named == "step" else ("--load", folder / "iter_0000002")
    flags = tiny_flags(data, "--save", folder, *loaded, "--save-interval", 2, "--log-dir", tmp_path)
    assert run_status(flags) == (0, "")
    found, expected = metrics(tmp_path), metrics(straight)
    assert set(found) and found.items() <= expected.items()
    for iteration in (2, 4, 6):
        manifests = [read_manifest(checkpoint_path(place, iteration)) or {} for place in (folder, straight)]
        tensors = [{name: entry for name, entry in files.items() if "distcp" in name} for files in manifests]
        assert tensors[0] == tensors[1]


def test_a_step_without_a_checkpoint_is_refused(data: str, straight: Path, tmp_path: Path) -> None:
    assert_refused(*run_status(tiny_flags(data, "--load", straight, "--ckpt-step", 3)), "--ckpt-step 3", 2, 4, 6)
    assert_refused(*run_status(tiny_flags(data, "--load", tmp_path, "--ckpt-step", 2)), "--ckpt-step 2", tmp_path)
    assert_refused(*run_status(tiny_flags(data, "--ckpt-step", 2)), "--ckpt-step 2", "--load")
    other = tmp_path / "other"
    shutil.copytree(straight, other)
    saved = run_status(tiny_flags(data, "--load", straight / "iter_0000002", "--save", other))
    assert_refused(*saved, f"--save {other}")


def test_a_method_alone_names_what_it_takes_by_default(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--random-ltd`` without its other flags: the header has the line of ``--plan``, and the run does it."""
    alone = [*TINY[: TINY.index("--random-ltd") + 1], "--train-data-path", data, "--log-dir", str(tmp_path)]
    alone += ["--train-iters", "12", "--seq-length", "64", "--eval-iters", "0"]
    assert run_status(alone) == (0, "")
    (line,) = (line.strip() for line in capsys.readouterr().out.splitlines() if "by default" in line)
    assert run_status([*alone, "--plan"]) == (0, "")
    assert line in [said.strip() for said in capsys.readouterr().out.splitlines()]
    words = dict(word.split(" ", 1) for word in line.removeprefix("by default ").split(", "))
    assert words["--ltd-schedule"] == "growing" and words["--ltd-layers"] == "2"
    fewest, growth_steps = int(words["--ltd-min-kept-tokens"]), int(words["--ltd-growth-steps"])
    kept = [found["kept_tokens"] for found in metrics(tmp_path).values()]
    assert kept[0] == fewest < 64 and kept == sorted(kept) and kept.index(64) == growth_steps
