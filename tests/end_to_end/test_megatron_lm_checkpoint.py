"""Starting from a checkpoint of Megatron-LM's ``pretrain_gpt.py`` as a user does: what is loaded, what is refused."""

from __future__ import annotations

import pickle
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import Tensor

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.parallel.mesh import initialize
from megatron.ltd.training.build import build_run
from megatron.ltd.workloads import BERT
from tests.end_to_end.runs import TINY, bert_flags, refusal, run_status, write_data
from tests.end_to_end.tools import tool_refusal, tool_status
from tests.support import world
from tests.support_errors import assert_names
from tests.support_megatron_lm import core_logits, core_model, megatron_lm_args, save_megatron_lm
from tests.support_pickles import Payload

GPT3: dict[str, Any] = {"bias_gelu_fusion": True}
LLAMA: dict[str, Any] = {
    "swiglu": True, "ffn_hidden_size": 40, "group_query_attention": True, "num_query_groups": 1, "hidden_size": 32,
    "num_attention_heads": 4, "normalization": "RMSNorm", "norm_epsilon": 1e-6, "add_bias_linear": False,
    "add_qkv_bias": False, "position_embedding_type": "rope", "rotary_base": 50000, "qk_layernorm": True,
    "untie_embeddings_and_output_weights": True, "padded_vocab_size": 512, "tensor_model_parallel_size": 2,
}  # fmt: skip
LLAMA_FLAGS = (
    "--swiglu --ffn-hidden-size 40 --group-query-attention --num-query-groups 1 --hidden-size 32 "
    "--num-attention-heads 4 --normalization RMSNorm --norm-epsilon 1e-6 --disable-bias-linear --qk-layernorm "
    "--position-embedding-type rope --rotary-base 50000 --untie-embeddings-and-output-weights "
    "--make-vocab-size-divisible-by 256"
).split()
MODELS = {"GPT-3": (GPT3, ["--openai-gelu"]), "Llama": (LLAMA, LLAMA_FLAGS)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


def saved(folder: Path, changes: Mapping[str, Any], **more: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Save a model of Megatron-Core; return its weights, and its logits for ``tokens``."""
    args = megatron_lm_args(**changes)
    with world():
        model = core_model(args)
        save_megatron_lm(folder, model, args, **more)
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        return weights, core_logits(model, tokens())


def tokens() -> Tensor:
    return torch.randint(0, 257, (2, 16), generator=torch.Generator().manual_seed(1))


def flags(data: str, load: Path, *more: object) -> list[str]:
    """The flags of the tiny run; with ``--use-checkpoint-args`` without those of the model's shape."""
    tiny = list(TINY)
    for name in ("--hidden-size", "--num-attention-heads") if "--use-checkpoint-args" in more else ():
        del tiny[tiny.index(name) : tiny.index(name) + 2]
    typed = [*tiny, "--train-data-path", data, "--valid-data-path", data, "--load", str(load), "--finetune"]
    return [*typed, *map(str, more)]


def assert_loads(typed: list[str], weights: Mapping[str, Tensor], logits: Tensor) -> None:
    """A run with these flags starts from the weights bit for bit, and gives the logits, which Megatron-Core computes
    with another kernel of attention.
    """
    config = parse_run_config(typed)
    with initialize(config.parallel) as mesh:
        run = build_run(config, mesh)
        (chunk,) = run.state.chunks
        loaded = dict(chunk.module.named_parameters())
        ours = core_logits(chunk.eval(), tokens())
        run.log.close()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    torch.testing.assert_close(ours, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_loaded_model_is_the_saved_one(
    name: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, model_flags = MODELS[name]
    theirs = tmp_path / "theirs"
    weights, logits = saved(theirs, changes)
    assert_loads(flags(data, theirs, *model_flags, "--log-dir", tmp_path / "log"), weights, logits)
    assert f"loading the weights of Megatron-LM's {theirs / 'iter_0000005'}" in capsys.readouterr().out


def test_the_imported_model_is_the_saved_one(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a checkpoint of this program, which evaluation and export read too."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    weights, logits = saved(theirs, LLAMA)
    assert_names(tool_refusal("import_hf.py", "--load", theirs, "--save", ours), "NullTokenizer", "--tokenizer-type")
    asked = ("--load", theirs, "--save", ours, "--tokenizer-type", "ByteTokenizer")
    assert tool_status("import_hf.py", *asked) == (0, "")
    said = capsys.readouterr().out
    assert said.startswith(f"{ours / 'iter_0000000'}: GPT of Megatron-LM") and "257 padded to 512" in said
    assert_loads(flags(data, ours, "--use-checkpoint-args", "--log-dir", tmp_path / "log"), weights, logits)


@pytest.fixture(scope="module")
def gpt3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Megatron-LM with a checkpoint; tests copy it and change the flags in it."""
    folder = tmp_path_factory.mktemp("gpt3")
    saved(folder, GPT3)
    return folder


def with_args(folder: Path, gpt3: Path, changes: Mapping[str, Any], args: Any = None) -> Path:
    """A copy of the checkpoint whose flags are changed, or replaced by ``args``."""
    copy = folder / "iter_0000005"
    shutil.copytree(gpt3 / copy.name, copy)
    args = megatron_lm_args(**GPT3, **changes) if args is None else args
    torch.save({"args": args, "checkpoint_version": 3.0, "iteration": 5}, copy / "common.pt")
    return folder


REFUSED: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "layers": ({}, ["--openai-gelu", "--num-layers", "4"], ["--num-layers 4", "3 in checkpoint"]),
    "activation": ({}, [], ["--openai-gelu"]),
    "swiglu": ({}, ["--swiglu", "--ffn-hidden-size", "64"], ["--swiglu"]),
    "query groups": ({}, ["--openai-gelu", "--group-query-attention"], ["--num-query-groups 1", "2"]),
    "positions": ({}, ["--openai-gelu", "--position-embedding-type", "rope"], ["--position-embedding-type rope"]),
    "tied": ({}, ["--openai-gelu", "--untie-embeddings-and-output-weights"], ["--untie-embeddings-and-output-weights"]),
    "padding": ({}, ["--openai-gelu", "--make-vocab-size-divisible-by", "512"],
                ["--make-vocab-size-divisible-by", "512", "384", "give 128"]),
    "epsilon": ({"norm_epsilon": 1e-6}, ["--openai-gelu"], ["--norm-epsilon", "1e-06"]),
    "experts": ({"num_experts": 8}, ["--openai-gelu"], ["--num-experts 8"]),
    "a window": ({"window_size": (4, 0)}, ["--openai-gelu"], ["--window-size"]),
    "multi-token prediction": ({"mtp_num_layers": 1}, ["--openai-gelu"], ["--mtp-num-layers 1"]),
    "yarn": ({"position_embedding_type": "yarn"}, ["--openai-gelu"], ["--position-embedding-type yarn"]),
    "impossible": ({"num_query_groups": "two", "group_query_attention": True}, ["--openai-gelu"], ["num_query_groups"]),
    "huge": ({"num_layers": 60_000, "hidden_size": 1 << 20}, ["--openai-gelu"], ["args", "10,066,749,030,400 weights"]),
    "no vocabulary": ({"padded_vocab_size": None}, ["--openai-gelu"], ["padded_vocab_size"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_another_model_is_refused_by_its_flag(case: str, data: str, gpt3: Path, tmp_path: Path) -> None:
    changes, model_flags, names = REFUSED[case]
    load = with_args(tmp_path, gpt3, changes) if changes else gpt3
    line = refusal(flags(data, load, *model_flags, "--log-dir", tmp_path / "log"))
    assert_names(line, *names)


def test_a_run_starts_from_it_saves_and_goes_on(
    data: str, gpt3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pickles that would execute code, in the flags and in parts that are not read, have no effect."""
    mark, out = tmp_path / "mark", tmp_path / "out"
    args = megatron_lm_args(**GPT3, hook=Payload(mark), hooks=[OrderedDict(a=Payload(mark)), {1: {2.5}}])
    load = with_args(tmp_path, gpt3, {}, args)
    steps = [
        "--use-checkpoint-args",
        "--save",
        out,
        "--train-iters",
        2,
        "--lr-warmup-iters",
        0,
        "--ltd-growth-steps",
        1,
    ]
    assert run_status(flags(data, load, *steps, "--ckpt-step", 5)) == (0, "")
    assert "its tokenizer was NullTokenizer" in capsys.readouterr().out and not mark.exists()
    going_on = [*TINY, "--train-data-path", data, "--valid-data-path", data, *map(str, steps), "--load", str(out)]
    assert run_status([*going_on, "--train-iters", "3", "--override-opt-param-scheduler"]) == (0, "")
    assert f"loading {out / 'iter_0000002'}" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["args", "no archive", "no args", "a folder"])
def test_a_damaged_or_malicious_file_is_one_line(what: str, data: str, gpt3: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    load = with_args(tmp_path, gpt3, {}, Payload(mark) if what == "args" else None)
    common = load / "iter_0000005" / "common.pt"
    if what == "no archive":
        common.write_bytes(pickle.dumps({"args": Payload(mark)}))
    elif what == "no args":
        torch.save({"iteration": 5}, common)
    elif what == "a folder":
        common.unlink()
        common.mkdir()
    line = refusal(flags(data, load, "--openai-gelu", "--log-dir", tmp_path / "log"))
    names = ["--load", load if what == "a folder" else "common.pt"]
    assert_names(line, *names)
    asked = ("--load", load, "--save", tmp_path / "ours", "--tokenizer-type", "ByteTokenizer")
    assert_names(tool_refusal("import_hf.py", *asked), *names)
    assert not mark.exists() and not (tmp_path / "ours").exists()


def test_a_changed_weight_is_refused(data: str, tmp_path: Path) -> None:
    """One bit of one weight, which torch would read; with it back in place both commands work."""
    theirs = tmp_path / "theirs"
    weights, _ = saved(theirs, GPT3)
    values = weights["decoder.final_layernorm.weight"].numpy().tobytes()
    (path,) = [path for path in theirs.glob("*/*.distcp") if values in path.read_bytes()]
    whole = path.read_bytes()
    path.write_bytes(whole.replace(values, bytes([values[0] ^ 1]) + values[1:]))
    asked = ("--load", theirs, "--save", tmp_path / "ours", "--tokenizer-type", "ByteTokenizer")
    typed = flags(data, theirs, "--openai-gelu", "--log-dir", tmp_path / "log")
    for line in (refusal(typed), tool_refusal("import_hf.py", *asked)):
        assert_names(line, theirs / "iter_0000005", "decoder.final_layernorm.weight", path.name, "restore it")
    assert not (tmp_path / "ours").exists()
    path.write_bytes(whole)
    assert run_status(typed) == (0, "") and tool_status("import_hf.py", *asked) == (0, "")


def test_weights_of_another_model_are_refused(data: str, tmp_path: Path) -> None:
    """Tensors that belong to no flag are refused, because the model would differ from the trained one."""
    saved(tmp_path / "theirs", GPT3, other={"gate": ShardedTensor.from_rank_offsets("decoder.gate", torch.ones(3))})
    theirs = tmp_path / "theirs"
    line = refusal(flags(data, theirs, "--openai-gelu", "--log-dir", tmp_path / "log"))
    assert_names(line, theirs / "iter_0000005", "decoder.gate")
    asked = ("--load", theirs, "--save", tmp_path / "ours", "--tokenizer-type", "ByteTokenizer")
    assert_names(tool_refusal("import_hf.py", *asked), theirs / "iter_0000005", "weights")


def test_only_a_gpt_starts_from_it_and_with_finetune(data: str, gpt3: Path, tmp_path: Path) -> None:
    plain = [word for word in flags(data, gpt3, "--openai-gelu") if word != "--finetune"]
    assert_names(refusal(plain), f"--load {gpt3}", "Megatron-LM", "--finetune")
    status, said = run_status([*bert_flags(tmp_path), "--load", str(gpt3), "--finetune"], workload=BERT)
    assert status == 2
    assert_names(said.rstrip("\n"), "BERT here", "GPT in checkpoint")
    line = tool_refusal("export_hf.py", "--load", gpt3 / "iter_0000005", "--output", tmp_path / "out")
    assert_names(line, f"--load {gpt3 / 'iter_0000005'}", "Megatron-LM", "tools/import_hf.py", "--finetune")


def test_the_old_format_is_named(data: str, tmp_path: Path) -> None:
    old = tmp_path / "iter_0000005" / "mp_rank_00" / "model_optim_rng.pt"
    old.parent.mkdir(parents=True)
    old.touch()
    for load in (tmp_path, old.parents[1]):
        for more in ([], ["--use-checkpoint-args"]):
            line = refusal(flags(data, load, *more, "--log-dir", tmp_path / "log"))
            assert_names(line, f"--load {load}", old.relative_to(load), "torch", "--ckpt-convert-format torch_dist")
