"""Bad input to ``finetune_vit_ltd.py``: one error line, exit status 2, and nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import REPOSITORY
from tests.support_errors import assert_names, assert_refused
from tests.support_vit import refusal, vit_flags

FLAGS: dict[str, tuple[str, list[object]]] = {
    "pipeline": ("--pipeline-model-parallel-size 2", ["--pipeline-model-parallel-size 2"]),
    "context": ("--context-parallel-size 2", ["--context-parallel-size 2"]),
    "sequence": ("--tensor-model-parallel-size 2 --sequence-parallel", ["--sequence-parallel"]),
    "importance": (
        "--token-bypass --token-bypass-layers 2-3",
        ["--token-bypass-selector importance", "--token-bypass-selector random"],
    ),
    "more kept tokens than tokens": (
        "--random-ltd --ltd-min-kept-tokens 33 --ltd-growth-steps 4 --ltd-granularity 1",
        ["--ltd-min-kept-tokens 33", 32],
    ),
    "strata": (
        "--random-ltd --ltd-min-kept-tokens 9 --ltd-growth-steps 4 --ltd-granularity 3 --ltd-strata 3",
        ["--ltd-strata 3", 32],
    ),
    "bypassed tokens": (
        "--token-bypass --token-bypass-selector random --token-bypass-kept-tokens 40",
        ["--token-bypass-kept-tokens 40", 32],
    ),
    "patches": ("--img-h 31 --patch-dim 2", ["--img-h 31", "--patch-dim 2"]),
    "size": ("--img-h 30", [31, 1, 30, "--img-h 31", "--img-w 1"]),
    "classes": ("--num-classes 2", [2, 0, 1]),
    "one class": ("--num-classes 1", ["--num-classes 1"]),
    "channels of the mean": ("--image-mean 0.5 0.5", ["--image-mean", 2, "--num-channels 1"]),
    "text's flag": ("--seq-length 32", ["--seq-length"]),
}


@pytest.mark.parametrize(("flags", "names"), FLAGS.values(), ids=FLAGS.keys())
def test_flags(flags: str, names: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = refusal([*vit_flags(tmp_path), *flags.split(), "--device", "cpu", "--save", str(out)])
    assert_names(line, *names)
    assert not out.exists()


def test_a_wrong_label_is_named_by_file_and_index(tmp_path: Path) -> None:
    flags = vit_flags(tmp_path)
    np.savez(tmp_path / "valid.npz", images=np.zeros((4, 31, 1), np.uint8), labels=[0, 1, 7, 2])
    line = refusal([*flags, "--device", "cpu", "--log-dir", str(tmp_path / "out")])
    assert_names(line, "--valid-data-path", "valid.npz", "labels[2]", 7, 0, 2)
    assert not (tmp_path / "out").exists()


def test_without_validation_images(tmp_path: Path) -> None:
    flags = vit_flags(tmp_path)
    place = flags.index("--valid-data-path")
    line = refusal([*flags[:place], *flags[place + 2 :], "--device", "cpu", "--log-dir", str(tmp_path / "out")])
    assert_names(line, "--valid-data-path", "--eval-iters 0")


def test_without_scikit_learn(tmp_path: Path) -> None:
    """Run the whole command with an import of scikit-learn that fails."""
    (tmp_path / "sklearn.py").write_text("raise ImportError('not here')\n")
    command = [sys.executable, str(REPOSITORY / "finetune_vit_ltd.py")]
    environment = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert_refused(ended.returncode, ended.stderr, "--data-path digits", "scikit-learn", '"megatron-ltd[vision]"')
