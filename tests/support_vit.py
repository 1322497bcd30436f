"""Runs of ``finetune_vit_ltd.py`` in this process on small images whose classes are easy to tell apart."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.errors import run_command
from megatron.ltd.launch import launch
from megatron.ltd.workloads import VIT
from tests.support import Finished, pretrain


def image_arrays(path: Path, num_images: int, *, num_classes: int = 3, seed: int = 0) -> str:
    """Write a .npz of grey images of 31 x 1 pixels: noise, brighter in the 8 pixels of the image's class."""
    draw = np.random.RandomState(seed)
    labels = draw.randint(0, num_classes, num_images)
    images = draw.randint(0, 128, (num_images, 31, 1))
    for image, label in zip(images, labels, strict=True):
        image[label * 8 : label * 8 + 8] += 64
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return str(path)


def vit_flags(folder: Path) -> list[str]:
    """Flags of a run of 12 steps with two microbatches each and dropout: 4 layers, hidden size 32, S = 32.

    The 10 validation images leave the third global batch incomplete.
    """
    return [
        *("--train-data-path", image_arrays(folder / "train.npz", 37)),
        *("--valid-data-path", image_arrays(folder / "valid.npz", 10, seed=1)),
        *"--img-h 31 --img-w 1 --patch-dim 1 --num-channels 1 --num-classes 3".split(),
        *"--num-layers 4 --hidden-size 32 --num-attention-heads 4 --init-method-std 0.1".split(),
        *"--micro-batch-size 2 --global-batch-size 4 --train-iters 12 --seed 5".split(),
        *"--lr 3e-3 --lr-decay-style cosine --min-lr 1e-4 --lr-warmup-fraction 0.2".split(),
        *"--attention-dropout 0.1 --hidden-dropout 0.1 --eval-interval 6 --log-interval 1000".split(),
    ]


def finetune(flags: Sequence[str], folder: Path) -> Finished:
    """Run ``finetune_vit_ltd.py`` with ``flags``; it logs to ``folder`` and saves checkpoints there."""
    return pretrain(["finetune_vit_ltd.py", *flags], folder)


def refusal(flags: Sequence[str]) -> str:
    """The error line that ``finetune_vit_ltd.py`` prints for these flags; checks that its exit status is 2."""
    stderr = io.StringIO()
    with redirect_stderr(stderr), pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["finetune_vit_ltd.py"])
        run_command(lambda: launch(parse_run_config(flags, VIT)))
    (line,) = stderr.getvalue().splitlines()
    assert end.value.code == 2
    return line.removeprefix("finetune_vit_ltd.py: error: ")
