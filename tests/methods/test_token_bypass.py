"""TokenBypass in whole runs: constant kept tokens, layer tokens in closed form, and importances in checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support import pretrain

FLAGS = "--token-bypass --token-bypass-kept-tokens 8 --token-bypass-layers 2-3".split()


def test_importances_in_a_checkpoint_are_the_averages_of_its_steps(flags: list[str], folder: Path) -> None:
    """Compare runs of one and two steps: the second step updates the averages once more, and unseen ids stay at ten."""
    runs = [pretrain([*flags, *FLAGS, "--exit-interval", str(steps)], folder / str(steps)) for steps in (1, 2)]
    assert runs[1].column("kept_tokens") == [8, 8]
    assert runs[1].column("consumed_layer_tokens") == [4 * (2 * 32 + 2 * 8) * steps for steps in (1, 2)]
    first, second = (run.tensors(steps)["method.learned"] for steps, run in enumerate(runs, start=1))
    assert first.shape == (257,) and first.dtype == torch.float64
    seen = first != 10.0
    assert 10 < int(seen.sum()) < 30
    losses = (first[seen] - 9.95) / 0.005
    assert (losses > 3.0).all() and (losses < 9.0).all()  # at the first step, a byte model's loss is about log 257
    moved = second != first
    assert moved.any() and (second[~moved] == first[~moved]).all()


def test_finetuning_learns_again(flags: list[str], folder: Path) -> None:
    """Finetuning from a checkpoint with importances learns them anew, as if the run had started with these weights."""
    flags = [*flags, *FLAGS]
    started = pretrain([*flags, "--exit-interval", "3"], folder / "started").tensors(3)["method.learned"]
    tuned = pretrain(
        [*flags, "--load", str(folder / "started"), "--finetune", "--exit-interval", "1"], folder / "tuned"
    ).tensors(1)["method.learned"]
    moved = tuned[tuned != 10.0]
    assert (started < 9.95).any() and (moved > 9.95).all() and len(moved) > 10


def test_an_entry_layer_that_drops_later_has_its_mask(
    flags: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the first steps keep every token, kernels that ignore an explicit mask must not be used."""
    from megatron.ltd.workloads import gpt

    asked, build = [], gpt.build_chunks
    monkeypatch.setattr(
        gpt, "build_chunks", lambda *given, **how: asked.append(how["masked_layers"]) or build(*given, **how)
    )
    staged = "--token-bypass-schedule staged --token-bypass-stages 0:32 1:16 --token-bypass-layers 2-3"
    for method in (["--token-bypass", *staged.split()], []):
        pretrain([*flags, *method, "--train-iters", "2"], folder / str(len(method)))
    assert asked == [{2}, set()]
