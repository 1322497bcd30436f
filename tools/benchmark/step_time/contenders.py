"""The measured models: ours, built as in a training run, and Hugging Face's GPT-2 of the same shape.

All perform the same optimizer step on the same tokens: forward, loss, backward, clipping at norm 1, and this project's
fused Adam with weight decay on matrices only. Our dense and method variants are one model, because the plan is an
argument of a step.

    ours              the Stepper of a training run, with Megatron-Core's schedule, DDP and optimizer
    Hugging Face      a plain loop around GPT2LMHeadModel with scaled_dot_product_attention; with --bf16, autocast
                      over fp32 weights

Both use GELU's tanh approximation. ``gelu_new``, the default of GPT2Config, consists of several elementwise operations;
``gelu_pytorch_tanh`` is the same function in one kernel, which our model also calls.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from megatron.ltd.data.batch import Batch
from megatron.ltd.errors import UserError
from megatron.ltd.layers import route
from megatron.ltd.methods.base import Dense, Method, ModelFacts, Samples
from megatron.ltd.methods.layer_drop.method import LayerDrop, LayerDropConfig
from megatron.ltd.methods.random_ltd.method import RandomLTD, RandomLTDConfig
from megatron.ltd.methods.token_bypass.method import TokenBypass, TokenBypassConfig
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.execution_config import PrecisionConfig, RecomputeConfig
from megatron.ltd.models.gpt import build_chunks
from megatron.ltd.models.transformer import transformer_config
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.config import OptimizerConfig
from megatron.ltd.routing.gather_scatter import merge_tokens, split_tokens
from megatron.ltd.schedules.step_plan import StepPlan
from megatron.ltd.training.adam import FusedAdam
from megatron.ltd.training.objective import CausalLM
from megatron.ltd.training.optimizer import build_optimizer, wrap_chunks
from megatron.ltd.training.step import Stepper

from .config import StepTimeConfig

OPTIMIZER = OptimizerConfig(lr=1e-4)


def model_config(config: StepTimeConfig) -> ModelConfig:
    """The configuration of our GPT-2 of this shape."""
    return ModelConfig(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        seq_length=config.seq_length,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        openai_gelu=True,
        transformer_impl=config.transformer_impl,
    )


def facts_of(config: StepTimeConfig) -> ModelFacts:
    """The facts about the model that methods need."""
    return ModelFacts(config.num_layers, config.seq_length, config.seed)


def build_layer_drop(config: StepTimeConfig, executed_layers: int) -> LayerDrop:
    """Layer dropping that runs ``executed_layers`` layers on average, each with the same probability."""
    flags = LayerDropConfig(
        layer_drop=True, layer_drop_theta=executed_layers / config.num_layers, layer_drop_gamma=0.0,
        layer_drop_direction="rising", layer_drop_by_depth="uniform",
    )  # fmt: skip
    return LayerDrop.build(flags, facts_of(config))


def build_token_bypass(config: StepTimeConfig) -> TokenBypass:
    """TokenBypass as in its paper: half of the tokens are kept, by importance."""
    flags = TokenBypassConfig(token_bypass=True, token_bypass_kept_tokens=config.seq_length // 2)
    return TokenBypass.build(flags, facts_of(config))


def build_random_ltd(config: StepTimeConfig, block_size: int) -> Method:
    """random-LTD on all layers but the first and the last; its schedule is not used."""
    flags = RandomLTDConfig(
        random_ltd=True, ltd_min_kept_tokens=config.seq_length, ltd_growth_steps=1, ltd_granularity=block_size,
        ltd_block_size=block_size,
    )  # fmt: skip
    return RandomLTD.build(flags, facts_of(config))


def plan_of(config: StepTimeConfig, kept_tokens: int) -> StepPlan:
    """The plan of a step whose middle layers keep ``kept_tokens`` tokens; the step is dense if these are all tokens."""
    middle = (kept_tokens,) * (config.num_layers - 2)
    kept = (config.seq_length, *middle, config.seq_length)
    return StepPlan(config.seq_length, kept, (1.0,) * config.num_layers)


def build_batch(config: StepTimeConfig, device: torch.device) -> Batch:
    """A batch of random tokens that all count in the loss."""
    shape = (config.micro_batch_size, config.seq_length)
    tokens_BT = torch.randint(config.vocab_size, (shape[0], shape[1] + 1), device=device)
    return Batch(
        tokens_BS=tokens_BT[:, :-1].contiguous(),
        labels_BS=tokens_BT[:, 1:].contiguous(),
        loss_mask_BS=torch.ones(shape, device=device),
        position_ids_BS=torch.arange(shape[1], device=device).expand(shape).contiguous(),
        sample_ids_B=torch.arange(shape[0], device=device),
    )


def build_ours(config: StepTimeConfig, batch: Batch, mesh: Mesh) -> Callable[..., float]:
    """A function that performs one optimizer step of our GPT and returns the loss. Each call uses new sample ids.

    Its arguments are a plan, the method of the plan, and the number of layers to run: if the method varies it from step
    to step, the next step with this number is used.
    """
    route.install()
    model, parallel, precision = model_config(config), ParallelConfig(), PrecisionConfig(bf16=config.bf16)
    core_config = transformer_config(model, parallel, precision, RecomputeConfig(), mesh)
    wrapped = wrap_chunks(
        build_chunks(model, core_config, config.vocab_size, mesh, seed=config.seed), parallel, precision
    )
    stepper = Stepper(
        wrapped,
        build_optimizer(wrapped, OPTIMIZER, precision, parallel),
        dense := Dense(facts_of(config)),
        mesh,
        CausalLM(),
        seed=config.seed,
        micro_batch_size=config.micro_batch_size,
        seq_length=config.seq_length,
    )
    num_steps = 0
    learned_V = torch.full((config.vocab_size,), 10.0, dtype=torch.float64, device=batch.tokens_BS.device)

    def step(plan: StepPlan, method: Method = dense, executed_layers: int | None = None) -> float:
        nonlocal num_steps
        stepper.method = method
        if executed_layers is not None:
            num_steps = next(n for n in itertools.count(num_steps) if _depth(method, plan, n) == executed_layers)
        sample_ids_B = batch.sample_ids_B + num_steps * config.micro_batch_size
        microbatch = dataclasses.replace(batch, sample_ids_B=sample_ids_B, whole_tokens_BS=batch.tokens_BS)
        result = stepper.train(iter([microbatch]), plan, num_steps, 1, learned_V if method.observes else None)
        num_steps += 1
        return result.loss

    return step


def _depth(method: Method, plan: StepPlan, step: int) -> int:
    """The number of layers that run in the step's only microbatch."""
    chances = enumerate(plan.keep_probability, start=1)
    return sum(method.executes(step, 0, layer_number, probability) for layer_number, probability in chances)


def build_hugging_face(config: StepTimeConfig, batch: Batch, activation: str) -> Callable[[], float]:
    """A function that performs one optimizer step of ``GPT2LMHeadModel`` and returns the loss.

    Raises ``UserError`` without transformers.
    """
    model, loss_of = hugging_face_model(config, batch.tokens_BS.device, activation)
    return partial(plain_loop(model, loss_of, bf16=config.bf16), [batch])


Loss = Callable[[Batch], Tensor]
"""The loss of a microbatch"""


def hugging_face_model(config: StepTimeConfig, device: torch.device, activation: str) -> tuple[torch.nn.Module, Loss]:
    """``GPT2LMHeadModel`` on ``device``, and its loss. Raises ``UserError`` without transformers."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        raise UserError("the package transformers is not installed: run pip install transformers") from None

    gpt2_config = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.seq_length,
        n_embd=config.hidden_size,
        n_layer=config.num_layers,
        n_head=config.num_attention_heads,
        activation_function=activation,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="sdpa",
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(config.seed)
    with device:
        model = GPT2LMHeadModel(gpt2_config).train()
    model.loss_type = "ForCausalLM"  # the default, which would print a warning
    return model, lambda batch: model(input_ids=batch.tokens_BS, labels=batch.tokens_BS).loss


def plain_loop(model: torch.nn.Module, loss_of: Loss, *, bf16: bool) -> Callable[[Sequence[Batch]], float]:
    """A function that performs one optimizer step over microbatches in a plain loop, and returns the mean loss.

    With ``bf16`` it computes under autocast over fp32 weights.
    """
    parameters = list(model.parameters())
    groups = [
        {
            "params": [parameter for parameter in parameters if parameter.dim() > 1],
            "weight_decay": OPTIMIZER.weight_decay,
        },
        {"params": [parameter for parameter in parameters if parameter.dim() == 1], "weight_decay": 0.0},
    ]
    betas = (OPTIMIZER.adam_beta1, OPTIMIZER.adam_beta2)
    optimizer = FusedAdam(groups, lr=OPTIMIZER.lr, betas=betas, eps=OPTIMIZER.adam_eps)
    device_type = parameters[0].device.type

    def precision() -> contextlib.AbstractContextManager[object]:
        return torch.autocast(device_type, torch.bfloat16) if bf16 else contextlib.nullcontext()

    def step(batches: Sequence[Batch]) -> float:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=parameters[0].device)
        for batch in batches:
            with precision():
                loss = loss_of(batch) / len(batches)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(parameters, OPTIMIZER.clip_grad)
        optimizer.step()
        return total.item()

    return step


def build_routing(config: StepTimeConfig, batch: Batch) -> Callable[[Method, int], Tensor]:
    """A function that performs only the sampling, gather and scatter of a method's step, forward and backward.

    It covers all routed layers, but the layers compute nothing: they return their inputs.
    """
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    size = (config.seq_length, config.micro_batch_size, config.hidden_size)
    hidden_SBH = torch.randn(size, device=batch.tokens_BS.device, dtype=dtype, requires_grad=True)
    grad_SBH = torch.randn_like(hidden_SBH)

    def route_all(method: Method, kept_tokens: int) -> Tensor:
        flowing_SBH: Tensor = hidden_SBH
        drawn = route.Route(plan_of(config, kept_tokens), method, Samples(batch.sample_ids_B))
        for layer_number in range(2, config.num_layers):
            kept = drawn.kept_tokens(layer_number)
            part_KBH, rest_SBH = split_tokens(flowing_SBH, kept.rows)
            flowing_SBH = merge_tokens(rest_SBH, part_KBH, kept.rows)
        return torch.autograd.grad(flowing_SBH, hidden_SBH, grad_SBH)[0]

    return route_all


def build_probe(config: StepTimeConfig, device: torch.device) -> tuple[Callable[[], Tensor], int]:
    """A large matrix product in the dtype of the step, and its FLOPs; its rate is the upper limit for a step."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: left @ right, 2 * size**3
