"""Weights of a Hugging Face Llama in our model, against Hugging Face's own model, and Llamas that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.ltd.hugging_face.model import described_flags
from megatron.ltd.parallel.mesh import Mesh
from tests.reference.llama_folder import LLAMA, llama_config
from tests.support import random_batches
from tests.support_errors import refused
from tests.unit.hugging_face.test_weights import imported

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
DRAWN: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Llama, all heads, tied, another base": (
        "llama", {"num_key_value_heads": 4, "tie_word_embeddings": True,
                  "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "Llama, biases, heads of another size": (
        "llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 8, "rms_norm_eps": 1e-3},
    ),
    "Llama, one key-value head": ("llama", {"num_key_value_heads": 1}),
    "Llama 3.1": ("llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False}),
    "Llama 3.2": ("llama", {"rope_parameters": {**LLAMA3_ROPE, "factor": 32.0}, "tie_word_embeddings": True}),
    "Qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "Qwen3, heads of another size": ("qwen3", {"head_dim": 8, "tie_word_embeddings": False}),
    "Mistral without a window": ("mistral", {"sliding_window": None, "head_dim": 8}),
}  # fmt: skip


def model_of(kind: str, **entries: Any) -> torch.nn.Module:
    """A small model of Hugging Face's, with weights drawn by its own code."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "vocab_size": 32, "max_position_embeddings": 32768}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **more, **entries})).eval()


@pytest.mark.parametrize("case", DRAWN)
def test_logits_equal_hugging_faces(mesh: Mesh, tmp_path: Path, case: str) -> None:
    """Every weight is random, including biases and norms, and positions are far apart. Hugging Face's library writes
    the folder, in several files.
    """
    kind, entries = DRAWN[case]
    torch.manual_seed(5)
    theirs = model_of(kind, **entries)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.3)
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = imported(tmp_path, mesh)
    (batch,) = random_batches(1, 1, 900)
    with torch.no_grad():
        found = ours(batch.tokens_BS, batch.position_ids_BS, None)
        expected = theirs(batch.tokens_BS).logits
        torch.testing.assert_close(found[:, :16], expected[:, :16], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # angles of 900 radians, in fp32
        if "Llama 3" in case:
            plain = model_of(kind, **entries | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}})
            plain.load_state_dict(theirs.state_dict())
            assert (plain(batch.tokens_BS).logits - expected).abs().max() > 1e-2


def test_both_spellings_of_rotary_positions(tmp_path: Path) -> None:
    newer = {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    for name, entries in {"older": {"rope_theta": 500000.0, "rope_scaling": None}, "newer": newer}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps({key: value for key, value in llama_config(LLAMA, **entries).items() if value is not None})
        )
        assert described_flags(folder)["model"]["rotary_base"] == 500000


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "other frequencies": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0}},
        "low_freq_factor, 1",
    ),
    "scaled positions, older": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
    "scaled positions, newer": ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters is"),
    "heads rotated by half": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "a broken base": ({"rope_theta": 0.5}, "rope_theta is 0.5"),
    "biases of attention alone": ({"attention_bias": True}, "mlp_bias is false"),
    "another activation": ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "(gptq)"),
    "heads": ({"num_key_value_heads": 3}, "--num-query-groups 3"),
    "no size": ({"hidden_size": None}, "hidden_size is null"),
}


@pytest.mark.parametrize(
    ("kind", "entries", "name"),
    [
        ("mistral", {"sliding_window": 4096}, "sliding_window is 4096"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64}, "sliding_window is 64"),
        ("qwen3", {"attention_bias": True}, "attention_bias is true"),
        ("gemma", {}, "type gemma (config.json); of Hugging Face models only gpt2, llama, qwen2, qwen3, mistral are"),
    ],
)
def test_a_relative_that_ours_cannot_be(tmp_path: Path, kind: str, entries: dict[str, Any], name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(llama_config(LLAMA, model_type=kind, **entries)))
    with refused(f"--load {tmp_path}", name):
        described_flags(tmp_path)


@pytest.mark.parametrize(("entries", "name"), BAD.values(), ids=BAD.keys())
def test_unsupported_llamas_are_refused(tmp_path: Path, entries: dict[str, Any], name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(llama_config(LLAMA, **entries)))
    with refused(f"--load {tmp_path}", name):
        described_flags(tmp_path)
