"""Our vision transformer against a plain PyTorch one and against Hugging Face's, with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from megatron.ltd.data.images import ImageBatch
from megatron.ltd.methods.base import Composed, Method, Samples
from megatron.ltd.models.encoder_config import ViTConfig
from megatron.ltd.models.vit import HEAD, build_chunks
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.routing.sampling import kept_indices
from megatron.ltd.training.classification import Classification
from megatron.ltd.training.step import Stepper
from megatron.ltd.workloads.sizes import vit_sizes
from tests.reference.plain_gpt import PlainConfig
from tests.reference.plain_vit import PlainViT, hugging_face_vit_tensors, megatron_vit_tensors
from tests.support import (
    assert_gradients,
    assert_gradients_close,
    core_config,
    dense,
    gradients_of,
    kept_positions,
    layer_drop,
    load_weights,
    random_ltd,
    stepper_of,
    sublayer_scales,
    token_bypass,
)

CHANNELS, CLASSES = 2, 5
K = 6


def small_vit(**changes: Any) -> ViTConfig:
    """A model of four layers without dropout, for images of 2 x 8 x 6 in patches of 2 x 2: S = 13."""
    settings: dict[str, Any] = {
        "num_layers": 4, "hidden_size": 24, "ffn_hidden_size": 40, "num_attention_heads": 4, "img_h": 8, "img_w": 6,
        "patch_dim": 2, "num_channels": CHANNELS, "attention_dropout": 0.0, "hidden_dropout": 0.0,
    }  # fmt: skip
    return ViTConfig(**(settings | changes))


def build(model: ViTConfig, mesh: Mesh, seed: int = 1234) -> torch.nn.Module:
    (core,) = build_chunks(model, core_config(model, mesh), CLASSES, mesh, seed=seed)
    return core


def build_stepper(model: ViTConfig, mesh: Mesh, method: Method, weights: dict[str, Tensor]) -> Stepper:
    core = build(model, mesh)
    load_weights(core, weights)
    return stepper_of(core, method, mesh, Classification(CLASSES, lambda module, batch: module(batch.images_BCHW)))


def plain_vit(model: ViTConfig, seed: int = 0) -> PlainViT:
    config = PlainConfig(
        num_layers=model.num_layers, hidden_size=model.hidden_size, heads=model.num_attention_heads,
        groups=model.query_groups, head_size=model.head_size, mlp_size=model.mlp_size, vocab_size=1,
        learned_positions=model.seq_length, rotary_base=1.0, rms_norm=model.normalization == "RMSNorm",
        swiglu=model.swiglu, tanh_gelu=model.openai_gelu, bias=model.add_bias_linear, tied=True,
        epsilon=model.norm_epsilon,
    )  # fmt: skip
    return PlainViT(config, CHANNELS, model.patch_dim, CLASSES, seed)


def random_batches(number: int, model: ViTConfig) -> list[ImageBatch]:
    """Batches of two images; the very last image has no weight."""
    generator = torch.Generator().manual_seed(3)
    return [
        ImageBatch(
            sample_ids_B=torch.tensor([2 * place, 2 * place + 1]) + 500,
            labels_B=torch.randint(0, CLASSES, (2,), generator=generator),
            weights_B=torch.tensor([1.0, float(place < number - 1)]),
            images_BCHW=torch.randn(2, CHANNELS, model.img_h, model.img_w, generator=generator),
        )
        for place in range(number)
    ]


def plain_step(plain: PlainViT, batches: Sequence[ImageBatch], method: Method) -> float:
    """Mean loss of the weighted images; gradients are left in ``plain``."""
    losses, weights = [], []
    for microbatch, batch in enumerate(batches):
        scale = sublayer_scales(method, microbatch)
        for row, image_CHW in enumerate(batch.images_BCHW):
            kept = kept_positions(method, Samples(batch.sample_ids_B), row)
            logits_C = plain(image_CHW, kept=kept, entry_layers=method.plan(0).entry_layers, scale=scale)
            losses.append(logits_C.logsumexp(-1) - logits_C[batch.labels_B[row]])
            weights.append(batch.weights_B[row])
    weight = torch.stack(weights)
    loss = (torch.stack(losses) * weight).sum() / weight.sum()
    loss.backward()
    return loss.item()


METHODS: dict[str, Callable[[Any], Method]] = {
    "dense": dense,
    "random-LTD": lambda model: random_ltd(model, K),
    "TokenBypass, entry attends to all": lambda model: token_bypass(model, K, "2-3", selector="random"),
    "TokenBypass": lambda model: token_bypass(model, K, "2-3", selector="random", entry="kept"),
    "layer dropping": lambda model: layer_drop(model, 0.6),
    "random-LTD + layer dropping": lambda model: Composed(random_ltd(model, K), layer_drop(model, 0.6)),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as in the paper": {},
    "RMSNorm, SwiGLU, no biases": {"normalization": "RMSNorm", "swiglu": True, "add_bias_linear": False},
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_every_gradient_equal_the_plain_vit(mesh: Mesh, variant: str, name: str) -> None:
    model = small_vit(**VARIANTS[variant])
    method, plain = METHODS[name](model), plain_vit(model)
    plan = method.plan(0)
    assert (min(plan.kept_tokens) == K) == (name not in ("dense", "layer dropping"))
    stepper = build_stepper(model, mesh, method, megatron_vit_tensors(plain.state_dict(), plain, CHANNELS))
    batches = random_batches(3, model)

    result = stepper.train(iter(batches), plan, 0, len(batches))
    expected_loss = plain_step(plain, batches, method)

    assert result.loss == pytest.approx(expected_loss, rel=1e-6)
    expected = megatron_vit_tensors(gradients_of(plain), plain, CHANNELS)
    assert_gradients(stepper, expected)
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    assert result.grad_norm == pytest.approx(whole.item(), rel=1e-5)


def test_the_class_token_is_drawn_like_any_other() -> None:
    model = small_vit()
    first = [
        kept_indices(7, torch.tensor([sample]), layer, model.seq_length, K)[0, 0].item()
        for sample in range(50)
        for layer in (2, 3)
    ]
    assert {place == 0 for place in first} == {True, False}


def test_logits_and_gradients_equal_hugging_face(mesh: Mesh) -> None:
    """Both models compute with the same leaf tensors, so that autograd gives both gradients for the same tensors."""
    from transformers import ViTConfig as TheirConfig
    from transformers import ViTForImageClassification

    model = small_vit(img_h=8, img_w=8, norm_epsilon=1e-6)
    plain = plain_vit(model)
    theirs = ViTForImageClassification(
        TheirConfig(
            hidden_size=24, num_hidden_layers=4, num_attention_heads=4, intermediate_size=40, image_size=8,
            patch_size=2, num_channels=CHANNELS, num_labels=CLASSES, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, layer_norm_eps=1e-6,
        )
    )  # fmt: skip
    (batch,) = random_batches(1, model)
    logits, gradients = [], []
    for network, names in ((build(model, mesh), megatron_vit_tensors), (theirs, hugging_face_vit_tensors)):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in plain.state_dict().items()}
        tensors = names(leaves, plain, CHANNELS)
        assert tensors.keys() == dict(network.named_parameters()).keys()
        output = functional_call(network, tensors, (batch.images_BCHW,))
        logits_BC = output if isinstance(output, Tensor) else output.logits
        F.cross_entropy(logits_BC, batch.labels_B).backward()
        logits.append(logits_BC.detach())
        gradients.append({name: leaf.grad for name, leaf in leaves.items()})
    assert (logits[0] - logits[1]).abs().max() < 1e-5 * logits[1].abs().max()
    assert_gradients_close(*gradients, 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_counted_exactly(mesh: Mesh, variant: str) -> None:
    model = small_vit(**VARIANTS[variant])
    counted = vit_sizes(model, CLASSES).num_parameters
    assert counted == sum(parameter.numel() for parameter in build(model, mesh).parameters())


def test_initial_weights_depend_on_the_seed(mesh: Mesh) -> None:
    model = small_vit(hidden_size=96, num_attention_heads=4, init_method_std=0.05)
    first, again, other = (dict(build(model, mesh, seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("conv1.weight", "class_token", "position_embeddings.weight", f"{HEAD}weight"):
        assert first[name].std().item() == pytest.approx(0.05, rel=0.25), name
        assert not torch.equal(first[name], other[name])
    assert not first["conv1.bias"].any() and not first[f"{HEAD}bias"].any()


def test_dropout_follows_the_position_embeddings(mesh: Mesh) -> None:
    core = build(small_vit(hidden_dropout=0.5), mesh)
    images = random_batches(1, small_vit())[0].images_BCHW
    assert isinstance(core.ln_pre, torch.nn.Dropout) and core.ln_pre.p == 0.5
    torch.manual_seed(0)
    assert not torch.equal(core(images), core(images))
    core.eval()
    assert torch.equal(core(images), core(images))
