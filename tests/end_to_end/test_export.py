"""Export to and import from Hugging Face's format as users run them: what is refused, and finetuning an import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.ltd.checkpoint import files as checkpoint_files
from tests.end_to_end.runs import metrics, refusal, reseal, run_status, snapshot, tiny_flags
from tests.end_to_end.tools import tool_refusal, tool_status
from tests.reference.gpt2_folder import write_gpt2
from tests.reference.llama_folder import LLAMA, llama_config, write_llama
from tests.reference.plain_gpt import PlainConfig
from tests.support import assert_differs
from tests.support_errors import assert_names, assert_refused

BYTES = ("--tokenizer-type", "ByteTokenizer")
SHAPE = PlainConfig(
    num_layers=3, hidden_size=16, heads=2, groups=2, head_size=8, mlp_size=48, vocab_size=257, learned_positions=16
)
LLAMA_SHAPE = PlainConfig(
    num_layers=3, hidden_size=16, heads=4, groups=2, head_size=4, mlp_size=24, vocab_size=257, rms_norm=True,
    swiglu=True, bias=False,
)  # fmt: skip


def edit_run(checkpoints: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the run record of the newest checkpoint, as if another run had written it."""
    newest = checkpoint_files.checkpoint_path(checkpoints, checkpoint_files.candidates(checkpoints)[0])
    record = checkpoint_files.read_run(newest)
    change(record)
    checkpoint_files.write_run(newest, record)
    reseal(newest)


def with_model(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_run(folder, lambda record: record["config"]["model"].update(changes))


def with_tokenizer(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_run(folder, lambda record: record["config"]["tokenizer"].update(changes))


def as_bert(folder: Path) -> None:
    edit_run(folder, lambda record: record["identity"].update({"model": "bert"}))


ROPE = {"position_embedding_type": "rope", "normalization": "RMSNorm", "swiglu": True, "ffn_hidden_size": 64}
RUNS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "LayerNorm with RoPE": (with_model(**ROPE | {"normalization": "LayerNorm"}), ["--normalization"]),
    "RMSNorm with GELU": (with_model(**ROPE | {"swiglu": False}), ["--swiglu"]),
    "no positions": (with_model(position_embedding_type="none"), ["--position-embedding-type"]),
    "rotary percent": (with_model(**ROPE, rotary_percent=0.5), ["--rotary-percent 1.0"]),
    "GPT-2's heads": (with_model(kv_channels=4), ["GPT-2", "--kv-channels"]),
    "GPT-2's biases": (with_model(add_bias_linear=False), ["GPT-2", "--disable-bias-linear"]),
    "GPT-2's groups": (with_model(group_query_attention=True), ["GPT-2", "--group-query-attention"]),
    "BERT": (as_bert, ["BERT"]),
    "a later version's": (with_model(new_flag=1), ["new_flag"]),
    "tokenizer moved": (
        with_tokenizer(tokenizer_type="GPT2BPETokenizer", vocab_file="gone.json", merge_file="gone.bpe"),
        ["--vocab-file gone.json"],
    ),
    "no tokenizer": (with_tokenizer(tokenizer_type=None), ["--tokenizer-type"]),
}


@pytest.mark.parametrize(("change", "names"), RUNS.values(), ids=RUNS.keys())
def test_a_run_that_cannot_be_exported(
    trained: Path, tmp_path: Path, change: Callable[[Path], None], names: list[str]
) -> None:
    change(trained)
    before = snapshot(tmp_path)
    line = tool_refusal("export_hf.py", "--load", trained, "--output", tmp_path / "out", "--no-tokenizer")
    assert_names(line, *names)
    assert snapshot(tmp_path) == before and not (tmp_path / "out").exists()


def test_another_width_than_the_weights(trained: Path, tmp_path: Path) -> None:
    with_model(ffn_hidden_size=48)(trained)
    line = tool_refusal("export_hf.py", "--load", trained, "--output", tmp_path / "out", "--no-tokenizer")
    assert_differs(line, "ffn_hidden_size", "48", "64")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_a_class(straight: Path, tmp_path: Path) -> None:
    line = tool_refusal("export_hf.py", "--load", straight, "--output", tmp_path / "out")
    assert_names(line, "--tokenizer-type ByteTokenizer", "--no-tokenizer")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_without_a_merge_file(straight: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0}))
    line = tool_refusal(
        "export_hf.py", "--load", straight, "--output", tmp_path / "out", "--tokenizer-type", "GPT2BPETokenizer",
        "--vocab-file", tmp_path / "vocab.json",
    )  # fmt: skip
    assert_names(line, "--merge-file")


def _file(path: Path) -> None:
    path.write_text("mine")


def _folder(path: Path) -> None:
    path.mkdir()


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [_file, _folder, _dangling])
def test_a_target_that_exists(straight: Path, tmp_path: Path, make: Callable[[Path], None]) -> None:
    target = tmp_path / "out"
    make(target)
    before = os.lstat(target)
    line = tool_refusal("export_hf.py", "--load", straight, "--output", target, "--no-tokenizer")
    assert_names(line, f"--output {target}")
    assert os.lstat(target) == before and list(tmp_path.iterdir()) == [target]


FLAGS: dict[str, tuple[list[str], str]] = {
    "no --load": (["--output", "x"], "--load"),
    "no --output": (["--load", "x"], "--output"),
    "size": (["--load", "x", "--output", "y", "--max-shard-size", "5TB"], "--max-shard-size 5TB"),
    "no size": (["--load", "x", "--output", "y", "--max-shard-size", "0GB"], "--max-shard-size 0GB"),
    "type": (["--load", "x", "--output", "y", "--dtype", "int8"], "--dtype"),
    "no checkpoint": (["--load", "x", "--output", "y"], "--load x"),
}


@pytest.mark.parametrize(("flags", "name"), FLAGS.values(), ids=FLAGS.keys())
def test_flags_of_an_export(flags: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_names(tool_refusal("export_hf.py", *flags), name)
    assert not list(tmp_path.iterdir())


def test_a_target_that_cannot_be_written(straight: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "out"
    line = tool_refusal("export_hf.py", "--load", straight, "--output", target, "--no-tokenizer")
    assert f"--output {target}" in line and "(Not a directory)" in line


def test_a_disk_that_fills_up(straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    line = tool_refusal("export_hf.py", "--load", straight, "--output", tmp_path / "out", "--no-tokenizer")
    assert "(No space left on device)" in line and not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_skipped(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trained / "iter_0000006" / "common.pt").unlink()
    status = tool_status("export_hf.py", "--load", trained, "--output", tmp_path / "out", "--no-tokenizer")
    said = capsys.readouterr().out
    assert status == (0, "") and str(trained / "iter_0000004") in said and str(trained / "iter_0000006") in said
    assert "| steps | 4 |" in (tmp_path / "out" / "README.md").read_text()


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder in Hugging Face's format with a byte-level Llama."""
    write_llama(tmp_path / "llama", LLAMA_SHAPE)
    return tmp_path / "llama"


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _config(**entries: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(llama_config(LLAMA_SHAPE, **entries)))

    return write


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


FOLDERS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "another kind": (_config(model_type="gemma"), ["gemma", "gpt2", "llama"]),
    "scaled positions": (_config(rope_scaling={"rope_type": "yarn", "factor": 8.0}), ["rope_scaling", "yarn"]),
    "scaled positions without a factor": (_config(rope_scaling={"rope_type": "llama3"}), ["rope_scaling", "factor"]),
    "quantized": (_config(quantization_config={"quant_method": "awq"}), ["(awq)"]),
    "biases": (_config(attention_bias=True), ["mlp_bias is false", "attention_bias"]),
    "no weights": (_no_weights, ["model.safetensors"]),
    "nothing": (_empty, ["--load"]),
    "a smaller vocabulary": (
        lambda folder: write_llama(folder, LLAMA).clear(), ["257", "32"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("failing", ["write_manifest", "_write_durably"])
def test_an_import_that_fails_is_not_in_the_way(
    failing: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full before the checkpoint is published, or only when its number is written."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    asked = ("--load", llama, "--save", tmp_path / "out", *BYTES)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, failing, full)
        assert "(No space left on device)" in tool_refusal("import_hf.py", *asked)
    assert tool_status("import_hf.py", *asked) == (0, "")


@pytest.mark.parametrize(("damage", "names"), FOLDERS.values(), ids=FOLDERS.keys())
def test_a_folder_that_cannot_be_imported(
    llama: Path, tmp_path: Path, damage: Callable[[Path], None], names: list[str]
) -> None:
    damage(llama)
    before = snapshot(tmp_path)
    line = tool_refusal("import_hf.py", "--load", llama, "--save", tmp_path / "out", *BYTES)
    assert_names(line, llama, *names)
    assert snapshot(tmp_path) == before and not (tmp_path / "out").exists()


def test_a_folder_without_a_tokenizer(llama: Path, tmp_path: Path) -> None:
    line = tool_refusal("import_hf.py", "--load", llama, "--save", tmp_path / "out")
    assert_names(line, f"--load {llama}", "vocab.json", "merges.txt", "tokenizer.model", "tokenizer.json")
    assert not (tmp_path / "out").exists()


def test_flags_of_an_import(llama: Path, straight: Path, tmp_path: Path) -> None:
    assert_names(tool_refusal("import_hf.py", "--save", tmp_path / "out"), "--load")
    assert_names(tool_refusal("import_hf.py", "--load", llama), "--save")
    line = tool_refusal("import_hf.py", "--load", llama, "--save", "x", "--make-vocab-size-divisible-by", 0)
    assert_names(line, "--make-vocab-size-divisible-by 0", 1)
    before = snapshot(straight)
    line = tool_refusal("import_hf.py", "--load", llama, "--save", straight, *BYTES)
    assert_names(line, f"--save {straight}")
    assert snapshot(straight) == before
    assert f"--load {straight}" in tool_refusal("import_hf.py", "--load", straight, "--save", tmp_path / "out")


ARCHITECTURES: dict[str, Callable[[Path], object]] = {
    "GPT-2": lambda folder: write_gpt2(folder, SHAPE, activation_function="gelu"),
    "Llama": lambda folder: write_llama(folder, LLAMA_SHAPE),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_finetuning_an_import_equals_finetuning_its_folder(data: str, tmp_path: Path, architecture: str) -> None:
    """Finetuning from the imported checkpoint and from the folder are bit-equal. Without --finetune the import is
    refused.
    """
    ARCHITECTURES[architecture](tmp_path / "theirs")
    status = tool_status("import_hf.py", "--load", tmp_path / "theirs", "--save", tmp_path / "imported", *BYTES)
    assert status == (0, "")
    typed = tiny_flags(data, "--use-checkpoint-args", "--hidden-dropout", 0, "--attention-dropout", 0)
    for name in ("--num-layers", "--hidden-size", "--num-attention-heads", "--seq-length"):
        position = typed.index(name)
        del typed[position : position + 2]
    for name in ("theirs", "imported"):
        log = ["--log-dir", str(tmp_path / f"{name}-log"), "--min-lr", "1e-4"]
        assert run_status([*typed, "--finetune", "--load", str(tmp_path / name), *log]) == (0, "")
    assert metrics(tmp_path / "theirs-log") == metrics(tmp_path / "imported-log")
    line = refusal([*typed, "--load", str(tmp_path / "imported")])
    assert str(tmp_path / "imported") in line
    assert_names(line, "--finetune")


def test_a_folder_in_half_precision_is_imported_in_bf16(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(llama / "model.safetensors")
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, llama / "model.safetensors")
    assert tool_status("import_hf.py", "--load", llama, "--save", tmp_path / "out", *BYTES) == (0, "")
    record = json.loads((tmp_path / "out" / "iter_0000000" / "run.json").read_text())
    assert record["config"]["precision"]["bf16"] is True
    again = tmp_path / "again"
    status = tool_status("export_hf.py", "--load", tmp_path / "out", "--output", again, "--no-tokenizer")
    assert status == (0, "") and json.loads((again / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("command", [("export_hf.py", "--output"), ("import_hf.py", "--save")])
def test_an_existing_target_is_refused_before_torch_is_imported(
    command: tuple[str, str], repository: Path, tmp_path: Path
) -> None:
    tool, target = command
    (tmp_path / "kept").touch()
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", str(repository / "tools" / tool), "--load", "x", target, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(repository)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert_refused(ended.returncode, ended.stderr.splitlines()[-1], f"{target} {tmp_path}")
    assert not re.search(r"\| +torch$", ended.stderr, re.MULTILINE)
