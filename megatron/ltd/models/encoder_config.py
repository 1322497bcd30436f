"""The shapes of encoders: flags only, no torch. Names, meanings and defaults are Megatron-LM's.

BertModelConfig   tokens of one or two sentences, padding among them
ViTConfig         the patches of an image, and [CLS]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag
from megatron.ltd.flags.ranges import SIZE
from megatron.ltd.models.config import LayersConfig, ModelConfig
from megatron.ltd.plan.accounting import ModelShape


@dataclass(frozen=True)
class BertModelConfig(ModelConfig):
    """model"""

    seq_length: int = flag(512, range=SIZE, affects="order", help="tokens in a sample, padding included")
    bert_binary_head: bool = flag(
        True,
        affects="model",
        name="bert-no-binary-head",
        help="masked tokens alone: no sentence order, no sentence types",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seq_length < 5:
            raise UserError(
                f"--seq-length is {self.seq_length}: a sample holds [CLS], two [SEP] and a token of either sentence; "
                "give at least 5"
            )

    @property
    def sentence_types(self) -> int:
        """Rows of the embedding that tells two sentences apart; 0 if there is one."""
        return 2 if self.bert_binary_head else 0

    def identity(self, padded_vocab_size: int) -> dict[str, Any]:
        return {**super().identity(padded_vocab_size), "bert_binary_head": self.bert_binary_head}

    def shape(self, padded_vocab_size: int) -> ModelShape:
        """An encoder whose head has a layer of its own."""
        return dataclasses.replace(super().shape(padded_vocab_size), causal=False, head_layers=1)


@dataclass(frozen=True)
class ViTConfig(LayersConfig):
    """vision transformer"""

    img_h: int = flag(224, range=SIZE, affects="model", help="height of the images in pixels")
    img_w: int = flag(224, range=SIZE, affects="model", help="width of the images in pixels")
    patch_dim: int = flag(
        16, range=SIZE, affects="model", help="edge of a patch in pixels; each is a token, and [CLS] is one more"
    )
    num_channels: int = flag(3, range=SIZE, affects="model", help="channels of the images: 1 for grey, 3 for colour")
    num_classes: int | None = flag(
        None, range=SIZE, affects="order", help="classes to tell apart (default: those of the training data)"
    )

    unfit_parallelism: ClassVar[Mapping[str, str]] = {
        "pipeline_model_parallel_size": "the vision transformer is one stage; use tensor and data parallelism",
        "context_parallel_size": "the tokens of an image stay together; use tensor and data parallelism",
        "sequence_parallel": "the tokens of an image, an odd number, stay together; drop it",
    }
    seq_length_name: ClassVar[str] = "an image's token count"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("img_h", "img_w"):
            if getattr(self, name) % self.patch_dim:
                raise UserError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is not a multiple of --patch-dim "
                    f"{self.patch_dim}: an image is cut into whole patches; change one"
                )
        if self.num_classes is not None and self.num_classes < 2:
            raise UserError(f"--num-classes is {self.num_classes}: there must be two to tell apart")

    @property
    def seq_length(self) -> int:
        """Tokens of an image: its patches and [CLS]."""
        return (self.img_h // self.patch_dim) * (self.img_w // self.patch_dim) + 1

    def identity(self) -> dict[str, Any]:
        """What two runs must agree on to share weights, by id; the head is another matter."""
        return {
            **self.layers_identity(),
            "img_h": self.img_h,
            "img_w": self.img_w,
            "patch_dim": self.patch_dim,
            "num_channels": self.num_channels,
        }

    def shape(self, num_classes: int) -> ModelShape:
        """What the accounting needs to know of this model."""
        return ModelShape(
            **self.layers_shape(),
            vocab_size=num_classes,
            seq_length=self.seq_length,
            causal=False,
            head_tokens=1,
            patch_values=self.num_channels * self.patch_dim**2,
        )
