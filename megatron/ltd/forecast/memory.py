"""Peak memory of one GPU during a step, by part, for each pipeline stage.

P parameters of the process, e bytes of a weight (4 in fp32, 2 in bf16 and fp16), d data-parallel size x context size.

    weights       P e                     and 2 bytes of each weight in fp8: Transformer Engine's copy and its transpose
    gradients     4 P                     Megatron-Core's buffer in fp32; 2 P with --grad-reduce-in-bf16
    optimizer     8 P   (e = 4)           two moments, fp32
                  12 P  (e = 2)           and main weights, fp32           both / d with the distributed optimizer
    activations   stored for backward by layers (``activations``), of all microbatches in flight, and by the head:
                  1F1B: min(microbatches, stages - stage); a recomputed layer stores only its input (``peak``)
    at work       added at the peak: logits, loss and their gradients; or a recomputed layer and its gradients; or
                  the gradient of the embedding
    graphs        with --cuda-graph-impl: what the graphs of layers hold besides the activations (``graphs``)

The peak is taken over the stages of the plan: memory grows with the kept tokens, and a run that ends dense needs as
much as a dense run. Layer dropping does not reduce the peak: a microbatch may run all layers.

The kernels are those of a GPU unless ``--device cpu`` is given: flash attention also with dropout, and one byte for
each element of a dropout mask. On a CPU the count agrees with torch's allocator (``tools/benchmark/memory.py``). It has
not been measured on GPUs; fp8, and Transformer Engine's fused norms and activations, may store less than is counted.

Not included, because they are not tensors of the run: CUDA's context and libraries (about 1 GiB), NCCL's buffers,
workspaces of kernels, prefetched batches, and fragmentation (plan for 10 % more).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from megatron.ltd.forecast.activations import Numbers, Share, layer_bytes, norm_copies
from megatron.ltd.forecast.graphs import graph_bytes
from megatron.ltd.forecast.layout import Layout
from megatron.ltd.forecast.peak import StoredLayer, walk_back
from megatron.ltd.plan.run_plan import RunPlan
from megatron.ltd.schedules.step_plan import StepPlan

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig
    from megatron.ltd.plan.parameters import ModelSizes


STATES = ("weights", "gradients", "optimizer")
"""The parts that last as long as the run."""


@dataclass(frozen=True)
class StageMemory:
    """Peak memory of each process of one pipeline stage, in bytes by part."""

    number: int
    """1-based."""
    layers: tuple[int, ...]
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Of all parts, in bytes."""
        return sum(self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"stage": self.number, "layers": list(self.layers), "bytes": self.parts, "total_bytes": self.total}


def stage_memory(config: RunConfig, sizes: ModelSizes, layout: Layout, plan: RunPlan) -> tuple[StageMemory, ...]:
    """The memory of a process of each pipeline stage of the run, first stage first."""
    most_samples = max(stage.global_batch_samples for stage in plan.stages)
    num_microbatches = most_samples // (config.training.micro_batch_size * layout.data_parallel_size)
    steps = _largest(stage.plan for stage in plan.stages)
    num_stages = config.parallel.pipeline_model_parallel_size
    return tuple(_Stage(config, sizes, layout, number, num_microbatches).memory(steps) for number in range(num_stages))


def _largest(plans: Iterable[StepPlan]) -> list[StepPlan]:
    """The plans that can have the highest peak: of those that drop tokens in the same layers the one that drops fewest.

    A plan whose layers drop different numbers of tokens is compared with no other.
    """
    largest: dict[Hashable, StepPlan] = {}
    for plan in plans:
        fewer = {work.kept_tokens for work in plan.work} - {plan.seq_length}
        dropping = plan.kept_tokens if len(fewer) > 1 else tuple(n in fewer for n in plan.kept_tokens)
        known = largest.setdefault((dropping, plan.entry_layers), plan)
        if plan.min_kept_tokens > known.min_kept_tokens:
            largest[dropping, plan.entry_layers] = plan
    return list(largest.values())


@dataclass(frozen=True)
class _Stage:
    """One 0-based pipeline stage of a run."""

    config: RunConfig
    sizes: ModelSizes
    layout: Layout
    number: int
    num_microbatches: int

    def memory(self, steps: list[StepPlan]) -> StageMemory:
        """Its memory in the step with the highest peak."""
        parts = max((self._of_step(step) for step in steps), key=lambda parts: sum(parts.values()))
        return StageMemory(self.number + 1, tuple(self.layout.layers_of(self.number)), {**self._states(), **parts})

    def _of_step(self, step: StepPlan) -> dict[str, int]:
        """What depends on the kept tokens."""
        kept, peak = self._activations(step)
        parts = {"activations": kept, "at work": peak - kept}
        if self.config.model.cuda_graph_impl != "none":
            parts["graphs"] = self._graphs(step)
        return parts

    def _graphs(self, step: StepPlan) -> int:
        """Of all layers that have graphs, which entry layers do not."""
        num_weights = self.sizes.parameters.layer.on_process(self._share.tensor)
        return sum(
            graph_bytes(self.sizes.shape, self._numbers, self._share, step.kept_tokens[number - 1], num_weights)
            for number in self.layout.layers_of(self.number)
            if number not in step.entry_layers
        )

    @property
    def _is_first(self) -> bool:
        return self.number == 0

    @property
    def _is_last(self) -> bool:
        return self.number == self.config.parallel.pipeline_model_parallel_size - 1

    @cached_property
    def _numbers(self) -> Numbers:
        config, model = self.config, self.config.model
        on_cpu, fused = config.parallel.device == "cpu", model.bias_swiglu_fusion
        rotary = getattr(model, "position_embedding_type", "none") == "rope"
        return Numbers(
            bytes_each=4 if config.precision.dtype == "float32" else 2,
            on_cpu=on_cpu,
            fused_gate=not on_cpu if fused is None else fused,
            hidden_dropout=model.hidden_dropout > 0.0,
            attention_dropout=model.attention_dropout > 0.0,
            rotary_share=model.rotary_percent if rotary else 0.0,
            rms_norm=model.normalization == "RMSNorm",
            head_norms=model.qk_layernorm,
            explicit_mask=getattr(config.data, "reset_attention_mask", False) or self._pads,
        )

    @property
    def _pads(self) -> bool:
        """Whether samples are padded and have a mask: those of text encoders."""
        return not self.sizes.shape.causal and not self.sizes.shape.patch_values

    @cached_property
    def _share(self) -> Share:
        parallel = self.config.parallel
        tensor = parallel.tensor_model_parallel_size
        return Share(
            micro_batch=self.config.training.micro_batch_size,
            tensor=tensor,
            sequence=tensor if parallel.sequence_parallel else 1,
            context=parallel.context_parallel_size,
        )

    @property
    def _gradient_bytes(self) -> int:
        return 2 if self.config.precision.grad_reduce_in_bf16 else 4

    def _states(self) -> dict[str, int]:
        """Weights, gradients and optimizer."""
        layers, sizes = self.layout.layers_of(self.number), self.sizes.parameters
        parameters = sizes.on_stage(len(layers), first=self._is_first, last=self._is_last)
        held, each = parameters.on_process(self._share.tensor), self._numbers.bytes_each
        in_fp8 = self.config.precision.layers_in_fp8(self.config.model.num_layers)
        copies = 2 * sizes.layer.times(sum(number in in_fp8 for number in layers)).on_process(self._share.tensor)
        optimizer = held * (8 if each == 4 else 12)
        if self.config.parallel.use_distributed_optimizer:
            optimizer //= self.layout.data_parallel_size * self._share.context
        return {"weights": held * each + copies, "gradients": held * self._gradient_bytes, "optimizer": optimizer}

    @cached_property
    def _row(self) -> int:
        """Bytes of one set of hidden states, [S, B, H], on this process."""
        shape, share = self.sizes.shape, self._share
        tokens = shape.seq_length * share.micro_batch // (share.context * share.sequence)
        return tokens * shape.hidden_size * self._numbers.bytes_each

    @cached_property
    def _embedding_gradient(self) -> int:
        """Bytes of one gradient of the word embedding, in the type of the weights."""
        return self.sizes.parameters.embedding.split // self._share.tensor * self._numbers.bytes_each

    def _activations(self, step: StepPlan) -> tuple[int, int]:
        """Stored for backward, and at the peak, without the states [bytes]."""
        chunks = [self._chunk(step, layers) for layers in self._chunks()]
        in_flight = list(self._in_flight())
        walks = [walk_back(chunk, self.config.recompute) for chunk in chunks]
        masks = self._row // (1 if self._numbers.on_cpu else self._numbers.bytes_each)
        entrance = masks if self._is_first and self._numbers.hidden_dropout else 0
        kept = sum(walks[chunk].kept + (entrance if chunk == 0 else 0) for chunk in in_flight)
        moments = [kept - walks[-1].kept + walks[-1].peak + self._held_gradient + self._messages]
        if self._is_last:
            head_kept, head_work = self._head()
            kept += head_kept
            moments.append(kept + head_work + self._messages)
        if self._is_first:
            moments.append(self._held_gradient + self._embedding_gradient + self._row)
        return kept, max(kept, *moments)

    @property
    def _held_gradient(self) -> int:
        """The gradient of a shared embedding from the output, held until the input's is added."""
        return (
            self._embedding_gradient if self._is_first and self._is_last and self.sizes.parameters.shared.split else 0
        )

    @property
    def _messages(self) -> int:
        """Hidden states and gradients that are sent to and from other pipeline stages while backward runs."""
        if self._is_first and self._is_last:
            return 0
        return self._row * self.layout.num_chunks * (1 if self._is_last else 2)

    def _chunks(self) -> list[list[int]]:
        layers, number = self.layout.layers_of(self.number), self.layout.num_chunks
        size = len(layers) // number
        return [layers[first : first + size] for first in range(0, len(layers), size)]

    def _in_flight(self) -> Iterator[int]:
        """The chunks of the microbatches in flight when the first backward pass starts."""
        stages, chunks = self.config.parallel.pipeline_model_parallel_size, self.layout.num_chunks
        ahead = stages - self.number - 1
        if chunks > 1:
            ahead = 2 * ahead + (chunks - 1) * stages
        for place in range(min(ahead + 1, self.num_microbatches * chunks)):
            yield place // stages % chunks

    def _chunk(self, step: StepPlan, layers: list[int]) -> list[StoredLayer]:
        shape = self.sizes.shape
        kinds = {
            (kept_tokens, enters): StoredLayer(
                layer_bytes(shape, self._numbers, self._share, kept_tokens, attends_to_all=enters),
                self._row,
                enters or kept_tokens == shape.seq_length,
            )
            for kept_tokens, _, enters in step.work
        }
        return [kinds[step.kept_tokens[number - 1], number in step.entry_layers] for number in layers]

    def _head(self) -> tuple[int, int]:
        """Stored by the head of the model, and added at its peak [bytes]."""
        shape, row, each = self.sizes.shape, self._row, self._numbers.bytes_each
        kept = (2 + 3 * shape.head_layers) * row + row // each * norm_copies(self._numbers)
        if shape.head_tokens is not None:
            return kept, 2 * row
        share = self._share
        logits = shape.seq_length * share.micro_batch // share.context * shape.vocab_size // share.tensor
        weight = shape.vocab_size * shape.hidden_size // share.tensor * each
        gathered = row * share.sequence if share.sequence > 1 else 0
        loss = logits * (4 if each == 4 else 6)
        if shape.head_layers and each == 4:
            loss = 2 * loss  # logits before and after their bias
        return kept, gathered + max(loss, logits * each + row * share.sequence + weight)
