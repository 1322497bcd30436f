"""Finetuning or training a vision transformer on labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.ltd.config import RunConfig
from megatron.ltd.data.config import VALID, ImageDataConfig
from megatron.ltd.data.epochs import ShuffledEpochs, SinglePass, whole_batches
from megatron.ltd.data.images import ImageBatch, build_image_batch, open_images
from megatron.ltd.data.microbatches import Collate, SampleSource
from megatron.ltd.errors import UserError
from megatron.ltd.models import vit
from megatron.ltd.models.encoder_config import ViTConfig
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.parameters import ModelSizes
from megatron.ltd.routing.sequence_shard import SequenceShard
from megatron.ltd.training.classification import Classification
from megatron.ltd.workloads.base import Workload, class_order, same_classes
from megatron.ltd.workloads.sizes import vit_sizes


class ViT(Workload):
    """The images of a run, checked, and what is built from them. Each evaluation uses the whole validation set."""

    every_layer_needs_data = False

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.train_images, self.valid_images = open_images(config.data, config.model)
        if self.valid_images is None and config.training.eval_iters:
            raise UserError("--valid-data-path: required; give images to evaluate on, or use --eval-iters 0")
        self._check_normalisation()
        self.classes = self.train_images.classes
        self.objective = Classification(len(self.classes), lambda model, batch: model(batch.images_BCHW))

    @property
    def identity(self) -> Mapping[str, Any]:
        """The model without its head."""
        model: ViTConfig = self.config.model
        return model.identity()

    @property
    def order(self) -> Mapping[str, Any]:
        """Seed, classes, and a fingerprint of the training images."""
        return {
            "seed": self.config.training.seed,
            **class_order(self.classes),
            "train_data_fingerprint": self.train_images.fingerprint[:12],
        }

    @property
    def fingerprints(self) -> Mapping[str, Sequence[str]]:
        found = {"train_images": [self.train_images.fingerprint]}
        return found if self.valid_images is None else found | {"valid_images": [self.valid_images.fingerprint]}

    @property
    def sizes(self) -> ModelSizes:
        return vit_sizes(self.config.model, len(self.classes))

    def new_weights(self, stored: Mapping[str, Any]) -> tuple[str, ...]:
        """The head, if the checkpoint has other classes."""
        return () if same_classes(stored["order"], self.order) else (vit.HEAD,)

    def eval_samples(self, global_batch_samples: int) -> dict[str, int]:
        """The whole validation set, unless --eval-iters is 0."""
        if self.valid_images is None or not self.config.training.eval_iters:
            return {}
        return {VALID: whole_batches(len(self.valid_images), global_batch_samples)}

    def build_chunks(
        self, core_config: TransformerConfig, mesh: Mesh, *, entry_layers: frozenset[int]
    ) -> list[vit.ViT]:
        """See ``models.vit.build_chunks``."""
        seed = self.config.training.seed
        return vit.build_chunks(
            self.config.model, core_config, len(self.classes), mesh, seed=seed, masked_layers=entry_layers
        )

    def build_data(
        self, train_samples: int, eval_samples: Mapping[str, int], *, reads: bool
    ) -> tuple[SampleSource | None, Mapping[str, SampleSource]]:
        """The training images in epochs, and the validation images once. Every rank reads: the model is one stage."""
        train = ShuffledEpochs(self.train_images, self.config.training.seed, train_samples)
        valid = self.valid_images
        return train, {} if valid is None else {key: SinglePass(valid, number) for key, number in eval_samples.items()}

    def collate(self, shard: SequenceShard, *, whole_tokens: bool) -> Collate[ImageBatch]:
        """See ``data.images.build_image_batch``."""
        data: ImageDataConfig = self.config.data
        return partial(build_image_batch, mean=data.image_mean, std=data.image_std)

    def _check_normalisation(self) -> None:
        data, channels = self.config.data, self.config.model.num_channels
        for flag, values in (("--image-mean", data.image_mean), ("--image-std", data.image_std)):
            if len(values) not in (1, channels):
                raise UserError(
                    f"{flag} {' '.join(map(str, values))}: has {len(values)} values; give one for all channels, or one "
                    f"for each of --num-channels {channels}"
                )
