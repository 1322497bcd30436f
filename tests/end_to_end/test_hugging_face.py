"""Finetuning from a Hugging Face folder as a user runs it: what is loaded, reported and refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.tokenizers.byte import ByteTokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles
from megatron.ltd.tokenizers.gpt2_bpe import byte_alphabet
from megatron.ltd.words import name_of
from tests.end_to_end.runs import TINY, metrics, refusal, run_status, snapshot
from tests.reference.gpt2_folder import gpt2_config, random_plain, write_gpt2
from tests.reference.plain_gpt import PlainConfig
from tests.support import assert_differs
from tests.support_errors import assert_names

SHAPE = PlainConfig(
    num_layers=3, hidden_size=16, heads=2, groups=2, head_size=8, mlp_size=48, vocab_size=257, learned_positions=16,
    tanh_gelu=True,
)  # fmt: skip
TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, " * 3


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A folder in Hugging Face's format with a byte-level GPT-2."""
    write_gpt2(tmp_path / "gpt2", SHAPE)
    return tmp_path / "gpt2"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prefix of ``TEXT`` as a single document; with several, the predictions would depend on their order."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(TEXT)
    config = PreprocessConfig(input=(str(folder / "text.txt"),), output_prefix=str(folder / "text"))
    return next(iter(preprocess(config, TokenizerFiles("ByteTokenizer")).cards))


def flags(data: str, load: Path, *more: object) -> list[str]:
    """The flags of the tiny run, finetuning ``load`` on ``data``; the model's shape comes from the folder."""
    typed = list(TINY)
    for name in ("--num-layers", "--hidden-size", "--num-attention-heads", "--seq-length"):
        position = typed.index(name)
        del typed[position : position + 2]
    typed += ["--train-data-path", data, "--valid-data-path", data, "--make-vocab-size-divisible-by", "1"]
    return [*typed, "--use-checkpoint-args", "--finetune", "--load", str(load), *map(str, more)]


def whole_loss() -> float:
    """The plain GPT's mean loss per token of ``TEXT``: every token but the first counts once, in windows of 16."""
    plain, ids = random_plain(SHAPE), torch.tensor(ByteTokenizer().encode(TEXT))
    windows = [ids[start : start + 17] for start in range(0, len(ids) - 1, 16)]
    with torch.no_grad():
        losses = [F.cross_entropy(plain(window[:-1]), window[1:], reduction="none") for window in windows]
    assert len(losses[-1]) < 16 and sum(map(len, losses)) == len(ids) - 1
    return torch.cat(losses).mean().item()


def test_finetuning_starts_from_the_folder_and_continues_from_its_own_checkpoint(
    text: str, gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "out", snapshot(gpt2)
    more = ["--full-validation", "--eval-at-start", "--save", out]
    assert run_status(flags(text, gpt2, *more, "--exit-interval", 3)) == (0, "")
    said = capsys.readouterr().out
    assert f"gpt2 in {gpt2}" in said
    assert "3 layers, hidden 16, 2 heads, 16 tokens, vocabulary 257" in said and "random-LTD" in said
    start = metrics(out)["validation", 0]
    assert start["loss"] == pytest.approx(whole_loss(), rel=1e-6)
    assert start["perplexity"] == pytest.approx(math.exp(whole_loss()), rel=1e-5)

    going_on = [flag for flag in flags(text, out, *more) if flag != "--finetune"]
    assert run_status(going_on) == (0, "")
    assert f"loading {out / 'iter_0000003'}" in capsys.readouterr().out
    lines = metrics(out)
    assert sorted(iteration for kind, iteration in lines if kind == "validation") == [0, 3, 6]
    kept = [lines["train", iteration]["kept_tokens"] for iteration in range(1, 7)]
    assert kept == sorted(kept) and (kept[0], kept[-1]) == (4, 16)
    assert lines["validation", 6]["loss"] < start["loss"]
    assert snapshot(gpt2) == before


@pytest.mark.parametrize("more", [(), ("--use-distributed-optimizer",)], ids=["", "distributed optimizer"])
def test_main_weights_of_half_precision_come_from_the_folder(
    text: str, gpt2: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Train with a negligible learning rate. Had the optimizer kept the initial weights, a step would restore them."""
    step = ["--lr", "1e-9", "--train-iters", 1, "--ltd-growth-steps", 1, "--lr-warmup-iters", 0, "--bf16"]
    evaluation = ["--eval-at-start", "--full-validation", "--log-dir", tmp_path]
    assert run_status(flags(text, gpt2, *step, *evaluation, *more)) == (0, "")
    found = metrics(tmp_path)
    assert found["validation", 1]["loss"] == found["validation", 0]["loss"]
    assert found["validation", 0]["loss"] == pytest.approx(whole_loss(), rel=1e-3)


def test_evaluating_at_the_start_changes_no_step(text: str, gpt2: Path, tmp_path: Path) -> None:
    for name, more in {"with": ["--eval-at-start"], "without": []}.items():
        assert run_status(flags(text, gpt2, "--log-dir", tmp_path / name, *more)) == (0, "")
    evaluated, plain = metrics(tmp_path / "with"), metrics(tmp_path / "without")
    assert evaluated.pop(("validation", 0)) and evaluated == plain


def write_bpe(folder: Path) -> None:
    """Write GPT-2 tokenizer files without merges: the bytes, and an end-of-text token with id 256."""
    vocabulary = {char: token for token, char in enumerate([*byte_alphabet(), "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def test_the_folders_tokenizer_is_taken_and_another_refused(gpt2: Path, tmp_path: Path) -> None:
    write_bpe(gpt2)
    files = TokenizerFiles("GPT2BPETokenizer", str(gpt2 / "vocab.json"), str(gpt2 / "merges.txt"))
    (tmp_path / "d.txt").write_text(TEXT)
    preprocess(PreprocessConfig(input=(str(tmp_path / "d.txt"),), output_prefix=str(tmp_path / "d")), files)
    typed = flags(str(tmp_path / "d_text_document"), gpt2, "--save", tmp_path / "out")
    position = typed.index("--tokenizer-type")
    del typed[position : position + 2]
    assert run_status([*typed, "--exit-interval", "2"]) == (0, "")
    (gpt2 / "merges.txt").write_text("#version: 0.3\n")  # the fingerprint changes though the encoding does not
    (gpt2 / "other.txt").write_text("#version: 0.2\n")
    line = refusal([*typed, "--save", str(tmp_path / "new"), "--merge-file", str(gpt2 / "other.txt")])
    assert name_of("tokenizer_fingerprint") in line and f"checkpoint {gpt2}" in line
    assert not list((tmp_path / "new").iterdir())


CONFIG: dict[str, tuple[dict[str, object], list[str]]] = {
    "architecture": ({"model_type": "opt"}, ["opt", "gpt2", "llama"]),
    "no architecture": ({"model_type": None}, ["None", "config.json"]),
    "size missing": ({"n_layer": None}, ["config.json", "n_layer is null"]),
    "size no number": ({"n_embd": "16"}, ["config.json", 'n_embd is "16"']),
    "heads": ({"n_head": 3}, ["config.json", "--hidden-size 16"]),
    "activation": ({"activation_function": "relu"}, ['activation_function is "relu"', "gelu", "gelu_new"]),
    "attention scale": ({"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx is true"]),
    "cross-attention": ({"add_cross_attention": True}, ["add_cross_attention is true"]),
    "epsilon": ({"layer_norm_epsilon": "small"}, ['layer_norm_epsilon is "small"']),
    "width": ({"n_inner": 64}, ["h.0.mlp.c_fc.weight", "model.safetensors", "[16, 48]", "[16, 64]"]),
    "positions": ({"n_positions": 32}, ["wpe.weight", "[16, 16]", "config.json", "[32, 16]"]),
    "vocabulary": ({"vocab_size": 300}, ["wte.weight", "[257, 16]", "config.json", "[300, 16]"]),
    "more layers": ({"n_layer": 4}, ["h.3.ln_1.weight", "config.json"]),
    "layers beyond the file": ({"n_layer": 60_000}, ["config.json"]),
    "layers beyond memory": ({"n_layer": 10**9}, ["--num-layers 1000000000", "4,096"]),
    "layers beyond numbers": ({"n_layer": 10**300}, ["config.json", "n_layer", "2,147,483,648"]),
    "width beyond memory": ({"n_embd": 1 << 30, "n_head": 1}, ["config.json"]),
    "vocabulary beyond memory": ({"vocab_size": 1 << 30}, ["config.json"]),
    "positions beyond memory": ({"n_positions": 1 << 30}, ["config.json"]),
    "epsilon of digits": ({"layer_norm_epsilon": 10**400}, ["layer_norm_epsilon"]),
    "untied": ({"tie_word_embeddings": False}, ["lm_head.weight"]),
}


@pytest.mark.parametrize(("entries", "names"), CONFIG.values(), ids=CONFIG.keys())
def test_a_config_that_does_not_fit_the_model(
    entries: dict[str, object], names: list[str], data: str, gpt2: Path, tmp_path: Path
) -> None:
    (gpt2 / "config.json").write_text(json.dumps(gpt2_config(SHAPE, **entries)))
    _assert_refused(flags(data, gpt2), names, gpt2, tmp_path)


FLAGS: dict[str, tuple[list[object], str, str, str]] = {
    "layers": (["--num-layers", 4], "num_layers", "4", "3"),
    "hidden": (["--hidden-size", 32], "hidden_size", "32", "16"),
    "MLP": (["--ffn-hidden-size", 64], "ffn_hidden_size", "64", "48"),
    "heads": (["--num-attention-heads", 4], "num_attention_heads", "4", "2"),
    "positions": (["--max-position-embeddings", 32], "max_position_embeddings", "32", "16"),
    "rope": (["--position-embedding-type", "rope"], "position_embedding_type", "rope", "learned_absolute"),
    "norm": (["--normalization", "RMSNorm"], "normalization", "RMSNorm", "LayerNorm"),
    "epsilon": (["--norm-epsilon", 1e-6], "norm_epsilon", "1e-06", "1e-05"),
    "biases": (["--disable-bias-linear"], "add_bias_linear", "given", "not given"),
    "untied": (["--untie-embeddings-and-output-weights"], "tied_embeddings", "given", "not given"),
    "vocabulary": (["--vocab-size", 300], "padded_vocab_size", "300", "257"),
}


@pytest.mark.parametrize(("typed", "setting", "here", "there"), FLAGS.values(), ids=FLAGS.keys())
def test_flags_of_another_model(
    typed: list[object], setting: str, here: str, there: str, data: str, gpt2: Path, tmp_path: Path
) -> None:
    line = _assert_refused(flags(data, gpt2, *typed), ["--use-checkpoint-args"], gpt2, tmp_path)
    assert_differs(line, setting, here, there)


def test_the_kind_of_gelu_is_checked(data: str, gpt2: Path, tmp_path: Path) -> None:
    typed = [flag for flag in flags(data, gpt2) if flag != "--use-checkpoint-args"]
    typed += "--num-layers 3 --hidden-size 16 --ffn-hidden-size 48 --num-attention-heads 2 --seq-length 16".split()
    line = _assert_refused(typed, [], gpt2, tmp_path)
    assert_differs(line, "openai_gelu", "not given", "given")
    assert run_status([*typed, "--openai-gelu", "--log-dir", str(tmp_path / "log"), "--exit-interval", "1"]) == (0, "")


def _edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def _as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _in_two_files_with_one_missing(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    weight_map = {name: f"model-{1 + number % 2:05d}-of-00002.safetensors" for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def _index(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(text)
        (folder / "model.safetensors").unlink()

    return write


FOLDERS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), ["config.json", "No such file"]),
    "config no JSON": (lambda folder: (folder / "config.json").write_text("{"), ["config.json", "JSON"]),
    "config no object": (lambda folder: (folder / "config.json").write_text("[]"), ["config.json", "JSON"]),
    "config deep": (lambda folder: (folder / "config.json").write_text("[" * 100_000), ["config.json", "JSON"]),
    "config of digits": (
        lambda folder: (folder / "config.json").write_text('{"n_layer": ' + "1" * 10_000 + "}"),
        ["config.json", "JSON"],
    ),
    "index deep": (_index("[" * 100_000), ["model.safetensors.index.json"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["model.safetensors"]),
    "pickle": (_as_pickle, ["pytorch_model.bin", "safetensors", "save_pretrained"]),
    "a file missing": (_in_two_files_with_one_missing, ["model-00002-of-00002.safetensors"]),
    "index no JSON": (_index("{"), ["model.safetensors.index.json"]),
    "index elsewhere": (_index('{"weight_map": {"wte.weight": "../../x"}}'), ["model.safetensors.index.json"]),
    "not safetensors": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"PK\x03\x04" * 100),
        ["model.safetensors"],
    ),
    "cut short": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8]),
        ["model.safetensors"],
    ),
    "tensor missing": (
        lambda folder: _edit_tensors(folder, **{"transformer.h.1.attn.c_attn.bias": None}),
        ["h.1.attn.c_attn.bias"],
    ),
    "tensor of integers": (
        lambda folder: _edit_tensors(folder, **{"transformer.ln_f.weight": torch.ones(16, dtype=torch.int8)}),
        ["ln_f.weight", "I8"],
    ),
    "tensor without a place": (
        lambda folder: _edit_tensors(folder, **{"v_head.weight": torch.ones(1, 16)}),
        ["v_head.weight", "config.json"],
    ),
    "fewer layers": (
        lambda folder: write_gpt2(folder, dataclasses.replace(SHAPE, num_layers=4), n_layer=3),
        ["h.3", "config.json"],
    ),
    "a name twice": (
        lambda folder: _edit_tensors(folder, **{"ln_f.weight": torch.ones(16)}),
        ["transformer.ln_f.weight", "ln_f.weight"],
    ),
}


@pytest.mark.parametrize(("damage", "names"), FOLDERS.values(), ids=FOLDERS.keys())
def test_an_incomplete_or_damaged_folder(
    damage: Callable[[Path], object], names: list[str], data: str, gpt2: Path, tmp_path: Path
) -> None:
    damage(gpt2)
    _assert_refused(flags(data, gpt2), names, gpt2, tmp_path)


def test_a_run_cannot_resume_from_or_save_to_the_folder(data: str, gpt2: Path, tmp_path: Path) -> None:
    going_on = [flag for flag in flags(data, gpt2) if flag != "--finetune"]
    _assert_refused(going_on, ["--finetune"], gpt2, tmp_path)
    before = snapshot(gpt2)
    line = refusal(flags(data, gpt2, "--save", gpt2))
    assert_names(line, f"--save {gpt2}", "--load")
    assert snapshot(gpt2) == before


def _assert_refused(typed: list[str], names: list[str], folder: Path, tmp_path: Path) -> str:
    """Check that the run fails with one line that names the folder, and writes nothing; return the line."""
    before = snapshot(tmp_path)
    line = refusal([*typed, "--save", str(tmp_path / "out")])
    assert_names(line, folder, *names)
    assert snapshot(tmp_path) == before
    return line
