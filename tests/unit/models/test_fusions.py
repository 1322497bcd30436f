"""What is fused on which device, and what is refused. Whole runs with fused kernels: ``tests/distributed``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.models.config import LayersConfig
from megatron.ltd.models.encoder_config import ViTConfig
from megatron.ltd.workloads import WORKLOADS
from tests.support import small_model, world
from tests.support_errors import refused
from tests.support_processes import PATIENCE_SECONDS

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MODELS: dict[str, LayersConfig] = {
    "GELU": small_model(),
    "tanh GELU": small_model(openai_gelu=True),
    "tanh GELU without biases": small_model(openai_gelu=True, add_bias_linear=False),
    "Llama": small_model(swiglu=True, add_bias_linear=False, position_embedding_type="rope"),
    "ViT": ViTConfig(img_h=32, img_w=32, openai_gelu=True),
}


def fused(model: LayersConfig, device: torch.device) -> set[str]:
    from megatron.ltd.models.fusions import fusions_of

    return {name for name, is_on in vars(fusions_of(model, device)).items() if is_on is True}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU on which Transformer Engine is installed and torch compiles."""
    from megatron.ltd.models import fusions, specs

    monkeypatch.setattr(specs, "has_transformer_engine", lambda device: device.type == "cuda")
    monkeypatch.setattr(fusions, "_compile_problem", lambda: None)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_fused_on_a_cpu_unless_asked_for(name: str) -> None:
    assert fused(MODELS[name], CPU) == set()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GELU", {"bias_dropout", "gradient_accumulation"}),
        ("tanh GELU", {"bias_activation", "bias_dropout", "gradient_accumulation"}),
        ("tanh GELU without biases", {"bias_dropout", "gradient_accumulation"}),
        ("Llama", {"bias_activation", "bias_dropout", "rope", "gradient_accumulation"}),
        ("ViT", {"bias_activation", "bias_dropout", "gradient_accumulation"}),
    ],
)
def test_what_computes_the_same_is_fused_on_a_gpu(name: str, expected: set[str]) -> None:
    assert fused(MODELS[name], CUDA) == expected


@pytest.mark.usefixtures("gpu")
def test_each_fusion_can_be_turned_off_alone() -> None:
    settings: dict[str, Any] = {"swiglu": True, "position_embedding_type": "rope"}
    everything = fused(small_model(**settings), CUDA)
    for flag, name in {
        "bias_swiglu_fusion": "bias_activation", "bias_dropout_fusion": "bias_dropout", "rope_fusion": "rope",
        "gradient_accumulation_fusion": "gradient_accumulation",
    }.items():  # fmt: skip
        assert everything - fused(small_model(**settings, **{flag: False}), CUDA) == {name}
    for other in ({"transformer_impl": "local"}, {"cuda_graph_impl": "local"}):  # a graph must see these gradients
        assert everything - fused(small_model(**settings, **other), CUDA) == {"gradient_accumulation"}


def test_without_a_working_compiler_the_default_is_unfused_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.ltd.models import fusions

    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("Failed to find C compiler\nPlease specify")

    monkeypatch.setattr(torch, "compile", fail)
    fusions._compile_problem.cache_clear()
    found = fusions.fusions_of(small_model(swiglu=True), CUDA)
    assert not found.bias_activation and not found.bias_dropout
    assert [line.partition(" is taken: ")[0] for line in found.warnings] == [
        "warning: --no-bias-swiglu-fusion", "warning: --no-bias-dropout-fusion",
    ]  # fmt: skip
    assert all("(RuntimeError: Failed to find C compiler)" in line and "\n" not in line for line in found.warnings)
    with refused("--bias-dropout-fusion", "C compiler"):
        fusions.fusions_of(small_model(bias_dropout_fusion=True), CUDA)
    fusions._compile_problem.cache_clear()


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--bias-gelu-fusion", ["--bias-gelu-fusion", "--openai-gelu"]),
        ("--bias-gelu-fusion --openai-gelu --disable-bias-linear", ["--bias-gelu-fusion", "--disable-bias-linear"]),
        ("--bias-swiglu-fusion", ["--bias-swiglu-fusion", "--swiglu"]),
        ("--rope-fusion", ["--rope-fusion", "learned_absolute"]),
        ("--cross-entropy-fusion-impl te", ["--cross-entropy-fusion-impl te", "--cross-entropy-loss-fusion"]),
        ("--cross-entropy-loss-fusion", ["bfloat16", "float32", "--bf16"]),
        ("--cross-entropy-loss-fusion --fp16", ["bfloat16", "float16", "--bf16"]),
    ],
)
def test_flags_that_do_not_fit_the_model_are_refused(flags: str, names: list[str]) -> None:
    with refused(*names):
        parse_run_config(
            [*"--train-iters 1 --lr 1 --data-path x --tokenizer-type ByteTokenizer".split(), *flags.split()]
        )


def test_a_classifier_has_no_loss_of_tokens() -> None:
    flags = "--train-iters 1 --lr 1 --train-data-path x --vocab-file w --bf16 --cross-entropy-loss-fusion"
    with refused("--cross-entropy-loss-fusion", "classifier"):
        parse_run_config(flags.split(), WORKLOADS["bert_classifier"])


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"position_embedding_type": "rope", "rope_fusion": True}, "--rope-fusion"),
        ({"gradient_accumulation_fusion": True}, "--gradient-accumulation-fusion"),
        ({"cross_entropy_loss_fusion": True, "cross_entropy_fusion_impl": "te"}, "--cross-entropy-fusion-impl te"),
    ],
)
def test_kernels_of_transformer_engine_are_refused_without_it(changes: dict[str, Any], flag: str) -> None:
    from megatron.ltd.models.fusions import fusions_of

    with refused(flag, "Transformer Engine", "drop it"):
        fusions_of(small_model(**changes), CPU)


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Functions of Megatron-Core that the compiler has are called as they are."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("uncompiled")
def test_megatron_cores_fused_loss_rounds_its_gradient_to_bfloat16() -> None:
    """The reason to refuse it in other precisions; when this fails, ``check_loss_fusion`` can go."""
    with world() as mesh:
        from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

        logits = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        labels = torch.arange(8).view(4, 2)
        losses = fused_vocab_parallel_cross_entropy(logits.clone(), labels, mesh.groups.tp)
        expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(4, 2)
        torch.testing.assert_close(losses, expected)
        (found,), (exact,) = (torch.autograd.grad(loss.sum(), logits) for loss in (losses, expected))
        assert torch.equal(found, exact.bfloat16().float()) and not torch.equal(found, exact)


def test_megatron_core_accumulates_gradients_in_all_layers_or_in_none() -> None:
    """The reason for ``accumulate_in_products``; its own layers need a module of Apex."""
    with world() as mesh:
        from megatron.core.tensor_parallel import ColumnParallelLinear
        from megatron.core.transformer.transformer_config import TransformerConfig

        config = TransformerConfig(
            num_layers=1, hidden_size=8, num_attention_heads=2, gradient_accumulation_fusion=True,
            use_cpu_initialization=True,
        )  # fmt: skip
        with pytest.raises(RuntimeError, match="fused_weight_gradient_mlp_cuda"):
            ColumnParallelLinear(8, 8, config=config, init_method=torch.nn.init.zeros_, tp_group=mesh.groups.tp)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", ["tanh GELU", "Llama"])
def test_a_fused_activation_is_the_same_function(name: str) -> None:
    """Values and gradients in fp64, where only the truncated constants of the tanh approximation differ."""
    from megatron.core.fusions.fused_bias_gelu import GeLUFunction
    from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl

    x = torch.linspace(-6, 6, 120, dtype=torch.float64).view(5, 2, 12).requires_grad_()
    bias = torch.linspace(-1, 1, 12, dtype=torch.float64).requires_grad_()
    if name == "Llama":
        found, (left, right) = bias_swiglu_impl(x, bias, False, False), (x + bias).chunk(2, dim=-1)
        expected = F.silu(left) * right
    else:
        found, expected = GeLUFunction.apply(x, bias), F.gelu(x + bias, approximate="tanh")
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
    weights = torch.linspace(1, 2, found.numel(), dtype=torch.float64).view(found.shape)
    ours, theirs = (torch.autograd.grad((out * weights).sum(), (x, bias)) for out in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_fused_functions_compile_twice_while_kept_tokens_grow(repository: Path) -> None:
    """Once for the first number of tokens, and once for any; the schedule has 121 of them. Recompute adds one for what
    it calls without gradients first. After eight, torch would stop compiling.
    """
    script = Path(__file__).with_name("count_compiles.py")
    command = [sys.executable, "-W", "ignore", str(script)]
    result = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    counts = json.loads(result.stdout)
    assert counts.pop("bias_dropout_add_fused_train") == 3
    assert len(counts) == 7 and set(counts.values()) == {2}, counts


def test_triton_is_refused_where_it_does_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.ltd.models import fusions

    model = small_model(ltd_kernels="triton")
    monkeypatch.setattr(fusions, "_triton_interprets", lambda: False)
    monkeypatch.setattr(fusions.importlib.util, "find_spec", lambda name: None)
    with refused("--ltd-kernels triton", "Triton is not installed", "--ltd-kernels torch"):
        fusions.check_routing_kernels(model, CUDA)
    monkeypatch.setattr(fusions.importlib.util, "find_spec", lambda name: name)
    with refused("--ltd-kernels triton", "this run computes on cpu", "--ltd-kernels torch"):
        fusions.check_routing_kernels(model, CPU)
    for chosen, device in (("triton", CUDA), ("torch", CPU), ("auto", CPU)):
        fusions.check_routing_kernels(small_model(ltd_kernels=chosen), device)
