"""What bad input gets from ``finetune_vit_ltd.py``: one line, exit status 2, nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import REPOSITORY
from tests.support_vit import refusal, vit_flags

FLAGS: dict[str, tuple[str, list[str]]] = {
    "pipeline": (
        "--pipeline-model-parallel-size 2",
        ["--pipeline-model-parallel-size 2", "one stage", "use tensor and data parallelism"],
    ),
    "context": ("--context-parallel-size 2", ["--context-parallel-size 2", "tokens of an image stay together"]),
    "sequence": (
        "--tensor-model-parallel-size 2 --sequence-parallel",
        ["--sequence-parallel: ", "tokens of an image", "drop it"],
    ),
    "importance": (
        "--token-bypass --token-bypass-layers 2-3",
        ["--token-bypass-selector is importance", "images have no vocabulary", "use random"],
    ),
    "more kept tokens than tokens": (
        "--random-ltd --ltd-min-kept-tokens 33 --ltd-growth-steps 4 --ltd-granularity 1",
        ["--ltd-min-kept-tokens 33 is above an image's token count 32", "at most 32"],
    ),
    "strata": (
        "--random-ltd --ltd-min-kept-tokens 9 --ltd-growth-steps 4 --ltd-granularity 3 --ltd-strata 3",
        ["--ltd-strata is 3", "divide an image's token count 32"],
    ),
    "bypassed tokens": (
        "--token-bypass --token-bypass-selector random --token-bypass-kept-tokens 40",
        ["--token-bypass-kept-tokens 40 is above an image's token count 32", "at most 32"],
    ),
    "patches": ("--img-h 31 --patch-dim 2", ["--img-h 31 is not a multiple of --patch-dim 2", "whole patches"]),
    "size": ("--img-h 30", ["31 x 1 pixels", "takes 30 x 1", "--img-h 31 --img-w 1"]),
    "classes": ("--num-classes 2", ["labels[", "is 2, and classes go from 0 to 1"]),
    "one class": ("--num-classes 1", ["--num-classes is 1", "two to tell apart"]),
    "channels of the mean": ("--image-mean 0.5 0.5", ["--image-mean has 2 values", "--num-channels 1"]),
    "text's flag": ("--seq-length 32", ["--seq-length: there is no such flag"]),
}


@pytest.mark.parametrize(("flags", "fragments"), FLAGS.values(), ids=FLAGS.keys())
def test_flags(flags: str, fragments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = refusal([*vit_flags(tmp_path), *flags.split(), "--device", "cpu", "--save", str(out)])
    for fragment in fragments:
        assert fragment in line, line
    assert not out.exists()


def test_labels_are_named_by_file_and_place(tmp_path: Path) -> None:
    flags = vit_flags(tmp_path)
    np.savez(tmp_path / "valid.npz", images=np.zeros((4, 31, 1), np.uint8), labels=[0, 1, 7, 2])
    line = refusal([*flags, "--device", "cpu", "--log-dir", str(tmp_path / "out")])
    assert "--valid-data-path" in line and "valid.npz: labels[2] is 7, and classes go from 0 to 2" in line
    assert not (tmp_path / "out").exists()


def test_without_validation_images(tmp_path: Path) -> None:
    flags = vit_flags(tmp_path)
    place = flags.index("--valid-data-path")
    line = refusal([*flags[:place], *flags[place + 2 :], "--device", "cpu", "--log-dir", str(tmp_path / "out")])
    assert "--valid-data-path is missing" in line and "--eval-iters 0" in line


def test_packages_that_are_not_there(tmp_path: Path) -> None:
    """The command itself, without scikit-learn."""
    (tmp_path / "sklearn.py").write_text("raise ImportError('not here')\n")
    command = [sys.executable, str(REPOSITORY / "finetune_vit_ltd.py")]
    environment = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == (
        "finetune_vit_ltd.py: error: --data-path digits needs the package scikit-learn: "
        'pip install "megatron-ltd[vision]"\n'
    )
