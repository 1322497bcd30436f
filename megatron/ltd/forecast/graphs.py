"""What the CUDA graphs of a layer (``layers.graphs``) hold besides its activations: bytes of one process.

As in ``activations``: n tokens that the layer computes, s those of its sequence-parallel share, m those that it attends
to, e bytes per number, H hidden. P parameters of the layer on the process, R channels of a head that are rotated.

    3 s H e     static output, its gradient, and the gradient of the input
    P e         gradients of the weights, in their type
    n m         copy of an explicit mask, one byte for each pair
    4 n R       copy of the rotary angles, in fp32; those of a layer that keeps every token serve all samples

The static input is not among them: backward reads it, so that it is one of the activations. A layer has the graphs of
one K at a time, since those of the K before are gone when it is captured again.

Not here: the graphs' private pools. Activations stay in them between steps, and are counted as those of a layer without
graphs, which are there at the peak too. So does what a layer's backward pass adds, which ``memory`` counts once, for
the layer at the peak. No torch here.
"""

from __future__ import annotations

from megatron.ltd.forecast.activations import Numbers, Share
from megatron.ltd.plan.accounting import ModelShape


def graph_bytes(shape: ModelShape, numbers: Numbers, share: Share, kept_tokens: int, num_weights: int) -> int:
    """Bytes that the graphs of a layer hold which keeps this many tokens of each sample; it has ``num_weights``."""
    tokens = kept_tokens * share.micro_batch
    mask = tokens * kept_tokens if numbers.explicit_mask else 0
    positions = tokens if kept_tokens < shape.seq_length else shape.seq_length
    angles = 4 * positions * round(shape.kv_channels * numbers.rotary_share)
    states = 3 * (tokens // share.sequence) * shape.hidden_size
    return (states + num_weights) * numbers.bytes_each + mask + angles
