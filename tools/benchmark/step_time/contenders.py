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
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.data.batch import Batch
from megatron.ltd.errors import UserError
from megatron.ltd.layers.route import Route
from megatron.ltd.methods.base import Method, Samples
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.config import OptimizerConfig
from megatron.ltd.routing.gather_scatter import merge_tokens, split_tokens
from megatron.ltd.schedules.step_plan import StepPlan
from megatron.ltd.training.adam import FusedAdam
from megatron.ltd.training.build import build_run
from megatron.ltd.training.run import Run

from .config import StepTimeConfig

OPTIMIZER = OptimizerConfig(lr=1e-4)


def flags_of(config: StepTimeConfig) -> list[str]:
    """The flags of a dense run of our GPT-2 of this shape, on made-up tokens."""
    words = (
        f"--num-layers {config.num_layers} --hidden-size {config.hidden_size} "
        f"--num-attention-heads {config.num_attention_heads} --seq-length {config.seq_length} "
        f"--micro-batch-size {config.micro_batch_size} --attention-dropout 0 --hidden-dropout 0 --openai-gelu "
        f"--transformer-impl {config.transformer_impl} --device {config.device} --seed {config.seed} --train-iters 1 "
        f"--lr {OPTIMIZER.lr} --eval-iters 0 --mock-data --tokenizer-type NullTokenizer --vocab-size "
        f"{config.vocab_size} --make-vocab-size-divisible-by 1 --no-progress"
    )
    return [*words.split(), *(["--bf16"] if config.bf16 else [])]


def build_method(config: StepTimeConfig, flags: str) -> Method:
    """The method that these further flags turn on."""
    return parse_run_config([*flags_of(config), *flags.split()]).build_method()


def build_random_ltd(config: StepTimeConfig, kept_tokens: int, block_size: int) -> Method:
    """random-LTD on all layers but the first and the last, with a constant number of kept tokens."""
    schedule = f"--ltd-schedule constant --ltd-min-kept-tokens {kept_tokens}"
    return build_method(config, f"--random-ltd {schedule} --ltd-block-size {block_size}")


def build_layer_drop(config: StepTimeConfig, executed_layers: int) -> Method:
    """Layer dropping that runs ``executed_layers`` layers on average, each with the same probability."""
    schedule = f"--layer-drop-theta {executed_layers / config.num_layers} --layer-drop-gamma 0"
    return build_method(config, f"--layer-drop {schedule} --layer-drop-direction rising --layer-drop-by-depth uniform")


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


@contextlib.contextmanager
def built_run(flags: Sequence[str], mesh: Mesh) -> Iterator[Run]:
    """The parts of a training run with these flags, whose log is in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(parse_run_config([*flags, "--log-dir", folder]), mesh)
        with contextlib.closing(run.log):
            yield run


def ours(run: Run, batch: Batch, method: Method, executed_layers: int | None = None) -> Callable[[], float]:
    """A function that performs one optimizer step of ``run``'s model with ``method``, and returns the loss.

    Each call uses new sample ids. ``executed_layers`` is the number of layers to run: if the method varies it from step
    to step, the next step with this number is used.
    """
    plan, learned_V = method.plan(0), method.initial_state(run.workload.num_token_ids)
    if learned_V is not None:
        learned_V = learned_V.to(batch.tokens_BS.device)
    steps = (
        number
        for number in itertools.count()
        if executed_layers is None or _depth(method, plan, number) == executed_layers
    )

    def step() -> float:
        number = next(steps)
        run.stepper.method = method
        sample_ids_B = batch.sample_ids_B + number * batch.sample_ids_B.numel()
        microbatch = dataclasses.replace(batch, sample_ids_B=sample_ids_B, whole_tokens_BS=batch.tokens_BS)
        return run.stepper.train(iter([microbatch]), plan, number, 1, learned_V).loss

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


def build_routing(config: StepTimeConfig, batch: Batch) -> Callable[[Method], Tensor]:
    """A function that performs only the sampling, gather and scatter of a method's step, forward and backward.

    It covers all routed layers, but the layers compute nothing: they return their inputs.
    """
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    size = (config.seq_length, config.micro_batch_size, config.hidden_size)
    hidden_SBH = torch.randn(size, device=batch.tokens_BS.device, dtype=dtype, requires_grad=True)
    grad_SBH = torch.randn_like(hidden_SBH)

    def route_all(method: Method) -> Tensor:
        flowing_SBH: Tensor = hidden_SBH
        drawn = Route(method.plan(0), method, Samples(batch.sample_ids_B))
        for layer_number in range(2, config.num_layers):
            kept = drawn.kept_tokens(layer_number)
            part_KBH, rest_SBH = split_tokens(flowing_SBH, kept.rows)
            flowing_SBH = merge_tokens(rest_SBH, part_KBH, kept.rows)
        return torch.autograd.grad(flowing_SBH, hidden_SBH, grad_SBH)[0]

    return route_all
