"""The fullest moment of a backward pass through a stage's layers, under any recompute. Bytes, and nothing else.

    forward     a layer leaves what its backward needs, or where it is recomputed its input alone
    backward    from the last layer on: what earlier ones left + this one's, replayed or kept + gradients

    bytes |           .|.                     |
          |        .   | . .                  |   .   .   .   .         each layer is replayed at its turn, and gone
          |     .      |     . .              |  . . . . . . . .
          |  .         |         . .          | . . . . . . . . .
          +---------------------------        +---------------------
            forward      backward               the same, recomputed

No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron.ltd.forecast.activations import LayerBytes
from megatron.ltd.models.config import RecomputeConfig


@dataclass(frozen=True)
class StoredLayer:
    """One layer: its bytes, its input's, and whether that input is among them (a routed layer keeps its part alone)."""

    bytes: LayerBytes
    input: int
    keeps_input: bool


@dataclass(frozen=True)
class Walk:
    """Backward through the layers of a stage: what they have left, and the fullest moment above that."""

    kept: int
    """Left by the forward pass of all of them."""
    peak: int
    """At the fullest moment, all of it."""


def walk_back(layers: Sequence[StoredLayer], recompute: RecomputeConfig) -> Walk:
    """Through ``layers``, first one first."""
    groups = list(_groups(layers, recompute))
    left = [
        group[0].input if replayed else sum(_left(layer, recompute) for layer in group) for replayed, group in groups
    ]
    moments = [0]
    for number, (replayed, group) in enumerate(groups):
        before = sum(left[:number]) + (group[0].input if replayed else 0)
        for place, layer in enumerate(group):
            moments.extend(before + moment for moment in _moments(layer, recompute, replayed=replayed))
            if replayed:  # what a replay keeps of the input is there already
                before += layer.bytes.kept - (layer.input if layer.keeps_input and place == 0 else 0)
            else:
                before += _left(layer, recompute)
    return Walk(sum(left), max(moments))


def _groups(layers: Sequence[StoredLayer], recompute: RecomputeConfig) -> Iterator[tuple[bool, Sequence[StoredLayer]]]:
    """Layers that are replayed together, and those that are not, one by one."""
    number = recompute.recompute_num_layers
    if recompute.recompute_granularity != "full" or number is None:
        yield from ((False, [layer]) for layer in layers)
    elif recompute.recompute_method == "uniform":
        yield from ((True, layers[first : first + number]) for first in range(0, len(layers), number))
    else:
        yield from ((place < number, [layer]) for place, layer in enumerate(layers))


def _dropped(layer: StoredLayer, recompute: RecomputeConfig) -> dict[str, int]:
    """By module, what selective recompute does not keep."""
    if recompute.recompute_granularity != "selective":
        return {}
    sizes = {
        "core_attn": layer.bytes.core,
        "mlp": layer.bytes.mlp,
        "layernorm": layer.bytes.norm_outputs,
    }
    return {module: sizes[module] for module in recompute.recompute_modules or ("core_attn",)}


def _left(layer: StoredLayer, recompute: RecomputeConfig) -> int:
    """What the layer leaves where it is not replayed whole."""
    return layer.bytes.kept - sum(_dropped(layer, recompute).values())


def _moments(layer: StoredLayer, recompute: RecomputeConfig, *, replayed: bool) -> tuple[int, int]:
    """What there is of a layer, gradients included, while its MLP and while its attention goes backward."""
    sizes, dropped = layer.bytes, {} if replayed else _dropped(layer, recompute)
    output = layer.input if replayed or "mlp" in dropped else 0  # of the replay, held while it goes backward
    shared = layer.input if replayed and layer.keeps_input else 0
    at_attention = sizes.kept - sizes.mlp - (sizes.norm_outputs + sizes.residuals) // 2 - shared
    at_mlp = sizes.kept - dropped.get("core_attn", 0) - shared + output
    return at_mlp + sizes.mlp_work, at_attention + sizes.attention_work
