"""A reference vision transformer in plain PyTorch, one image at a time: the plain GPT's layers without a mask."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from tests.reference.names import Tensors, megatron_tensors, renamed
from tests.reference.plain_gpt import PlainConfig, PlainLayer, PlainNorm, draw_parameters, run_layers


class PlainViT(nn.Module):
    """Patches, [CLS], positions, layers, norm and head, with all parameters random, including biases and norms."""

    def __init__(self, config: PlainConfig, num_channels: int, patch_dim: int, num_classes: int, seed: int = 0) -> None:
        super().__init__()
        self.config, self.patch_dim = config, patch_dim
        self.patch = nn.Linear(num_channels * patch_dim**2, config.hidden_size)
        self.class_token = nn.Parameter(torch.empty(config.hidden_size))
        self.places = nn.Parameter(torch.empty(config.learned_positions, config.hidden_size))
        self.layers = nn.ModuleList(PlainLayer(config) for _ in range(config.num_layers))
        self.last_norm = PlainNorm(config)
        self.classes = nn.Linear(config.hidden_size, num_classes)
        draw_parameters(self, seed)

    def forward(
        self,
        image_CHW: Tensor,
        *,
        kept: Mapping[int, Tensor] | None = None,
        entry_layers: Collection[int] = (),
        scale: Mapping[int, float] | None = None,
    ) -> Tensor:
        """Return the logits of one image; ``kept``, ``entry_layers`` and ``scale`` are as in ``PlainGPT``."""
        size, (_, height, width) = self.patch_dim, image_CHW.shape
        patches = [
            image_CHW[:, top : top + size, left : left + size].flatten()
            for top in range(0, height, size)
            for left in range(0, width, size)
        ]
        x_SH = torch.cat([self.class_token[None], self.patch(torch.stack(patches))]) + self.places
        x_SH = run_layers(self.layers, x_SH, kept, entry_layers, scale)
        return self.classes(self.last_norm(x_SH)[0])


def megatron_vit_tensors(plain: Tensors, model: PlainViT, num_channels: int) -> dict[str, Tensor]:
    """The plain ViT's weights or gradients under the names of Megatron-Core's model and of our subclass."""
    patch = (num_channels, model.patch_dim, model.patch_dim)
    return {
        **megatron_tensors(plain, model.config),
        "conv1.weight": plain["patch.weight"].unflatten(1, patch),
        "conv1.bias": plain["patch.bias"],
        "class_token": plain["class_token"][None, None],
        "position_embeddings.weight": plain["places"],
        **renamed(plain, {"last_norm": "ln_post", "classes": "head"}),
    }


def hugging_face_vit_tensors(plain: Tensors, model: PlainViT, num_channels: int) -> dict[str, Tensor]:
    """The plain ViT's weights or gradients as Hugging Face's ``ViTForImageClassification`` names them."""
    patch = (num_channels, model.patch_dim, model.patch_dim)
    tensors = {
        "vit.embeddings.patch_embeddings.projection.weight": plain["patch.weight"].unflatten(1, patch),
        "vit.embeddings.patch_embeddings.projection.bias": plain["patch.bias"],
        "vit.embeddings.cls_token": plain["class_token"][None, None],
        "vit.embeddings.position_embeddings": plain["places"][None],
        **renamed(plain, {"last_norm": "vit.layernorm", "classes": "classifier"}),
    }
    names = {
        "attention_norm": "layernorm_before", "mlp_norm": "layernorm_after", "up": "mlp.fc1", "down": "mlp.fc2",
        **{old: f"attention.{new}_proj" for old, new in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))},
    }  # fmt: skip
    for number in range(model.config.num_layers):
        tensors |= renamed(plain, names, f"layers.{number}.", f"vit.layers.{number}.")
    return tensors
