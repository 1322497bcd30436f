"""Numbers of parameters: by place in the model, and split over tensor-parallel processes or whole on each.

    embedding | layer | layer | ... | layer | end          places, over pipeline stages
    [ V/t x H ]  [ H x Q/t ... ]            [ norm, head ]  split over t tensor-parallel processes, or whole

A last stage that is not the first holds a copy of an embedding that the head shares. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.plan.accounting import ModelShape


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters: ``split`` over tensor-parallel processes, and ``whole`` on each of them."""

    split: int = 0
    whole: int = 0

    def __add__(self, other: Parameters) -> Parameters:
        return Parameters(self.split + other.split, self.whole + other.whole)

    def times(self, number: int) -> Parameters:
        """The parameters of ``number`` such parts."""
        return Parameters(self.split * number, self.whole * number)

    @property
    def total(self) -> int:
        """All parameters, each counted once."""
        return self.split + self.whole

    def on_process(self, tensor_parallel_size: int) -> int:
        """Parameters on one process."""
        return self.split // tensor_parallel_size + self.whole


@dataclass(frozen=True)
class ModelParameters:
    """The parameters of a model by place."""

    num_layers: int
    embedding: Parameters
    """Of tokens or patches, positions and sentence types: on the first stage."""
    layer: Parameters
    """Of one layer."""
    end: Parameters
    """The norm after the layers, and the heads: on the last stage."""
    shared: Parameters = Parameters()
    """The part of the embedding that the head shares; a last stage that is not the first has a copy."""

    @property
    def total(self) -> int:
        """All parameters of the model, each counted once."""
        return (self.embedding + self.layer.times(self.num_layers) + self.end).total

    def on_stage(self, num_layers: int, *, first: bool, last: bool) -> Parameters:
        """The parameters of a pipeline stage of ``num_layers`` layers."""
        held = self.layer.times(num_layers)
        if first:
            held += self.embedding
        if last:
            held += self.end if first else self.end + self.shared
        return held


@dataclass(frozen=True)
class ModelSizes:
    """A model's shape, and its parameters by place."""

    shape: ModelShape
    parameters: ModelParameters
    outputs: str
    """What the model's outputs are, such as "vocabulary 50304"."""

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model, exactly."""
        return self.parameters.total


def norm_parameters(hidden_size: int, *, norm_bias: bool) -> Parameters:
    """Parameters of a norm: its weight, and the bias of LayerNorm."""
    return Parameters(whole=hidden_size * (2 if norm_bias else 1))


def layer_parameters(
    shape: ModelShape, *, linear_bias: bool, norm_bias: bool, qkv_bias: bool, head_norms: bool
) -> Parameters:
    """Parameters of one layer. The biases of queries, keys, values and the MLP's first matrix are split, others whole.

    ``linear_bias``: linear layers have biases; ``qkv_bias``: those of queries, keys and values do; ``norm_bias``: norms
    are LayerNorm; ``head_norms``: the queries and keys of each head have a norm.
    """
    hidden, qkv_size = shape.hidden_size, shape.query_size + 2 * shape.key_value_size
    gate_up_size = shape.ffn_hidden_size * (2 if shape.gated_mlp else 1)
    matrices = Parameters(hidden * (qkv_size + gate_up_size + shape.query_size + shape.ffn_hidden_size))
    biases = Parameters(gate_up_size, 2 * hidden) if linear_bias else Parameters()
    norms = norm_parameters(hidden, norm_bias=norm_bias).times(2)
    if head_norms:
        norms += norm_parameters(shape.kv_channels, norm_bias=norm_bias).times(2)
    return matrices + biases + Parameters(qkv_size if qkv_bias else 0) + norms
