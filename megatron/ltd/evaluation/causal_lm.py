"""A GPT for evaluation: hidden states of a batch, and log-probabilities or logits at selected positions.

B samples, S tokens, H hidden, N positions in texts, V vocabulary.

    tokens_BS ──► embedding ──► layers ──► hidden_SBH ──► N selected positions ──► output matrix
                                                                                     ├─► log p(target_N)
                                                                                     └─► logits_NV

The output matrix is most of the work of a small model, and its logits most of the memory, so they are computed only
where they are needed. Samples are padded on the right; attention is causal, so no token sees the padding.

The model may come from a checkpoint or be in training. Every rank of its tensor-parallel group calls each method with
the same arguments. Under sequence parallelism the sequence is gathered after the layers. Not supported: pipeline and
context parallelism, where no process has a whole forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, gather_from_tensor_model_parallel_region
from torch import Tensor

from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.vocab_parallel import target_log_probabilities
from megatron.ltd.layers.attention import FusedAttention
from megatron.ltd.layers.key_value_cache import KeyValueCache
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.fp8 import without_fp8
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.routing.gather_scatter import RotaryEmbedding, gather_rotary

_LOGITS_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits of a rank that are computed at a time, in fp32: 16 MiB, which fit into the caches of a CPU, and 256 MiB."""


class CausalLM:
    """``model``, unwrapped. Its vocabulary has the ids below ``num_token_ids``; it takes ``max_length`` tokens.

    The ids below ``num_text_ids`` (by default all) are those of the tokenizer; only they are generated.
    """

    def __init__(
        self, model: GPTModel, config: ModelConfig, num_token_ids: int, mesh: Mesh, *, num_text_ids: int | None = None
    ) -> None:
        if mesh.pipeline_parallel_size > 1 or mesh.context_parallel_size > 1:
            flag = "--pipeline-model-parallel-size" if mesh.pipeline_parallel_size > 1 else "--context-parallel-size"
            raise UserError(
                f"{flag}: must be 1 for evaluation during training; save a checkpoint and score it with "
                "tools/evaluate.py, which loads it from any layout"
            )
        self.model = model
        self.num_token_ids = num_token_ids
        self.num_text_ids = num_token_ids if num_text_ids is None else num_text_ids
        self.max_length = config.learned_positions or config.seq_length
        self.mesh = mesh
        self.group = mesh.groups.tp
        self.sequence_parallel = bool(model.config.sequence_parallel)
        attentions = [layer.self_attention.core_attention for layer in model.decoder.layers]
        self.can_cache = not self.sequence_parallel and all(isinstance(one, FusedAttention) for one in attentions)

    @property
    def device(self) -> torch.device:
        return self.mesh.device

    def padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Token ids [B, S] of texts of different lengths, padded on the right."""
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No dropout, no gradients and no fp8 inside the block; the model is as before after it."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), without_fp8(self.model):
                yield
        finally:
            self.model.train(was_training)

    def hidden_states(self, tokens_BS: Tensor) -> Tensor:
        """Hidden states [S, B, H] after the last norm, of tokens at positions 0, 1, ..."""
        num_samples, length = tokens_BS.shape
        assert length <= self.max_length, (length, self.max_length)
        if self.sequence_parallel:  # each rank computes an equal share
            tokens_BS = F.pad(tokens_BS, (0, -length % self.group.size()))
        padded_length = tokens_BS.shape[1]
        positions_S = torch.arange(padded_length, device=tokens_BS.device).clamp_(max=self.max_length - 1)
        hidden_SBH = self._decode(tokens_BS, positions_S.expand(num_samples, -1), self._rotary(padded_length))
        if self.sequence_parallel:
            hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH, group=self.group)
        return hidden_SBH[:length]

    def next_hidden_states(self, tokens_BS: Tensor, positions_BS: Tensor, cache: KeyValueCache) -> Tensor:
        """Hidden states [S, B, H] of tokens at these positions, which follow those in ``cache``.

        Padding may exceed the length of the model.
        """
        assert self.can_cache, "use hidden_states"
        with cache.reading(positions_BS):
            positions_BS = positions_BS.clamp(max=self.max_length - 1)
            return self._decode(tokens_BS, positions_BS, gather_rotary(self._rotary(self.max_length), positions_BS))

    def log_probabilities(self, hidden_NH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probability [nat] of each target, and whether no token is likelier; see ``vocab_parallel``."""
        weight_vH = self._output_weight()
        rows = max(1, _LOGITS_AT_ONCE[self.device.type] // weight_vH.shape[0])
        parts = [
            target_log_probabilities(F.linear(hidden, weight_vH), targets, self.group, self.num_token_ids)
            for hidden, targets in zip(hidden_NH.split(rows), targets_N.split(rows), strict=True)
        ]
        log_probabilities, are_likeliest = zip(*parts, strict=True)
        return torch.cat(log_probabilities), torch.cat(are_likeliest)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits of every token that can be text, fp32 [N, V], on every rank."""
        logits_NV = gather_from_tensor_model_parallel_region(F.linear(hidden_NH, self._output_weight()), self.group)
        return logits_NV[:, : self.num_text_ids].float()

    def _decode(self, tokens_BS: Tensor, positions_BS: Tensor, rotary: RotaryEmbedding | None) -> Tensor:
        embedded_SBH = self.model.embedding(input_ids=tokens_BS, position_ids=positions_BS)
        return self.model.decoder(hidden_states=embedded_SBH, attention_mask=None, rotary_pos_emb=rotary)

    def _rotary(self, length: int) -> Tensor | None:
        """Rotary embeddings [length, 1, 1, D] of the first positions; None if the model has none."""
        return self.model.rotary_pos_emb(length) if self.model.position_embedding_type == "rope" else None

    def _output_weight(self) -> Tensor:
        if self.model.share_embeddings_and_output_weights:
            return self.model.shared_embedding_or_output_weight()
        return self.model.output_layer.weight
