"""Which folders hold a checkpoint of Megatron-LM, and what its flags are here. No tensors."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.ltd.checkpoint.files import RUN
from megatron.ltd.checkpoint.from_megatron_lm import MegatronLM, find_megatron_lm
from tests.support_errors import refused
from tests.support_megatron_lm import megatron_lm_args


def write(checkpoint: Path, **changes: Any) -> Path:
    checkpoint.mkdir(parents=True)
    for name in (".metadata", "metadata.json"):
        (checkpoint / name).touch()
    torch.save({"args": megatron_lm_args(**changes)}, checkpoint / "common.pt")
    return checkpoint


def opened(folder: Path, **changes: Any) -> MegatronLM:
    return MegatronLM.open(write(folder / "iter_0000005", **changes))


def test_the_checkpoint_is_found_in_every_place(tmp_path: Path) -> None:
    """That is the tracker's, the newest, the folder itself, or a release; never a checkpoint of this program."""
    first, second = (write(tmp_path / "run" / f"iter_000000{number}") for number in (1, 2))
    assert find_megatron_lm(first.parent) == second and find_megatron_lm(first) == first
    (first.parent / "latest_checkpointed_iteration.txt").write_text("1")
    assert find_megatron_lm(first.parent) == first
    assert find_megatron_lm(tmp_path / "release run") is None
    release = write(tmp_path / "release run" / "release")
    (release.parent / "latest_checkpointed_iteration.txt").write_text("release")
    assert find_megatron_lm(release.parent) == release
    (first / RUN).touch()
    assert find_megatron_lm(first.parent) is None and find_megatron_lm(first) is None
    (first.parent / "latest_checkpointed_iteration.txt").unlink()
    assert find_megatron_lm(first.parent) is None  # the second one is a damaged checkpoint of this program


@pytest.mark.parametrize(("changes", "field", "value"), [
    ({"layernorm_epsilon": 1e-6}, "norm_epsilon", 1e-6),
    ({"layernorm_zero_centered_gamma": True}, "apply_layernorm_1p", True),
    ({"add_bias_linear": True, "add_qkv_bias": True}, "add_qkv_bias", False),
    ({"add_bias_linear": False, "add_qkv_bias": True}, "add_qkv_bias", True),
    ({"bias_gelu_fusion": True}, "openai_gelu", True),
    ({"bias_gelu_fusion": True, "swiglu": True}, "openai_gelu", False),
    ({"bias_gelu_fusion": True, "add_bias_linear": False}, "openai_gelu", False),
    ({"openai_gelu": True}, "openai_gelu", False),  # it has no effect on Megatron-Core's models
    ({"num_query_groups": 4}, "num_query_groups", None),
    ({"group_query_attention": True, "num_query_groups": 2}, "num_query_groups", 2),
    ({"use_rope_scaling": True, "rope_scaling_factor": 32.0}, "rope_scaling_factor", 32.0),
    ({"position_embedding_type": "rope"}, "max_position_embeddings", None),
    ({"untie_embeddings_and_output_weights": True}, "tied_embeddings", False),
])  # fmt: skip
def test_flags_of_several_versions(changes: dict[str, Any], field: str, value: Any, tmp_path: Path) -> None:
    if field in ("norm_epsilon", "apply_layernorm_1p"):  # later versions lack the earlier name
        args = megatron_lm_args(**changes)
        delattr(args, field)
        write(tmp_path / "iter_0000005")
        torch.save({"args": args}, tmp_path / "iter_0000005" / "common.pt")
        assert MegatronLM.open(tmp_path / "iter_0000005").model_flags()[field] == value
    else:
        assert opened(tmp_path, **changes).model_flags().get(field) == value


@pytest.mark.parametrize(("changes", "divisor"), [
    ({}, 128),
    ({"tensor_model_parallel_size": 8, "padded_vocab_size": 51_200}, 1024),
    ({"padded_vocab_size": 50_257}, 1),  # by hand
    ({"make_vocab_size_divisible_by": "128"}, 1),
])  # fmt: skip
def test_the_padding_of_the_vocabulary(changes: dict[str, Any], divisor: int, tmp_path: Path) -> None:
    assert opened(tmp_path, **changes).tokenizer_flags() == {"make_vocab_size_divisible_by": divisor}


def test_a_tokenizer_of_ours_is_taken(tmp_path: Path) -> None:
    files = {"tokenizer_type": "GPT2BPETokenizer", "vocab_file": "v.json", "merge_file": "m.txt"}
    assert opened(tmp_path, **files, tokenizer_model=None).tokenizer_flags() == {
        **files, "make_vocab_size_divisible_by": 128,
    }  # fmt: skip


def test_an_archive_that_expands_is_refused(tmp_path: Path) -> None:
    checkpoint, content = write(tmp_path / "iter_0000005"), io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("common/data.pkl", bytes(1 << 24))
    (checkpoint / "common.pt").write_bytes(content.getvalue())
    with refused(f"--load {checkpoint}", "data.pkl"):
        MegatronLM.open(checkpoint)
