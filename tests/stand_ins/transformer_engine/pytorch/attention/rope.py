"""Rotary embeddings applied to queries or keys."""

from __future__ import annotations

import torch
from torch import Tensor

from ...signatures import recorded
from ...unreached import unreached

apply_fused_qkv_rotary_pos_emb = unreached("apply_fused_qkv_rotary_pos_emb")


@recorded("pytorch.attention.rope.apply_rotary_pos_emb")
def apply_rotary_pos_emb(t: Tensor, freqs: Tensor, tensor_format: str, fused: bool) -> Tensor:
    """``t`` [S, B, N, D], whose first channels are rotated by the angles ``freqs`` [S or more, 1, 1, D or fewer].

    As the kernel, it refuses angles that differ between samples.
    """
    assert tensor_format == "sbhd" and fused, "only the fused kernel, in Megatron-Core's layout"
    assert freqs.dim() == 4, "expected 4D tensor"
    assert freqs.shape[1:3] == (1, 1), "expected the second and third dims of the freqs tensor equal 1"
    assert freqs.dtype == torch.float32, "Dtype of the freqs tensor must be float"
    assert t.shape[0] <= freqs.shape[0], "expected freqs tensor has a longer sequence length than input"
    angles = freqs[: t.shape[0]]
    rotated, rest = t.float().split((angles.shape[-1], t.shape[-1] - angles.shape[-1]), dim=-1)
    first, second = rotated.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return torch.cat((rotated * angles.cos() + turned * angles.sin(), rest), dim=-1).to(t.dtype)
