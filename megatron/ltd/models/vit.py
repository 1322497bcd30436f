"""Vision transformer: Megatron-Core's ``CLIPViTModel`` with our layer spec, as the ViT of Dosovitskiy et al.

    patches ─► projection, bias ─► [CLS] in front ─► + positions ─► dropout ─► layers ─► norm ─► [CLS] ─► head

Megatron-Core's class has patches, [CLS], positions and layers; its own variants have no final norm and no head, other
initial weights, and three channels. "An Image is Worth 16x16 Words" (arXiv:2010.11929). The model is one pipeline
stage.

Shapes: B micro-batch, C classes; an image is [channels, height, width].
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from megatron.core.models.vision.clip_vit_model import CLIPViTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron.ltd.models.encoder_config import ViTConfig
from megatron.ltd.models.transformer import build_stages
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.parallel.random import seed_weights

HEAD = "head."
"""Prefix of the names of the head's parameters."""


class ViT(CLIPViTModel):
    """Images to the logits of their classes. ``seed``: that of the initial weights outside the layers."""

    def __init__(
        self,
        config: TransformerConfig,
        transformer_layer_spec: TransformerBlockSubmodules,
        model: ViTConfig,
        num_classes: int,
        seed: int,
        pg_collection: ProcessGroupCollection,
        **_: Any,
    ) -> None:
        super().__init__(
            config,
            transformer_layer_spec,
            patch_dim=model.patch_dim,
            img_h=model.img_h,
            img_w=model.img_w,
            model_subtype="internvit",  # the one with a bias in the projection, a [CLS] and no norm before the layers
            pg_collection=pg_collection,
        )
        hidden, dtype = config.hidden_size, config.params_dtype
        self.conv1 = nn.Conv2d(model.num_channels, hidden, model.patch_dim, stride=model.patch_dim, dtype=dtype)
        # Megatron-Core's forward pass calls these before and after the layers, in variants that have them.
        self.ln_pre = nn.Dropout(config.hidden_dropout)
        self.ln_post = build_module(
            transformer_layer_spec.layer_norm, config=config, hidden_size=hidden, eps=config.layernorm_epsilon
        )
        self.head = nn.Linear(hidden, num_classes, dtype=dtype)
        seed_weights(seed)
        for weight in (self.conv1.weight, self.class_token, self.position_embeddings.weight, self.head.weight):
            config.init_method(weight)
        for bias in (self.conv1.bias, self.head.bias):
            assert bias is not None
            nn.init.zeros_(bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits [B, C]."""
        return self.head(super().forward(images_BCHW)[:, 0])


def build_chunks(
    model: ViTConfig,
    config: TransformerConfig,
    num_classes: int,
    mesh: Mesh,
    *,
    seed: int,
    masked_layers: Collection[int] = (),
) -> list[ViT]:
    """The model on the device of the run: one stage, in a list as for other models. ``seed``: of initial weights."""
    make = partial(ViT, model=model, num_classes=num_classes, seed=seed)
    mask_type = AttnMaskType.no_mask
    return build_stages(make, model, config, mesh, seed=seed, mask_type=mask_type, masked_layers=masked_layers)
