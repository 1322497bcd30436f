"""A transformer layer that computes on the kept tokens only.

S sequence, K kept tokens, B micro-batch, H hidden.

    x_SBH ── split ──► kept_KBH ──► the dense layer, unchanged ──► y_KBH ── merge ──► out_SBH
               └───────────────── tokens that skip the layer ────────────────┘

``RoutedTransformerLayer`` is a subclass, put in by ``ModuleSpec``: its parameters carry the dense layer's names, so
that any checkpoint loads with and without a method. Everything positional is rebuilt for the kept tokens: a causal
mask needs nothing (they stay in order), document and padding masks keep their rows and columns, rotary angles are
those of the true positions. In evaluation, and where the plan keeps every token, the dense layer runs as if this class
were not there.

Not here: which tokens are kept (the method's business) and how many (the plan's).
"""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from megatron.ltd.layers.route import current_route
from megatron.ltd.routing import flat_rows, gather_mask, gather_rotary, merge_tokens, own_share, split_tokens


class RoutedTransformerLayer(TransformerLayer):
    """Megatron-Core's ``TransformerLayer`` on the tokens that the current route keeps for it."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's output, [S, B, H], and the cross-attention context, None here.

        ``attention_mask`` is [B or 1, 1, S, S] or [B, 1, 1, S], True where attending is forbidden, or None for causal.
        """
        route = current_route() if self.training else None
        kept_BK = route.kept_tokens(self.layer_number) if route is not None else None
        if kept_BK is None:
            return super().forward(
                hidden_states, attention_mask=attention_mask, rotary_pos_emb=rotary_pos_emb, **kwargs
            )
        own_BK = self._own_share(kept_BK, hidden_states.shape[0])
        rows = flat_rows(own_BK)
        kept_KBH, rest_SBH = split_tokens(hidden_states, own_BK, rows)
        computed_KBH, context = super().forward(
            kept_KBH,
            attention_mask=gather_mask(attention_mask, kept_BK),
            rotary_pos_emb=gather_rotary(rotary_pos_emb, kept_BK),
            **kwargs,
        )
        return merge_tokens(rest_SBH, computed_KBH, own_BK, rows), context

    def _own_share(self, kept_BK: Tensor, own_seq_length: int) -> Tensor:
        """Of the kept tokens those that this rank holds: all of them, or its shard's under sequence parallelism.

        Attention gathers the shards in rank order, so the whole of them stays in order and masks and rotary angles are
        those of ``kept_BK``.
        """
        if not self.config.sequence_parallel:
            return kept_BK
        shards = self.tp_group.size()
        return own_share(kept_BK, self.tp_group.rank(), shards, own_seq_length * shards)
