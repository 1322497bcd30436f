"""The description of a model in a Hugging Face folder, read without its tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.hugging_face.config_file import is_hugging_face
from megatron.ltd.hugging_face.model import described_flags
from megatron.ltd.workloads.base import Workload
from tests.support_errors import refused

HUB_GPT2_MEDIUM = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24, "n_positions": 1024,
    "resid_pdrop": 0.1, "vocab_size": 50257,
}  # fmt: skip
"""The published file, in which entries that equal the library's defaults are missing."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(HUB_GPT2_MEDIUM))
    return tmp_path


def test_flags_from_the_config_of_gpt2_medium(folder: Path) -> None:
    config = parse_run_config(
        ["--load", str(folder), "--finetune", "--use-checkpoint-args", "--lr", "1", "--train-iters", "1"]
    )
    model = config.model
    assert (model.num_layers, model.hidden_size, model.num_attention_heads, model.mlp_size) == (24, 1024, 16, 4096)
    assert (model.seq_length, model.learned_positions, model.norm_epsilon) == (1024, 1024, 1e-5)
    assert model.openai_gelu and model.tied_embeddings and model.add_bias_linear
    assert (model.attention_dropout, model.hidden_dropout) == (0.1, 0.1)
    assert config.tokenizer.tokenizer_type is None


def test_typed_flags_override_the_folder(folder: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (folder / name).touch()
    tokenizer = described_flags(folder)["tokenizer"]
    assert tokenizer == {
        "tokenizer_type": "GPT2BPETokenizer", "vocab_file": str(folder / "vocab.json"),
        "merge_file": str(folder / "merges.txt"),
    }  # fmt: skip
    typed = "--finetune --use-checkpoint-args --lr 1 --train-iters 1 --seq-length 512 --vocab-file mine.json".split()
    config = parse_run_config(["--load", str(folder), *typed])
    assert (config.model.seq_length, config.model.learned_positions) == (512, 1024)
    assert (config.tokenizer.vocab_file, config.tokenizer.merge_file) == ("mine.json", str(folder / "merges.txt"))


def test_a_run_of_ours_is_not_a_hugging_face_folder(folder: Path) -> None:
    """A folder with checkpoints of a run is the run's, even if it has a config.json too."""
    assert is_hugging_face(folder)
    (folder / "iter_0000100").mkdir()
    assert not is_hugging_face(folder) and not is_hugging_face(folder / "iter_0000100")


def test_workloads_that_cannot_start_from_such_a_folder_refuse(folder: Path) -> None:
    class Other(Workload):
        pass

    with refused(f"--load {folder}"):
        Other().open_imported(folder)


def test_no_torch_is_needed(folder: Path, repository: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from megatron.ltd.hugging_face.model import described_flags\n"
        f"described_flags(Path({str(folder)!r})); print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
