"""Arguments with which lm-eval's own command opens one of our models."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron.ltd.evaluation.lm_eval.harness_args import HarnessArgs
from megatron.ltd.evaluation.scoring import BatchSize
from tests.reference.gpt2_folder import write_gpt2
from tests.reference.plain_gpt import PlainConfig
from tests.support_errors import refused


def test_model_args_and_the_arguments_of_lm_eval() -> None:
    args = HarnessArgs.read(
        {"pretrained": "runs/dense", "tensor_model_parallel_size": 2, "batch_tokens": 99},
        {"batch_size": 8, "max_batch_size": None, "device": "cuda:0"},
    )
    assert (args.pretrained, args.parallel.tensor_model_parallel_size, args.parallel.device) == (
        "runs/dense",
        2,
        "auto",
    )
    assert args.batch == BatchSize(99, 8)
    assert HarnessArgs.read({"pretrained": "x", "device": "cpu"}, {"device": "cuda:1"}).device == "cpu"
    assert HarnessArgs.read({"pretrained": "x"}, {"device": "cuda:1", "batch_size": "auto:4"}).device == "cuda"
    assert HarnessArgs(pretrained="x").batch == BatchSize(HarnessArgs.batch_tokens, None)


@pytest.mark.parametrize(
    ("model_args", "asked", "names"),
    [
        ({}, {}, ["--load"]),
        ({"pretrained": "x", "tensor_parallel": 2}, {}, ["tensor_parallel=2", "tensor_model_parallel_size"]),
        ({"pretrained": "x", "peft": "y"}, {}, ["peft=y", "tokenizer_type"]),
        ({"pretrained": "x", "batch_tokens": "many"}, {}, ["batch_tokens=many"]),
        ({"pretrained": "x", "ckpt_step": "last"}, {}, ["ckpt_step=last", "integer"]),
        ({"pretrained": "x", "ckpt_step": -1}, {}, ["--ckpt-step", -1]),
        ({"pretrained": "x", "batch_tokens": 0}, {}, ["--batch-tokens", 0]),
        ({"pretrained": "x"}, {"batch_size": 0}, ["--batch_size", 0]),
        ({"pretrained": "x"}, {"device": "mps"}, ["--device", "mps", "cuda"]),
    ],
)
def test_bad_arguments_are_refused(model_args: dict, asked: dict, names: list) -> None:
    with refused(*names):
        HarnessArgs.read(model_args, asked)


def test_lm_eval_opens_a_model_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``lm_eval --model megatron-ltd --model_args pretrained=...`` does this; process groups are destroyed at exit."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.registry import get_model
    from torch import distributed as dist

    from megatron.ltd.evaluation.lm_eval.harness import HarnessModel

    write_gpt2(tmp_path / "gpt2", PlainConfig(vocab_size=257, learned_positions=16))
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    arguments = f"pretrained={tmp_path / 'gpt2'},tokenizer_type=ByteTokenizer"
    model = get_model("megatron-ltd").create_from_arg_string(arguments, {"device": "cpu", "batch_size": 4})
    try:
        assert isinstance(model, HarnessModel) and model.max_length == 16 and model.eot_token_id == 256
        assert model.get_model_info()["checkpoint"] == str(tmp_path / "gpt2")
        assert dist.is_initialized()
    finally:
        for leave in at_exit:
            leave()
    assert not dist.is_initialized()
