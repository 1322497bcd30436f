"""Helpers for tests of the model and of whole runs: a world of one process, small models, microbatches, and runs.

with world() as mesh:                     Megatron-Core's groups over this process, on the CPU
    stepper = build_stepper(model, mesh)  the product's model and optimizer
    stepper.train(iter(batches), plan, step, len(batches))

finished = pretrain(command, folder)      a pretraining script in this process
with built(command) as run:               the same before its first step
"""

from __future__ import annotations

import json
import random
import re
import resource
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.config import RunConfig
from megatron.ltd.data.batch import Batch, document_mask, document_starts
from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.launch import launch
from megatron.ltd.layers import route
from megatron.ltd.methods.base import Dense, Method, ModelFacts, Samples
from megatron.ltd.methods.layer_drop.method import LayerDrop, LayerDropConfig
from megatron.ltd.methods.random_ltd.method import RandomLTD, RandomLTDConfig
from megatron.ltd.methods.token_bypass.method import TokenBypass, TokenBypassConfig
from megatron.ltd.models.config import LayersConfig, ModelConfig
from megatron.ltd.models.execution_config import PrecisionConfig, RecomputeConfig
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.mesh import Mesh, initialize
from megatron.ltd.plan.config import OptimizerConfig
from megatron.ltd.tokenizers.config import TokenizerFiles
from megatron.ltd.tokenizers.wordpiece import SPECIAL_PIECES
from megatron.ltd.training.stopwatch import TIMINGS
from megatron.ltd.words import name_of
from megatron.ltd.workloads import BERT, BERT_CLASSIFIER, GPT, VIT

REPOSITORY = Path(__file__).resolve().parents[1]
VOCAB_SIZE = 32
_WORDS = "the model keeps some of its tokens and every other token skips this layer".split()
_TASKS = {
    "pretrain_gpt_ltd.py": GPT,
    "pretrain_bert_ltd.py": BERT,
    "finetune_bert_ltd.py": BERT_CLASSIFIER,
    "finetune_vit_ltd.py": VIT,
}


def small_dataset(folder: Path) -> str:
    """Write 300 documents of 1 to 12 words to ``folder``, tokenized as bytes, and return the dataset's prefix.

    The documents are so short that most samples contain the ends of several.
    """
    draw = random.Random(0)
    texts = [" ".join(draw.choices(_WORDS, k=draw.randint(1, 12))) for _ in range(300)]
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = PreprocessConfig(input=(str(source),), output_prefix=str(folder / "text"), append_eod=True)
    return next(iter(preprocess(config, TokenizerFiles("ByteTokenizer")).cards))


def small_sentences(folder: Path) -> tuple[str, str]:
    """Write 60 documents of 1 to 9 sentences to ``folder``; return the dataset's prefix and the vocabulary file.

    Some words of the vocabulary consist of two pieces. Most samples of 32 tokens end in padding.
    """
    draw = random.Random(0)
    texts = [
        " ".join(" ".join(draw.choices(_WORDS, k=draw.randint(3, 9))).capitalize() + "." for _ in range(sentences))
        for sentences in (draw.randint(1, 9) for _ in range(60))
    ]
    source, vocabulary = folder / "sentences.jsonl", folder / "vocab.txt"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    stems = {word[:3] for word in _WORDS} | {f"##{word[3:]}" for word in _WORDS if len(word) > 3}
    vocabulary.write_text("".join(f"{piece}\n" for piece in (*SPECIAL_PIECES, ".", *sorted(stems))))
    config = PreprocessConfig(input=(str(source),), output_prefix=str(folder / "s"), split_sentences=True)
    cards = preprocess(config, TokenizerFiles("BertWordPieceLowerCase", vocab_file=str(vocabulary))).cards
    return next(iter(cards)), str(vocabulary)


@contextmanager
def limited_files(num_bytes: int) -> Iterator[None]:
    """Within the block no file of this process may grow beyond this size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_differs(line: str, setting: str, here: str, there: str) -> None:
    """Check that ``line`` is one line that names a setting, given as an id or a flag, then its value here, then the
    other one.
    """
    assert "\n" not in line
    said = [name_of(setting), here, there]
    pattern = ".*".join(rf"(?<![\w.]){re.escape(words)}(?![\w]|\.\w)" for words in said)
    assert re.search(pattern, line), f"{line!r} does not say {said}"


@contextmanager
def world() -> Iterator[Mesh]:
    """Initialize Megatron-Core's process groups on the CPU for this process alone."""
    with initialize(ParallelConfig(device="cpu")) as mesh:
        route.install()
        yield mesh


def small_model(**changes: Any) -> ModelConfig:
    """The configuration of a model with three layers, S = 16 and no dropout; ``changes`` replace its fields."""
    settings: dict[str, Any] = {
        "num_layers": 3, "hidden_size": 24, "ffn_hidden_size": 40, "num_attention_heads": 4, "seq_length": 16,
        "attention_dropout": 0.0, "hidden_dropout": 0.0,
    }  # fmt: skip
    return ModelConfig(**(settings | changes))


def random_ltd(model: ModelConfig, kept_tokens: int, seed: int = 7, **flags: Any) -> RandomLTD:
    """random-LTD that keeps ``kept_tokens`` tokens at step 0 and all tokens from step 10 on."""
    settings = {"ltd_min_kept_tokens": kept_tokens, "ltd_growth_steps": 10, "ltd_granularity": 1, **flags}
    return RandomLTD.build(
        RandomLTDConfig(random_ltd=True, **settings), ModelFacts(model.num_layers, model.seq_length, seed)
    )


def layer_drop(model: ModelConfig, keep_probability: float, seed: int = 2) -> LayerDrop:
    """Layer dropping that runs each layer with the same probability at every step."""
    config = LayerDropConfig(
        layer_drop=True, layer_drop_theta=keep_probability, layer_drop_gamma=0.0, layer_drop_direction="rising",
        layer_drop_by_depth="uniform",
    )  # fmt: skip
    return LayerDrop.build(config, ModelFacts(model.num_layers, model.seq_length, seed))


def token_bypass(model: Any, kept_tokens: int, layers: str, seed: int = 7, **flags: Any) -> TokenBypass:
    """TokenBypass that keeps ``kept_tokens`` tokens at every step; ``flags`` are without the prefix."""
    settings = {"kept_tokens": kept_tokens, "layers": layers, **flags}
    config = TokenBypassConfig(token_bypass=True, **{f"token_bypass_{name}": value for name, value in settings.items()})
    return TokenBypass.build(config, ModelFacts(model.num_layers, model.seq_length, seed))


def kept_positions(method: Method, samples: Samples, row: int) -> dict[int, Tensor]:
    """The positions of one sample at step 0, [K], by layer number, for each layer that drops tokens."""
    plan = method.plan(0)
    return {
        layer: method.select(samples, [layer], amount)[0, row]
        for layer, amount in enumerate(plan.kept_tokens, start=1)
        if amount < plan.seq_length
    }


def sublayer_scales(method: Method, microbatch: int) -> dict[int, float]:
    """The factor of the sublayers' outputs at step 0, by layer number, for each layer that may be dropped."""
    return {
        layer: float(method.executes(0, microbatch, layer, probability)) / probability
        for layer, probability in enumerate(method.plan(0).keep_probability, start=1)
        if probability < 1.0
    }


def learned(method: Method) -> Tensor | None:
    """A distinct random value for each token id, [V], as the learned state of ``method``; None if it learns nothing."""
    if not method.observes:
        return None
    return torch.rand(VOCAB_SIZE, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def dense(model: ModelConfig) -> Dense:
    return Dense(ModelFacts(model.num_layers, model.seq_length, 7))


def core_config(
    model: LayersConfig, mesh: Mesh, recompute: RecomputeConfig | None = None, precision: PrecisionConfig | None = None
) -> Any:
    """Megatron-Core's ``TransformerConfig`` of a model on this process."""
    from megatron.ltd.models.transformer import transformer_config

    parallel = ParallelConfig(device="cpu")
    return transformer_config(model, parallel, precision or PrecisionConfig(), recompute or RecomputeConfig(), mesh)


def build_core_model(
    model: ModelConfig, mesh: Mesh, recompute: RecomputeConfig | None = None, precision: PrecisionConfig | None = None
) -> torch.nn.Module:
    """The GPT model of the library, with weights drawn from a fixed seed."""
    from megatron.ltd.models.gpt import build_chunks

    of_core = core_config(model, mesh, recompute, precision)
    (core_model,) = build_chunks(model, of_core, VOCAB_SIZE, mesh, seed=1234)
    return core_model


def build_stepper(
    model: ModelConfig,
    mesh: Mesh,
    method: Method | None = None,
    *,
    weights: Mapping[str, Tensor] | None = None,
    recompute: RecomputeConfig | None = None,
    micro_batch_size: int = 2,
    seed: int = 7,
) -> Any:
    """A ``Stepper`` of the library for a new model, or for one with ``weights``. Gradients are not clipped."""
    from megatron.ltd.training.objective import CausalLM

    core_model = build_core_model(model, mesh, recompute)
    if weights is not None:
        load_weights(core_model, weights)
    return stepper_of(
        core_model, method or dense(model), mesh, CausalLM(), micro_batch_size=micro_batch_size, seed=seed
    )


def stepper_of(
    core_model: Any, method: Method, mesh: Mesh, objective: Any, *, micro_batch_size: int = 2, seed: int = 7
) -> Any:
    """A ``Stepper`` of the library for any model. Gradients are not clipped."""
    from megatron.ltd.training.optimizer import build_optimizer, wrap_chunks
    from megatron.ltd.training.step import Stepper

    parallel, precision = ParallelConfig(device="cpu"), PrecisionConfig()
    wrapped = wrap_chunks([core_model], parallel, precision)
    optimizer = build_optimizer(wrapped, OptimizerConfig(lr=1e-3, clip_grad=0.0), precision, parallel)
    seq_length = method.plan(0).seq_length
    return Stepper(
        wrapped, optimizer, method, mesh, objective, seed=seed, micro_batch_size=micro_batch_size, seq_length=seq_length
    )


def load_weights(core_model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy ``weights`` into the model. They must name exactly the model's parameters."""
    parameters = dict(core_model.named_parameters())
    assert parameters.keys() == weights.keys(), parameters.keys() ^ weights.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def step_gradients(stepper: Any) -> dict[str, Tensor]:
    """The gradients of the latest ``stepper.train``, by Megatron-Core's parameter names."""
    return {name: parameter.main_grad.clone() for name, parameter in stepper.chunks[0].module.named_parameters()}


def gradients_of(plain: torch.nn.Module) -> dict[str, Tensor]:
    """The gradients of a reference model, zeros for parameters that the step did not use."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in plain.named_parameters()
    }


def assert_gradients(stepper: Any, expected: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """Check every gradient of the latest ``stepper.train`` against one by the same name, by ``relative_error``."""
    found = step_gradients(stepper)
    assert found.keys() == expected.keys()
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    assert max(errors.values()) < tolerance, errors


def assert_gradients_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """Check gradients of two models; a small one, of which a hundredth of the norm of all is rounding, may differ.

    A key's bias has no effect, so that its gradient is rounding alone.
    """
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < tolerance * max(gradient.norm(), 1e-2 * whole), name


def random_batches(
    num_batches: int, micro_batch_size: int, seq_length: int, *, documents: bool = False, seed: int = 0
) -> list[Batch]:
    """Microbatches of random tokens whose loss masks contain different numbers of ones.

    With ``documents``, token 0 ends a document: position ids restart after it, and documents do not attend to each
    other.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for number in range(num_batches):
        shape = (micro_batch_size, seq_length)
        tokens_BS = torch.randint(1, VOCAB_SIZE, shape, generator=generator)
        if documents:
            tokens_BS[torch.rand(shape, generator=generator) < 0.2] = 0
        loss_mask_BS = (torch.rand(shape, generator=generator) < 0.9 - 0.3 * (number % 3)).float()
        loss_mask_BS[:, 0] = 1.0
        batches.append(
            Batch(
                tokens_BS=tokens_BS,
                labels_BS=torch.randint(0, VOCAB_SIZE, shape, generator=generator),
                loss_mask_BS=loss_mask_BS,
                position_ids_BS=_positions(tokens_BS, documents),
                document_starts_BS=document_starts(tokens_BS, 0) if documents else None,
                own_positions_Q=torch.arange(seq_length) if documents else None,
                sample_ids_B=torch.arange(number * micro_batch_size, (number + 1) * micro_batch_size) + 1000,
                whole_tokens_BS=tokens_BS,
            )
        )
    return batches


def separated(tokens_BS: Tensor) -> Tensor:
    """The attention mask, [B, 1, S, S], of documents that end with token 0."""
    return document_mask(document_starts(tokens_BS, 0), torch.arange(tokens_BS.shape[1]))


def _positions(tokens_BS: Tensor, documents: bool) -> Tensor:
    rows = []
    for tokens in tokens_BS.tolist():
        row, position = [], 0
        for token in tokens:
            row.append(position)
            position = 0 if documents and token == 0 else position + 1
        rows.append(row)
    return torch.tensor(rows)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of ``expected``."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


@dataclass(frozen=True)
class Finished:
    """The folder and the metrics of a run that has finished."""

    folder: Path
    lines: list[dict[str, Any]]
    """The records of metrics.jsonl without timings. If an iteration occurs twice, only the later record is kept."""

    def kind(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == kind]

    def column(self, name: str) -> list[Any]:
        """The values of one field over all training steps."""
        return [line[name] for line in self.kind("train")]

    def tensors(self, iteration: int) -> dict[str, Any]:
        """All tensors of a checkpoint of this run by name: weights, optimizer state and the learned state of the
        method.
        """
        from megatron.core import dist_checkpointing

        with warnings.catch_warnings(), world():
            warnings.simplefilter("ignore")
            content = dist_checkpointing.load_plain_tensors(str(self.folder / f"iter_{iteration:07d}"))
        return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def parse(command: Sequence[str]) -> RunConfig:
    """Parse a script and its flags; without a script, the flags are those of pretrain_gpt_ltd.py."""
    script, flags = ("pretrain_gpt_ltd.py", command) if command[0].startswith("-") else (command[0], command[1:])
    return parse_run_config(flags, _TASKS[script])


def pretrain(command: Sequence[str], folder: Path) -> Finished:
    """Run ``command`` (see ``parse``) in this process; it logs to ``folder`` and saves checkpoints there."""
    launch(parse([*command, "--device", "cpu", "--save", str(folder)]))
    return read_run(folder)


@contextmanager
def built(command: Sequence[str], *flags: object) -> Iterator[Any]:
    """The ``Run`` of ``command`` (see ``parse``) and more ``flags`` before its first step."""
    from megatron.ltd.training.build import build_run

    with world() as mesh:
        run = build_run(parse([*command, *map(str, flags), "--device", "cpu"]), mesh)
        try:
            yield run
        finally:
            run.log.close()


def read_run(folder: Path) -> Finished:
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        key = (line["kind"], line.get("iteration", 0))
        lines[key] = {name: value for name, value in line.items() if name not in TIMINGS}
    return Finished(folder, [lines[key] for key in sorted(lines)])
