"""examples/vit: a shortened digits run as a new user starts it, and the plan of the ViT-B/16 run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from finetune_vit_ltd import DIGITS, DIGITS_RANDOM_LTD
from megatron.ltd.arguments import parse_run_config
from megatron.ltd.config import RunConfig
from megatron.ltd.plan.clock import RunClock
from megatron.ltd.workloads import VIT
from tests.docs.example_scripts import NEW_PYTHON, run

FOLDER = Path("examples") / "vit"
SCRIPT = "vit/run.sh"


def planned(repository: Path, folder: Path, *words: str) -> RunConfig:
    """The configuration of the run that ``run.sh`` would start."""
    ended = run(repository, folder, SCRIPT, *words, DRY_RUN="1", GPUS_PER_NODE="0")
    assert (ended.returncode, ended.stderr) == (0, "")
    return parse_run_config(shlex.split(ended.stdout.split("finetune_vit_ltd.py", 1)[1]), VIT)


@pytest.mark.slow
def test_digits_shortened(repository: Path, tmp_path: Path) -> None:
    ended = run(repository, tmp_path, SCRIPT, "--train-iters", "40", "--ltd-growth-steps", "30", **NEW_PYTHON)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout[-2000:] + ended.stderr[-2000:]
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == "vit-digits-digits_random_ltd"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (last,) = (line for line in lines if line["kind"] == "validation")
    assert last["iteration"] == 40 and last["accuracy"] > 0.6
    assert lines[1]["kept_tokens"] < 17


def test_run_sh_and_the_bare_script_have_the_same_settings(repository: Path, tmp_path: Path) -> None:
    bare = parse_run_config(["--config", DIGITS, DIGITS_RANDOM_LTD], VIT)
    found = planned(repository, tmp_path)
    for part in ("model", "data", "training", "optimizer", "methods"):
        assert getattr(found, part) == getattr(bare, part), part
    assert found.methods["random_ltd"].enabled
    assert not planned(repository, tmp_path, "digits").methods["random_ltd"].enabled


def test_vit_b_16_computes_what_the_readme_says(repository: Path, tmp_path: Path) -> None:
    paths = ["--train-data-path", "train", "--valid-data-path", "valid", "--pretrained-checkpoint", "weights"]
    config = planned(repository, tmp_path, "recipe", "random_ltd", *paths)
    assert config.model.seq_length == 197 and config.checkpoint.finetune
    shape, method = config.model.shape(1000), config.build_method()
    plan = RunClock.build(shape, config.global_batch_size(8), method, config.training, config.optimizer).plan()
    dense = plan.num_steps * 128 * 197 * 12
    assert f"{plan.clock(plan.num_steps, 'layer-tokens') / dense:.1%}" == "77.7%"
    assert "77.7 % of the dense run's layer tokens" in " ".join((repository / FOLDER / "README.md").read_text().split())
