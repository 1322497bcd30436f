"""The measured models on the device: ours as a training run builds it, Hugging Face's GPT-2, and a plain PyTorch GPT.

All make the same optimizer step on random tokens: several microbatches, clipping at norm 1, and this project's fused
Adam with weight decay on matrices only. Ours holds bfloat16 weights and fp32 main weights, as Megatron-Core does; the
others compute under autocast over fp32 weights, as their users do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from step_time import contenders as step_time
from step_time.config import StepTimeConfig
from step_time.measure import HUGGING_FACE
from torch import Tensor

from megatron.ltd.data.batch import Batch
from megatron.ltd.parallel.mesh import Mesh

from .cases import Arm, Case
from .config import AS_IN_A_RUN
from .plain_gpt import PlainGPT

_ACTIVATIONS = dict(zip(("hugging_face", "hugging_face_fused"), HUGGING_FACE.values(), strict=True))
_SEED = 1234


Step = Callable[[], float]
StepOf = Callable[[Arm, int | None], Step]
"""From an arm, and a number of microbatches or None for all, to a function that makes one optimizer step and returns
its loss"""


def reason_to_skip(contender: str, device: str) -> str | None:
    """Why this machine cannot measure the contender; None if it can."""
    if contender in ("transformer_engine", "one_sample_graphs") and device != "cuda":
        return "it computes on CUDA"
    package = {"transformer_engine": "transformer_engine", **dict.fromkeys(_ACTIVATIONS, "transformers")}.get(contender)
    if package is not None and importlib.util.find_spec(package) is None:
        return f"the package {package.replace('_', '-')} is not installed"
    return None


@contextmanager
def built(case: Case, mesh: Mesh) -> Iterator[StepOf]:
    """The model of ``case`` for a ``with`` block. Raises ``UserError`` if it cannot be built."""
    if case.contender in AS_IN_A_RUN:
        with _ours(case, mesh) as step_of:
            yield step_of
        return
    yield _other(case, mesh.device)
    if case.contender == "plain_compiled":
        torch.compiler.reset()  # what is compiled holds the model


@contextmanager
def _ours(case: Case, mesh: Mesh) -> Iterator[StepOf]:
    """Model, optimizer and schedule of a training run. An arm's method takes the place of the run's."""
    with step_time.built_run(case.command(Arm()), mesh) as run:
        all_batches = _random_batches(case, mesh.device)

        def step_of(arm: Arm, microbatches: int | None) -> Step:
            method = case.config(arm).build_method()
            plan, batches = method.plan(0), all_batches[:microbatches]

            def step() -> float:
                run.stepper.method = method
                return run.stepper.train(iter(batches), plan, 0, len(batches)).loss

            return step

        yield step_of


def _other(case: Case, device: torch.device) -> StepOf:
    """A model of others in a plain loop; it has one arm."""
    config, batches = _same_shape(case), _random_batches(case, device)
    if case.contender in _ACTIVATIONS:
        model, loss_of = step_time.hugging_face_model(config, device, _ACTIVATIONS[case.contender])
    else:
        model, loss_of = _plain_model(case, device)
    step = step_time.plain_loop(model, loss_of, bf16=True)
    return lambda arm, microbatches: partial(step, batches[:microbatches])


def _same_shape(case: Case) -> StepTimeConfig:
    """The shape as a setting of the step-time benchmark."""
    shape = case.model.shape
    return StepTimeConfig(
        num_layers=shape.num_layers, hidden_size=shape.hidden_size, num_attention_heads=shape.num_attention_heads,
        seq_length=shape.seq_length, vocab_size=shape.vocab_size, micro_batch_size=case.micro_batch_size,
    )  # fmt: skip


def _random_batches(case: Case, device: torch.device) -> list[Batch]:
    """The microbatches of a step: random tokens, the same for every contender, each sample with an id of its own."""
    torch.manual_seed(_SEED)
    batches = [step_time.build_batch(_same_shape(case), device) for _ in range(case.num_microbatches)]
    first_ids = range(0, case.model.step_samples, case.micro_batch_size)
    return [
        replace(batch, sample_ids_B=batch.sample_ids_B + first) for first, batch in zip(first_ids, batches, strict=True)
    ]


def _plain_model(case: Case, device: torch.device) -> tuple[torch.nn.Module, Callable[[Batch], Tensor]]:
    """A GPT in plain PyTorch, and its loss, which is compiled for GPUs."""
    torch.manual_seed(_SEED)
    with device:
        model = PlainGPT(case.model.shape)
    loss: Callable[[Tensor, Tensor], Tensor] = model
    if case.contender == "plain_compiled":
        loss = torch.compile(model, backend="inductor" if device.type == "cuda" else "eager")
    return model, lambda batch: loss(batch.tokens_BS, batch.labels_BS)
