"""Flags of Megatron-LM that are taken though none of ours has their name: what they ask for is so here anyway.

    --use-mcore-models              left out: models are Megatron-Core's
    --ckpt-format torch_dist        left out; any other value is refused
    --recompute-activations         becomes --recompute-granularity selective

``settled`` does this to a command line before it is parsed, and says so with a line for each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from megatron.ltd.errors import UserError
from megatron.ltd.megatron_lm.refused import MUON


@dataclass(frozen=True)
class Accepted:
    """A flag that asks for what is so here."""

    why: str
    """What is so here, as a sentence without a subject of its own."""
    values: tuple[str, ...] | None = ()
    """The values that ask for it; () for a switch, None if any value does."""
    others: Mapping[str, str] = field(default_factory=dict)
    """By value, why it is not available, where that is not ``why``."""
    unless: str | None = None
    """A word of the command line beside which the flag would have an effect: then it is refused."""


_NOT_FUSED = Accepted("this kernel is not fused here")
_NO_RANDOM_STATE = Accepted("checkpoints hold no random state: it follows from the seed and the step")

ACCEPTED: Mapping[str, Accepted] = {
    "--use-mcore-models": Accepted("models are Megatron-Core's"),
    "--use-flash-attn": Accepted("attention is PyTorch's or Transformer Engine's fused kernel"),
    "--attention-softmax-in-fp32": Accepted("the kernels of attention compute the softmax in fp32"),
    "--rope-type": Accepted("rotary positions are plain RoPE's", ("rope",)),
    "--optimizer": Accepted("the optimizer is Adam", ("adam",), {"muon": MUON, "dist_muon": MUON}),
    "--calculate-per-token-loss": Accepted("the loss is the mean over the real tokens of the global batch"),
    "--accumulate-allreduce-grads-in-fp32": Accepted(
        "gradients are summed and reduced in fp32, unless --grad-reduce-in-bf16 is given"
    ),
    "--fp8-interval": Accepted("new scales are found after every microbatch", None),
    "--no-masked-softmax-fusion": _NOT_FUSED,
    "--no-persist-layer-norm": _NOT_FUSED,
    "--no-load-rng": _NO_RANDOM_STATE,
    "--no-save-rng": _NO_RANDOM_STATE,
    "--ckpt-format": Accepted("checkpoints are written as torch_dist", ("torch_dist",)),
    "--use-dist-ckpt": Accepted("checkpoints are written as torch_dist"),
    "--dist-ckpt-format": Accepted("checkpoints are written as torch_dist", ("torch_dist",)),
    "--ckpt-fully-parallel-save": Accepted("data-parallel processes share the writing of weights"),
    "--auto-detect-ckpt-format": Accepted("the format of a checkpoint is found in its files"),
    "--ckpt-assume-constant-structure": Accepted("the layout of checkpoints is checked once in a run"),
    "--no-save-tokenizer-assets": Accepted("checkpoints hold no files of the tokenizer"),
    "--use-checkpoint-opt_param-scheduler": Accepted("a checkpoint's schedule is kept"),
    "--use-checkpoint-opt-param-scheduler": Accepted("a checkpoint's schedule is kept"),
    "--exit-signal-handler": Accepted("SIGTERM saves and ends the run"),
    "--exit-signal-handler-for-training": Accepted("SIGTERM and Ctrl-C save and end the run"),
    "--exit-signal": Accepted("SIGTERM saves and ends the run", ("SIGTERM",)),
    "--log-throughput": Accepted("TFLOP/s per device are logged at every step"),
    "--log-validation-ppl-to-tensorboard": Accepted("TensorBoard gets the perplexity"),
    "--log-memory-to-tensorboard": Accepted("on CUDA, TensorBoard gets the peak memory of every step"),
    "--log-memory-interval": Accepted("on CUDA, the peak memory of every step is logged", None),
    "--log-device-memory-used": Accepted("on CUDA, the peak memory of every step is logged"),
    "--log-timers-to-tensorboard": Accepted("TensorBoard gets the time of a step, which is the only timer"),
    "--no-log-loss-scale-to-tensorboard": Accepted("TensorBoard does not get the loss scale"),
    "--log-world-size-to-tensorboard": Accepted("the first line of metrics.jsonl holds the number of processes"),
    "--tensorboard-log-interval": Accepted("TensorBoard gets every step", ("1",)),
    "--tensorboard-queue-size": Accepted("TensorBoard's own queue is used", None),
    "--timing-log-level": Accepted("the time of a step is the only timer", ("0",)),
    "--timing-log-option": Accepted("the time of a step is the only timer", None),
    "--no-barrier-with-level-1-timing": Accepted("processes do not wait for each other to be timed"),
    "--no-one-logger": Accepted("there is no one-logger here"),
    "--disable-msc": Accepted("there is no multi-storage client here"),
    "--distributed-backend": Accepted("follows from --device: NCCL on CUDA, gloo on the CPU", ("nccl", "gloo")),
    "--dataloader-type": Accepted("samples are read once each, in the run's order", ("single",)),
    "--tiktoken-pattern": Accepted("it is for TikTokenizer only", None, unless="TikTokenizer"),
    "--no-create-attention-mask-in-dataloader": Accepted("causal attention has no mask tensor"),
}
"""By flag. One that becomes a flag of ours leaves this table."""

RENAMED: Mapping[str, tuple[str, ...]] = {
    "--use-rotary-position-embeddings": ("--position-embedding-type", "rope"),
    "--no-position-embedding": ("--position-embedding-type", "none"),
    "--enable-cuda-graph": ("--cuda-graph-impl", "local"),
    "--recompute-activations": ("--recompute-granularity", "selective"),
    "--override-opt_param-scheduler": ("--override-opt-param-scheduler",),
    "--persistent-save-interval": ("--save-interval",),
    "--encoder-num-layers": ("--num-layers",),
    "--encoder-seq-length": ("--seq-length",),
    "--model-parallel-size": ("--tensor-model-parallel-size",),
    "--batch-size": ("--micro-batch-size",),
    "--no-pad-vocab-size": ("--make-vocab-size-divisible-by", "1"),
    "--disable-pad-vocab-size": ("--make-vocab-size-divisible-by", "1"),
}
"""What to write here; the values of a flag that takes some follow."""


def settled(words: Sequence[str], ours: Collection[str]) -> tuple[list[str], list[str]]:
    """A command line in the flags of ``ours``, and a line about each flag that was left out or renamed.

    Raises ``UserError`` for an accepted flag with a value that asks for something else.
    """
    kept: list[str] = []
    notes: list[str] = []
    position = 0
    while position < len(words):
        name, equals, value = words[position].partition("=")
        position += 1
        if name in ours or name not in {*ACCEPTED, *RENAMED} or _has_an_effect(name, words):
            kept.append(words[position - 1])
        elif name in RENAMED:
            kept += [*RENAMED[name], *([value] if equals else [])]
            notes.append(f"{name} is {' '.join(RENAMED[name])} here")
        else:
            found, values = ACCEPTED[name], [value] if equals else []
            takes_one = found.values != () and not equals
            if takes_one and position < len(words) and not words[position].startswith("--"):
                values, position = [words[position]], position + 1
            _check_value(name, values, found)
            notes.append(f"{' '.join([name, *values])} is accepted: {found.why}")
    return kept, notes


def _has_an_effect(name: str, words: Sequence[str]) -> bool:
    return name in ACCEPTED and any(word.rpartition("=")[2] == ACCEPTED[name].unless for word in words)


def _check_value(name: str, values: Sequence[str], found: Accepted) -> None:
    if found.values == () and values:
        raise UserError(f"{name}: {values[0]!r} is given, and a switch takes no value; drop it")
    if found.values != () and not values:
        raise UserError(f"{name}: expected one argument")
    if found.values and values[0] not in found.values:
        raise UserError(
            f"{name} {values[0]}: is not available, only {' or '.join(found.values)} is "
            f"({found.others.get(values[0], found.why)}); leave it out"
        )
