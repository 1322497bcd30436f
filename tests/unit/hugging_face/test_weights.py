"""Weights of a Hugging Face GPT-2 in our model, against Hugging Face's own model with the same folder."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.ltd.data.batch import Batch
from megatron.ltd.evaluation.load import load_model
from megatron.ltd.hugging_face.gpt2 import GPT2
from megatron.ltd.hugging_face.weights import ImportedModel
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.execution_config import PrecisionConfig, RecomputeConfig
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.reference.gpt2_folder import gpt2_config, random_plain, write_folder, write_gpt2
from tests.reference.names import gpt2_tensors, megatron_tensors
from tests.reference.plain_gpt import PlainConfig
from tests.support import VOCAB_SIZE, assert_gradients, build_stepper, dense, random_batches
from tests.unit.hugging_face.test_architecture import CHECKPOINT_NAMES

SHAPE = PlainConfig(learned_positions=16, tanh_gelu=True)  # an MLP of 40, which is not 4 x 24
VARIANTS: dict[str, tuple[PlainConfig, dict[str, Any]]] = {
    "GPT-2": (SHAPE, {}),
    "exact GELU, another epsilon": (
        PlainConfig(learned_positions=16, epsilon=1e-3), {"activation_function": "gelu"},
    ),
    "untied": (PlainConfig(learned_positions=16, tanh_gelu=True, tied=False), {"tie_word_embeddings": False}),
}  # fmt: skip


def imported(folder: Path, mesh: Mesh, padded_vocab_size: int = VOCAB_SIZE) -> torch.nn.Module:
    """Our model with the weights of ``folder``."""
    from megatron.ltd.models.gpt import build_chunks
    from megatron.ltd.models.transformer import transformer_config

    found = ImportedModel.open(folder)
    core_config = transformer_config(
        found.model, ParallelConfig(device="cpu"), PrecisionConfig(), RecomputeConfig(), mesh
    )
    (model,) = build_chunks(found.model, core_config, padded_vocab_size, mesh, seed=3)
    found.copy_into([model])
    return model.eval()


def hugging_face(folder: Path) -> torch.nn.Module:
    """Hugging Face's model, read from the folder by its own library."""
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder).eval()


def assert_weights(model: torch.nn.Module, expected: dict[str, Tensor]) -> None:
    found = dict(model.named_parameters())
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def mean_loss(theirs: torch.nn.Module, batches: list[Batch]) -> Tensor:
    """The mean loss over the counted tokens of all microbatches, as in our training step."""
    losses, masks = [], []
    for batch in batches:
        logits_BSV = theirs(batch.tokens_BS).logits
        losses.append(F.cross_entropy(logits_BSV.mT, batch.labels_BS, reduction="none"))
        masks.append(batch.loss_mask_BS)
    return (torch.cat(losses) * torch.cat(masks)).sum() / torch.cat(masks).sum()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_loss_and_gradients_equal_hugging_faces(mesh: Mesh, tmp_path: Path, variant: str) -> None:
    """Hugging Face's library writes the folder, and both models read it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config, entries = VARIANTS[variant]
    plain = random_plain(config)
    theirs = GPT2LMHeadModel(GPT2Config(**gpt2_config(config, **entries)))
    missing = theirs.load_state_dict(
        gpt2_tensors(plain.state_dict(), config) | ({} if config.tied else {"lm_head.weight": plain.head.weight}),
        strict=False,
    )
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    theirs.save_pretrained(tmp_path)

    ours, theirs = imported(tmp_path, mesh), hugging_face(tmp_path)
    weights = megatron_tensors(plain.state_dict(), config)
    assert_weights(ours, weights)
    batches = random_batches(2, 3, 16)
    with torch.no_grad():
        for batch in batches:
            found = ours(batch.tokens_BS, batch.position_ids_BS, None)
            torch.testing.assert_close(found, theirs(batch.tokens_BS).logits, rtol=1e-5, atol=1e-5)

    model = ImportedModel.open(tmp_path).model
    stepper = build_stepper(model, mesh, dense(model), weights=dict(ours.named_parameters()), micro_batch_size=3)
    result = stepper.train(iter(batches), stepper.method.plan(0), 0, len(batches))
    loss = mean_loss(theirs, batches)
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert_gradients(stepper, _as_ours(gradients, model), 1e-4)


def _as_ours(theirs: dict[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Convert Hugging Face's tensors, of which the conversion only changes the places of values, to a module's."""
    ours = {}
    for name, found in GPT2.counterparts(model, VOCAB_SIZE).items():
        for module, stored in CHECKPOINT_NAMES.items():
            name = name.replace(f".{stored}_", f".{module}.")
        ours[name] = found.arrangement.to_ours([theirs[GPT2.full_name(their_name)] for their_name in found.names])
    return ours


def test_padding_ids_have_the_mean_logit_and_hardly_change_the_loss(mesh: Mesh, tmp_path: Path) -> None:
    """With the mean logit for 16 padding ids beside 32 real ones, the loss rises by at most log(1 + 16 / 32)."""
    write_gpt2(tmp_path, SHAPE)
    padded, theirs = imported(tmp_path, mesh, padded_vocab_size=48), hugging_face(tmp_path)
    (batch,) = random_batches(1, 3, 16)
    with torch.no_grad():
        found_BSV = padded(batch.tokens_BS, batch.position_ids_BS, None)
        expected_BSV = theirs(batch.tokens_BS).logits
    torch.testing.assert_close(found_BSV[..., :32], expected_BSV, rtol=1e-5, atol=1e-5)
    mean_BS1 = expected_BSV.mean(dim=-1, keepdim=True)
    torch.testing.assert_close(found_BSV[..., 32:], mean_BS1.expand(-1, -1, 16), rtol=1e-4, atol=1e-5)
    rise_BS = found_BSV.logsumexp(-1) - expected_BSV.logsumexp(-1)
    assert rise_BS.min() > 0.0 and rise_BS.max() <= math.log(1 + 16 / 32)


def test_files_without_a_prefix_of_old_versions_and_in_half_precision(mesh: Mesh, tmp_path: Path) -> None:
    """Names without a prefix as on the hub, masks and the tied head as in old files, and weights in bfloat16."""
    tensors = write_gpt2(tmp_path / "plain", SHAPE)
    expected = dict(imported(tmp_path / "plain", mesh).named_parameters())
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 16, 16).tril() for layer in range(3)}
    masks |= {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(3)}
    for name, more in {"bare": {}, "old": {**masks, "lm_head.weight": bare["wte.weight"].clone()}}.items():
        write_folder(tmp_path / name, json.loads((tmp_path / "plain" / "config.json").read_text()), {**bare, **more})
        assert_weights(imported(tmp_path / name, mesh), expected)
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    write_folder(tmp_path / "half", json.loads((tmp_path / "plain" / "config.json").read_text()), half)
    rounded = {name: tensor.bfloat16().float() for name, tensor in expected.items()}
    assert_weights(imported(tmp_path / "half", mesh), rounded)


def test_masks_in_old_files_do_not_decide_the_type_for_evaluation(mesh: Mesh, tmp_path: Path) -> None:
    """They are stored in fp32 or as bytes beside weights in half precision."""
    shape = replace(SHAPE, vocab_size=257)
    half = {name: tensor.bfloat16() for name, tensor in write_gpt2(tmp_path, shape).items()}
    write_folder(tmp_path, gpt2_config(shape), half | {"h.0.attn.bias": torch.ones(1, 1, 16, 16).tril()})
    loaded = load_model(tmp_path, TokenizerFiles("ByteTokenizer"), ParallelConfig(device="cpu"), mesh)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
