"""Peak memory of the backward pass through the layers of a stage, with any activation recompute, in bytes.

    forward     a layer stores what its backward needs, or only its input if it is recomputed
    backward    from the last layer: stored by earlier layers + this layer, recomputed or stored + gradients

    bytes |           .|.                     |
          |        .   | . .                  |   .   .   .   .         each layer is recomputed at its turn, then freed
          |     .      |     . .              |  . . . . . . . .
          |  .         |         . .          | . . . . . . . . .
          +---------------------------        +---------------------
            forward      backward               the same, recomputed

No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from megatron.ltd.forecast.activations import LayerBytes
from megatron.ltd.models.execution_config import RecomputeConfig


@dataclass(frozen=True)
class StoredLayer:
    """One layer: its bytes, its input's, and whether they include the input (a routed layer stores a part of it)."""

    bytes: LayerBytes
    input: int
    keeps_input: bool


@dataclass(frozen=True)
class Walk:
    """Memory of the layers of a stage: stored by the forward pass, and at the peak of the backward pass."""

    kept: int
    """Stored by the forward pass of all layers."""
    peak: int
    """At the peak of the backward pass, what is stored included."""


def walk_back(layers: Sequence[StoredLayer], recompute: RecomputeConfig) -> Walk:
    """The memory of ``layers``, in forward order."""
    groups = list(_groups(layers, recompute))
    left = [
        group[0].input if recomputed else sum(_left(layer, recompute) for layer in group)
        for recomputed, group in groups
    ]
    moments = [0]
    for earlier, (recomputed, group) in zip(accumulate(left, initial=0), groups, strict=False):
        before = earlier + (group[0].input if recomputed else 0)
        for place, layer in enumerate(group):
            moments.extend(before + moment for moment in _moments(layer, recompute, recomputed=recomputed))
            if recomputed:  # the input, which the recomputed layer also stores, is counted already
                before += layer.bytes.kept - (layer.input if layer.keeps_input and place == 0 else 0)
            else:
                before += _left(layer, recompute)
    return Walk(sum(left), max(moments))


def _groups(layers: Sequence[StoredLayer], recompute: RecomputeConfig) -> Iterator[tuple[bool, Sequence[StoredLayer]]]:
    """Groups of layers: whether a group is recomputed, and its layers; other layers are groups of one."""
    number = recompute.recompute_num_layers
    if recompute.recompute_granularity != "full" or number is None:
        yield from ((False, [layer]) for layer in layers)
    elif recompute.recompute_method == "uniform":
        yield from ((True, layers[first : first + number]) for first in range(0, len(layers), number))
    else:
        yield from ((place < number, [layer]) for place, layer in enumerate(layers))


def _dropped(layer: StoredLayer, recompute: RecomputeConfig) -> dict[str, int]:
    """What selective recompute does not store, by module."""
    if recompute.recompute_granularity != "selective":
        return {}
    sizes = {"core_attn": layer.bytes.core, "mlp": layer.bytes.mlp}
    return {module: sizes[module] for module in recompute.recompute_modules or ("core_attn",)}


def _left(layer: StoredLayer, recompute: RecomputeConfig) -> int:
    """What the layer stores if it is not recomputed as a whole."""
    return layer.bytes.kept - sum(_dropped(layer, recompute).values())


def _moments(layer: StoredLayer, recompute: RecomputeConfig, *, recomputed: bool) -> tuple[int, int]:
    """Memory of a layer, gradients included, during the backward pass of its MLP and of its attention."""
    sizes, dropped = layer.bytes, {} if recomputed else _dropped(layer, recompute)
    output = (
        layer.input if recomputed or "mlp" in dropped else 0
    )  # of the recomputed forward pass, held during backward
    shared = layer.input if recomputed and layer.keeps_input else 0
    at_attention = sizes.kept - sizes.mlp - (sizes.norm_outputs + sizes.residuals) // 2 - shared
    at_mlp = sizes.kept - dropped.get("core_attn", 0) - shared + output
    return at_mlp + sizes.mlp_work, at_attention + sizes.attention_work
