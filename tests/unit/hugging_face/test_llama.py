"""Weights of a Hugging Face Llama in our model, against Hugging Face's own model, and Llamas that are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.ltd.hugging_face.model import described_flags
from megatron.ltd.parallel.mesh import Mesh
from tests.reference.llama_folder import LLAMA, llama_config, write_llama
from tests.reference.plain_gpt import PlainConfig
from tests.support import random_batches, world
from tests.support_errors import refused
from tests.unit.hugging_face.test_weights import imported

VARIANTS: dict[str, PlainConfig] = {
    "grouped, untied": LLAMA,
    "all heads, tied, another base": replace(LLAMA, groups=4, tied=True, rotary_base=500.0),
    "biases, heads of another size": replace(LLAMA, bias=True, head_size=8, epsilon=1e-3),
    "one key-value head": replace(LLAMA, groups=1),
}


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with world() as mesh:
        yield mesh


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_hugging_faces(mesh: Mesh, tmp_path: Path, variant: str) -> None:
    """Hugging Face's library writes the folder in several files, and both models read it."""
    from transformers import LlamaForCausalLM

    write_llama(tmp_path / "one", VARIANTS[variant])
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "one").eval()
    theirs.save_pretrained(tmp_path / "several", max_shard_size="10KB")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 2
    ours = imported(tmp_path / "several", mesh)
    (batch,) = random_batches(1, 3, 16)
    with torch.no_grad():
        found = ours(batch.tokens_BS, batch.position_ids_BS, None)
        torch.testing.assert_close(found, theirs(batch.tokens_BS).logits, rtol=1e-5, atol=1e-5)


def test_a_model_initialized_by_hugging_face(mesh: Mesh, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=2, vocab_size=32, initializer_range=0.3)).eval()
    theirs.save_pretrained(tmp_path)
    ours = imported(tmp_path, mesh)
    (batch,) = random_batches(1, 3, 16)
    with torch.no_grad():
        found = ours(batch.tokens_BS, batch.position_ids_BS, None)
        torch.testing.assert_close(found, theirs(batch.tokens_BS).logits, rtol=1e-5, atol=1e-5)


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
    "scaled positions": ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling is"),
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


@pytest.mark.parametrize(("entries", "name"), BAD.values(), ids=BAD.keys())
def test_unsupported_llamas_are_refused(tmp_path: Path, entries: dict[str, Any], name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(llama_config(LLAMA, **entries)))
    with refused(f"--load {tmp_path}", name):
        described_flags(tmp_path)
