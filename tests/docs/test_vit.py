"""examples/vit: the digits run as a newcomer starts it, shortened, and what the ViT-B/16 run would do."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_vit_ltd import DIGITS, DIGITS_RANDOM_LTD
from megatron.ltd.arguments import parse_run_config
from megatron.ltd.config import RunConfig
from megatron.ltd.plan.clock import RunClock
from megatron.ltd.tasks import VIT

FOLDER = Path("examples") / "vit"


def run(repository: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR", "PYTHONPATH")}
    environment = {**kept, "OMP_NUM_THREADS": "1", "VENV": sys.prefix, "GPUS_PER_NODE": "0", **settings}
    script = ["bash", str(repository / FOLDER / "run.sh")]
    return subprocess.run(script, env=environment, capture_output=True, text=True, check=False)


def planned(repository: Path, **settings: str) -> RunConfig:
    """The flags that ``run.sh`` would start."""
    ended = run(repository, DRY_RUN="1", **settings)
    assert (ended.returncode, ended.stderr) == (0, "")
    return parse_run_config(shlex.split(ended.stdout.split("finetune_vit_ltd.py", 1)[1]), VIT)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random-ltd", "dense"])
def test_digits_shortened(repository: Path, tmp_path: Path, method: str) -> None:
    ended = run(repository, STEPS="40", METHOD=method, OUT=str(tmp_path / "out"))
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout[-2000:] + ended.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    (last,) = (line for line in lines if line["kind"] == "validation")
    assert last["iteration"] == 40 and last["accuracy"] > 0.6
    assert (lines[1]["kept_tokens"] < 17) == (method == "random-ltd")


def test_run_sh_and_the_bare_script_are_one_recipe(repository: Path, tmp_path: Path) -> None:
    bare = parse_run_config([*DIGITS.split(), *DIGITS_RANDOM_LTD.split()], VIT)
    found = planned(repository, OUT=str(tmp_path))
    for part in ("model", "data", "training", "optimizer", "methods"):
        assert getattr(found, part) == getattr(bare, part), part
    assert not planned(repository, METHOD="dense").methods["random_ltd"].enabled


def test_vit_b_16_computes_what_the_readme_says(repository: Path) -> None:
    config = planned(repository, TRAIN="train", VALID="valid", LOAD="weights")
    assert config.model.seq_length == 197 and config.checkpoint.finetune
    shape, method = config.model.shape(1000), config.build_method()
    plan = RunClock.build(shape, config.global_batch_size(8), method, config.training, config.optimizer).plan()
    dense = plan.num_steps * 128 * 197 * 12
    assert f"{plan.clock(plan.num_steps, 'layer-tokens') / dense:.1%}" == "77.7%"
    assert "77.7 % of the dense run's layer tokens" in " ".join((repository / FOLDER / "README.md").read_text().split())


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"METHOD": "sparse"}, "METHOD is 'sparse'"), ({"TRAIN": "x"}, "VALID is missing")],
    ids=["method", "validation"],
)
def test_settings_that_cannot_be(repository: Path, settings: dict[str, str], said: str) -> None:
    ended = run(repository, **settings)
    assert ended.returncode == 2 and said in ended.stderr
