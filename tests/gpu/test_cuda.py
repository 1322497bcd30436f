"""Tests that need a CUDA device. Without one they are skipped; run them alone with ``pytest -m gpu``.

A run on the CPU replaces parts of ``torch.cuda`` for the rest of its process, so CPU runs get their own process here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.launch import launch
from megatron.ltd.parallel import cpu_backend
from megatron.ltd.routing.gather_scatter import flat_rows, gather_tokens, merge_tokens, scatter_tokens, split_tokens
from megatron.ltd.routing.sampling import kept_indices

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def without_stand_ins() -> None:
    if cpu_backend._installed:
        pytest.skip("a CPU run came before in this process: run pytest -m gpu by itself")


def test_cuda_and_cpu_select_the_same_tokens() -> None:
    ids = torch.arange(1000, 1064)
    for draw in ((2, 2048, 128, 1, 1), (17, 2048, 1024, 4, 1), (2, 2048, 128, 1, 16), (17, 2048, 1024, 4, 16)):
        assert torch.equal(kept_indices(1234, ids.cuda(), *draw).cpu(), kept_indices(1234, ids, *draw))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_routing_on_cuda_is_deterministic_and_equal_to_the_plain_pair(dtype: torch.dtype) -> None:
    kept_BK = kept_indices(1, torch.arange(4).cuda(), 2, 512, 128)

    def run(fused: bool) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.randn(512, 4, 64, generator=torch.Generator().manual_seed(0)).to("cuda", dtype).requires_grad_()
        if fused:
            rows = flat_rows(kept_BK)
            part, rest = split_tokens(hidden, rows)
            out = merge_tokens(rest, part * 3, rows)
        else:
            out = scatter_tokens(hidden, gather_tokens(hidden, kept_BK) * 3, kept_BK)
        out.float().pow(2).sum().backward()
        return out.detach(), hidden.grad

    fused, again, plain = run(True), run(True), run(False)
    assert all(torch.equal(a, b) for a, b in zip(fused, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(fused, plain, strict=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
    from megatron.ltd.tokenizers.config import TokenizerFiles

    folder = tmp_path_factory.mktemp("data")
    text = " ".join(f"number {n} follows {n - 1}." for n in range(20000))
    documents = (text[i : i + 4000] for i in range(0, len(text), 4000))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    preprocess(
        PreprocessConfig(input=(str(folder / "text.jsonl"),), output_prefix=str(folder / "d"), append_eod=True),
        TokenizerFiles(tokenizer_type="ByteTokenizer"),
    )
    return folder / "d_text_document"


def _flags(data: Path, folder: Path) -> list[str]:
    return (
        f"--data-path {data} --split 95,5,0 --tokenizer-type ByteTokenizer --num-layers 4 --hidden-size 128 "
        "--num-attention-heads 4 --seq-length 256 --micro-batch-size 4 --global-batch-size 8 --train-iters 20 "
        "--lr 1e-3 --attention-dropout 0 --hidden-dropout 0 --eval-interval 20 --eval-iters 2 --random-ltd "
        "--ltd-min-kept-tokens 64 --ltd-growth-steps 15 --transformer-impl local --position-embedding-type rope "
        f"--log-dir {folder}"
    ).split()


def _train_records(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "train"]


def _train(data: Path, folder: Path, *flags: str) -> list[dict[str, Any]]:
    launch(parse_run_config([*_flags(data, folder), *flags]))
    return _train_records(folder)


def test_a_cuda_run_repeats_itself_and_follows_the_cpu_run(data: Path, tmp_path: Path) -> None:
    """Runs with one NCCL rank from the same checkpoint are bit-equal, and equal the CPU run up to fp32 rounding."""
    start = tmp_path / "start"
    _train(data, tmp_path / "first", "--device", "cuda", "--save", str(start), "--exit-interval", "1")
    cuda = _train(data, tmp_path / "cuda", "--device", "cuda", "--load", str(start))
    again = _train(data, tmp_path / "again", "--device", "cuda", "--load", str(start))
    script = Path(__file__).parents[2] / "pretrain_gpt_ltd.py"
    flags = [*_flags(data, tmp_path / "cpu"), "--device", "cpu", "--load", str(start)]
    subprocess.run([sys.executable, str(script), *flags], check=True)
    cpu = _train_records(tmp_path / "cpu")
    assert [record["loss"] for record in again] == [record["loss"] for record in cuda]
    assert [record["loss"] for record in cpu] == pytest.approx([record["loss"] for record in cuda], rel=1e-3)
    assert cuda[-1]["loss"] < 0.8 * cuda[0]["loss"]


def test_bfloat16_on_cuda_ends_where_fp32_does(data: Path, tmp_path: Path) -> None:
    fp32 = _train(data, tmp_path / "fp32", "--device", "cuda")
    bf16 = _train(data, tmp_path / "bf16", "--device", "cuda", "--bf16")
    assert bf16[-1]["loss"] == pytest.approx(fp32[-1]["loss"], rel=5e-2)


def test_the_plan_predicts_the_peak_memory_of_a_cuda_run(data: Path, tmp_path: Path) -> None:
    """Compare with the peak of torch's allocator, which excludes CUDA's own memory.

    The model is wide enough for activations to dominate.
    """
    from megatron.ltd.forecast.forecast import plan_ahead

    shape = "--device cuda --bf16 --hidden-size 512 --num-attention-heads 8 --eval-iters 0 --micro-batch-size 8"
    config = parse_run_config([*_flags(data, tmp_path), *shape.split()])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    launch(config)
    measured = torch.cuda.max_memory_allocated() - before
    assert plan_ahead(config).fullest.total == pytest.approx(measured, rel=0.15)


def test_cached_greedy_decoding_on_cuda_equals_full_forward_passes(data: Path, tmp_path: Path) -> None:
    from megatron.ltd.evaluation.decoding import generate
    from megatron.ltd.evaluation.load import load_model
    from megatron.ltd.evaluation.sampler import Sampler
    from megatron.ltd.evaluation.scoring import BatchSize, Text, score
    from megatron.ltd.parallel.config import ParallelConfig
    from megatron.ltd.parallel.mesh import initialize
    from megatron.ltd.tokenizers.config import TokenizerFiles

    _train(data, tmp_path / "run", "--device", "cuda", "--save", str(tmp_path / "run"))
    parallel = ParallelConfig(device="cuda")
    with initialize(parallel) as mesh:
        loaded = load_model(tmp_path / "run", TokenizerFiles(), parallel, mesh)
        model, prompts = (
            loaded.causal_lm,
            [loaded.tokenizer.encode(text) for text in ("number 7", "n", "number 12 fol")],
        )
        assert model.can_cache
        greedy = [Sampler.build(0, 0.0)] * len(prompts)
        cached = generate(model, prompts, greedy, max_new_tokens=[20] * 3, eod=loaded.tokenizer.eod)
        for prompt, new in zip(prompts, cached, strict=True):
            with model.evaluating():
                hidden_SBH = model.hidden_states(torch.tensor([prompt + new], device="cuda"))
                likeliest = model.logits(hidden_SBH[:, 0]).argmax(dim=-1).tolist()
            assert new == likeliest[len(prompt) - 1 : len(prompt) - 1 + len(new)]
        (found,) = score(model, [Text(tuple(prompts[0] + cached[0]), len(cached[0]))], BatchSize(1024))
        assert found.is_greedy and found.log_likelihood < 0.0
