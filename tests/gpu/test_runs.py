"""Whole runs on each device: they learn, repeat themselves, and compute the same on other kernels."""

from __future__ import annotations

import importlib
import importlib.util
import math
from pathlib import Path

import pytest
import torch

from tests.gpu.runs import column, stored_tensors, train, train_apart


def test_fp32_products_are_not_rounded_to_tf32(device: str, impl: str) -> None:
    """Every test of this folder compares such products. 1 + 2^-12 is 1 in TF32, and 64 of them are exact in fp32."""
    where = "transformer_engine.pytorch" if impl == "transformer_engine" else "torch.nn"
    layer = importlib.import_module(where).Linear(64, 64, bias=False).to(device)
    torch.nn.init.ones_(layer.weight)
    out = layer(torch.full((64, 64), 1 + 2.0**-12, device=device))
    assert out.unique().tolist() == [64 + 64 * 2.0**-12]


def test_a_run_follows_the_cpu(device: str, data: Path, tmp_path: Path) -> None:
    """From the same checkpoint, and up to fp32 rounding."""
    start = tmp_path / "start"
    train(device, data, tmp_path / "first", "--save", start, "--exit-interval", 1)
    here = train(device, data, tmp_path / "here", "--load", start)
    cpu = train_apart(device, data, tmp_path / "cpu", "--load", start, "--device", "cpu")
    assert len(here) > 2 and column(cpu, "loss") == pytest.approx(column(here, "loss"), rel=1e-3)
    if device == "cuda":
        assert here[-1]["loss"] < 0.8 * here[0]["loss"]


@pytest.mark.parametrize("more", [(), ("--bf16", "--reset-attention-mask")], ids=["fp32", "bf16, masks"])
def test_deterministic_mode_repeats_every_bit(device: str, data: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """Losses, weights and moments, with dropout."""
    dropout = ("--attention-dropout", 0.1, "--hidden-dropout", 0.1)
    seen = []
    for name in ("one", "two"):
        folder = tmp_path / name
        steps = train_apart(device, data, folder, "--deterministic-mode", *dropout, *more, "--save", folder)
        seen.append((column(steps, "loss"), column(steps, "grad_norm"), stored_tensors(folder, len(steps))))
    assert seen[0] == seen[1] and seen[0][2]


def test_bfloat16_ends_where_fp32_does(device: str, data: Path, tmp_path: Path) -> None:
    fp32 = train(device, data, tmp_path / "fp32")
    bf16 = train(device, data, tmp_path / "bf16", "--bf16")
    assert bf16[-1]["loss"] == pytest.approx(fp32[-1]["loss"], rel=5e-2)


@pytest.mark.parametrize("more", [(), ("--reset-attention-mask", "--reset-position-ids")], ids=["causal", "masks"])
def test_implementations_of_the_layers_agree(device: str, data: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """Each continues the other's checkpoint. A CPU has one implementation, and takes it for both."""
    other = "transformer_engine" if device == "cuda" else "local"
    if device == "cuda" and importlib.util.find_spec(other) is None:
        pytest.skip("needs Transformer Engine")
    losses = {}
    for writer, reader in dict.fromkeys([("local", other), (other, "local")]):
        start = tmp_path / f"from {writer}"
        kernels = ("--transformer-impl", writer)
        train_apart(device, data, start / "log", *kernels, *more, "--save", start, "--exit-interval", 2)
        for impl in (writer, reader):
            folder = tmp_path / f"{impl} from {writer}"
            steps = train_apart(device, data, folder, "--transformer-impl", impl, *more, "--load", start)
            losses[folder.name] = column(steps, "loss")
        own, taken = losses[f"{writer} from {writer}"], losses[f"{reader} from {writer}"]
        assert len(own) > 1 and taken == pytest.approx(own, rel=1e-3)


def test_backends_agree_on_masks_at_192_kept_tokens(device: str, impl: str, data: Path, tmp_path: Path) -> None:
    """Losses and gradients of two steps of a model whose layers have masks; see ``test_attention``."""
    shape = "--seq-length 256 --ltd-min-kept-tokens 192 --ltd-growth-steps 1000 --train-iters 2 --eval-iters 0"
    seen = {}
    for backend in ("unfused", "auto", "local"):
        kernels = ("--attention-backend", backend, "--transformer-impl", impl, "--reset-attention-mask")
        seen[backend] = train(device, data, tmp_path / backend, *shape.split(), *kernels)
        assert column(seen[backend], "kept_tokens") == [192, 192]
    for name in ("loss", "grad_norm"):
        expected = column(seen["unfused"], name)
        assert all(map(math.isfinite, expected))
        assert all(column(steps, name) == pytest.approx(expected, rel=1e-3) for steps in seen.values())


def test_cached_greedy_decoding_equals_full_forward_passes(device: str, data: Path, tmp_path: Path) -> None:
    from megatron.ltd.evaluation.decoding import generate
    from megatron.ltd.evaluation.load import load_model
    from megatron.ltd.evaluation.sampler import Sampler
    from megatron.ltd.evaluation.scoring import BatchSize, Text, score
    from megatron.ltd.parallel.config import ParallelConfig
    from megatron.ltd.parallel.mesh import initialize
    from megatron.ltd.tokenizers.config import TokenizerFiles

    train(device, data, tmp_path / "run", "--save", tmp_path / "run")
    parallel = ParallelConfig(device=device)
    with initialize(parallel) as mesh:
        loaded = load_model(tmp_path / "run", TokenizerFiles(), parallel, mesh)
        model = loaded.causal_lm
        prompts = [loaded.tokenizer.encode(text) for text in ("number 7", "n", "number 12 fol")]
        assert model.can_cache
        greedy = [Sampler.build(0, 0.0)] * len(prompts)
        cached = generate(model, prompts, greedy, max_new_tokens=[20] * 3, eod=loaded.tokenizer.eod)
        for prompt, new in zip(prompts, cached, strict=True):
            with model.evaluating():
                hidden_SBH = model.hidden_states(torch.tensor([prompt + new], device=device))
                likeliest = model.logits(hidden_SBH[:, 0]).argmax(dim=-1).tolist()
            assert new == likeliest[len(prompt) - 1 : len(prompt) - 1 + len(new)]
        (found,) = score(model, [Text(tuple(prompts[0] + cached[0]), len(cached[0]))], BatchSize(1024))
        assert found.is_greedy and found.log_likelihood < 0.0
