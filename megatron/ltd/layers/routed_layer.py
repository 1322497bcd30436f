"""A transformer layer that computes the kept tokens only.

S sequence, K kept tokens, B micro-batch, H hidden.

    x_SBH ── split ──► kept_KBH ──► the dense layer, unchanged ──► y_KBH ── merge ──► out_SBH
               └──────── tokens that skip the layer, in the same memory ───────┘

``RoutedTransformerLayer`` is a subclass that is used through ``ModuleSpec``: its parameters have the dense layer's
names, so that any checkpoint loads with and without a method. Everything positional is rebuilt for the kept tokens:
they stay in order, so that a causal mask does not change; document and padding masks keep their rows and columns;
rotary angles are those of the true positions. In evaluation, and if the plan keeps every token, only the dense layer
runs.

In an entry layer (``StepPlan.entry_layers``) the kept tokens attend to all tokens, kept or not.

Not here: which tokens are kept (``methods``), and how many (the plan).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)
from torch import Tensor

from megatron.ltd.layers.graphs import GraphedLayer
from megatron.ltd.layers.route import KeptTokens, Place, current_route
from megatron.ltd.parallel.random import seed_weights
from megatron.ltd.routing.gather_scatter import (
    RotaryEmbedding,
    entry_mask,
    gather_mask,
    gather_rotary,
    merge_tokens,
    scatter_tokens,
    split_tokens,
)
from megatron.ltd.routing.sequence_shard import SequenceShard


class RoutedTransformerLayer(TransformerLayer):
    """Megatron-Core's ``TransformerLayer`` on the tokens that the current route keeps.

    ``weights_seed``, which the layer's spec passes, draws the initial weights from a separate stream, so that they are
    the same on every pipeline stage. ``graph_warmup_steps``, if given, has training steps computed by CUDA graphs
    (``graphs``), captured after as many passes.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TransformerLayerSubmodules,
        layer_number: int = 1,
        *,
        pg_collection: ProcessGroupCollection,
        weights_seed: int | None = None,
        graph_warmup_steps: int | None = None,
        vp_stage: int | None = None,
        **kwargs: Any,
    ) -> None:
        offset = get_transformer_layer_offset(config, vp_stage, pg_collection.pp.rank())
        if weights_seed is not None:
            seed_weights(weights_seed, layer_number + offset)
        super().__init__(config, submodules, layer_number, pg_collection=pg_collection, vp_stage=vp_stage, **kwargs)
        context, tensor = pg_collection.cp, pg_collection.tp
        self.mark_gradients_ready: Callable[[RoutedTransformerLayer], None] | None = None
        in_pipeline = config.pipeline_model_parallel_size > 1
        chunk_layers = get_num_layers_to_build(config, vp_stage, pg_collection.pp.rank())
        self.is_causal = self.self_attention.attn_mask_type == AttnMaskType.causal
        self.feeds_another_stage = in_pipeline and layer_number == chunk_layers
        attention_shard = own_shard = SequenceShard.of(context.rank(), context.size())
        if config.sequence_parallel:
            own_shard = SequenceShard.of(context.rank(), context.size(), tensor.rank(), tensor.size())
        self.place = Place(range(offset + 1, offset + chunk_layers + 1), own_shard, attention_shard)
        self._graph_warmup_steps = graph_warmup_steps
        self._graphed: GraphedLayer | None = None

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's output, [S, B, H], and the cross-attention context, None here.

        If tokens are dropped the output overwrites ``hidden_states`` where ``split_tokens`` allows it.

        ``attention_mask`` is [B or 1, 1, S, S] or [B, 1, 1, S], True where attending is forbidden, or None for the
        attention's mask type. Under context and sequence parallelism the hidden states are this rank's share of the
        sequence; rotary angles and the rows of the mask are those of its context rank, since attention gathers what
        sequence parallelism splits.
        """
        route = current_route() if self.training else None
        if route is not None and not route.executes(self.layer_number):
            return self._skip(hidden_states), None
        self._scale_by(1.0 if route is None else route.keep_probability(self.layer_number))
        kept = route.kept_tokens(self.layer_number, self.place) if route is not None else None
        if route is None or kept is None:
            compute = super().forward if route is None else self._compute
            return compute(hidden_states, attention_mask=attention_mask, rotary_pos_emb=rotary_pos_emb, **kwargs)
        if self.layer_number in route.plan.entry_layers:
            mask = None
            if attention_mask is not None or self.is_causal:
                positions_BQ = self.place.attention_shard.take(kept.kept_BK, 1)
                mask = entry_mask(attention_mask, positions_BQ, kept.attending_BK, route.plan.seq_length)
            return self._enter(hidden_states, mask, rotary_pos_emb, kept, **kwargs)
        kwargs["attention_mask"] = gather_mask(attention_mask, kept.kept_BK, kept.attending_BK)
        kwargs["rotary_pos_emb"] = gather_rotary(rotary_pos_emb, kept.attending_BK)
        if route.method.facts.kernels == "triton":
            return self._forward_sums(hidden_states, kept, **kwargs)
        kept_KBH, rest_SBH = split_tokens(hidden_states, kept.rows)
        computed_KBH, context = self._compute(kept_KBH, **kwargs)
        return merge_tokens(rest_SBH, computed_KBH, kept.rows), context

    def _compute(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The dense layer on these tokens in a training step, by CUDA graphs if the layer has them."""
        if self._graph_warmup_steps is None or not torch.is_grad_enabled():
            return super().forward(hidden_states, **kwargs)
        if self._graphed is None:
            self._graphed = GraphedLayer(self, super().forward, self._graph_warmup_steps)
        self._await_weights()
        return self._graphed(hidden_states, **kwargs)

    def _forward_sums(self, hidden_SBH: Tensor, kept: KeptTokens, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """``forward`` on the kept tokens with Triton's kernels, which add the residuals where they write."""
        from megatron.ltd.routing.split_sums import merge_sum, split_for_sum  # imports Triton

        first, last = self.self_attn_bda, self.mlp_bda
        kept_KBH, residual_KBH, rest_SBH = split_for_sum(hidden_SBH, kept.rows)
        first.residual_KBH, last.holds = residual_KBH, True
        try:
            computed_KBH, context = super().forward(kept_KBH, **kwargs)
            held = last.held
        finally:
            first.residual_KBH, last.holds, last.held = None, False, None
        if held is None:
            return merge_tokens(rest_SBH, computed_KBH, kept.rows), context
        sums = (held.residual_KBH, held.x_KBH, held.bias_H)
        return merge_sum(rest_SBH, *sums, kept.rows, rounds=held.rounds), context

    def _enter(
        self,
        hidden_SBH: Tensor,
        mask: Tensor | None,
        rotary: RotaryEmbedding | None,
        kept: KeptTokens,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """An entry layer, in which the queries of the kept tokens attend to the keys and values of all tokens.

        Norm, keys and values are computed for all tokens; queries, residual, MLP and output for the kept ones.
        """
        rotary_of_queries_and_keys = None
        if rotary is not None:
            of_queries, of_keys = rotary if isinstance(rotary, tuple) else (rotary, rotary)
            rotary_of_queries_and_keys = (gather_rotary(of_queries, kept.attending_BK), of_keys)
        self.self_attention.query_BK, self.self_attn_bda.kept_BK = kept.attending_BK, kept.own_BK
        try:
            computed_KBH, context = super().forward(
                hidden_SBH, attention_mask=mask, rotary_pos_emb=rotary_of_queries_and_keys, **kwargs
            )
        finally:
            self.self_attention.query_BK = self.self_attn_bda.kept_BK = None
        return scatter_tokens(hidden_SBH, computed_KBH, kept.own_BK), context

    def _scale_by(self, keep_probability: float) -> None:
        self.self_attn_bda.keep_probability = self.mlp_bda.keep_probability = keep_probability

    def _skip(self, hidden_states: Tensor) -> Tensor:
        """Return the input: the layer is skipped.

        Every rank skips it, but its collectives must still happen in order: weights for which it would have waited are
        gathered, and its gradients, which are zero, are marked as ready in the backward pass.
        """
        self._await_weights()
        mark_ready = self.mark_gradients_ready
        # Not in the forward pass of a layer that is recomputed: the recomputation, which has gradients, marks them too.
        if mark_ready is not None and hidden_states.requires_grad and torch.is_grad_enabled():
            hidden_states.register_hook(lambda gradient: mark_ready(self))
        # Megatron-Core frees the memory of what a stage has sent, but the input is still needed. So is that of a
        # function that is recomputed, and the next layer may write to what this one returns.
        still_needed = self.feeds_another_stage or not torch.is_grad_enabled()
        return hidden_states.clone() if still_needed else hidden_states

    def _await_weights(self) -> None:
        """Run the hooks of the modules inside, which gather weights or wait for them; those of the layer have run."""
        for module in self.modules():
            if module is not self:
                for hook in module._forward_pre_hooks.values():
                    hook(module, ())
