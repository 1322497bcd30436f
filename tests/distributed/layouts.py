"""The layouts that must all train the same model, as data: the flags of each, and its number of processes.

A layout is compared with one process that has the same ``--ltd-strata``. Where ranks hold parts of a sequence, each
part keeps the same number of tokens; strata make a single process select the same tokens.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from tests.support_vit import image_arrays

NUM_STEPS = 3
GLOBAL_BATCH_SIZE = 16


@dataclass(frozen=True)
class Layout:
    """A number of processes, and the flags that distribute the model over them."""

    world_size: int
    parallel_flags: tuple[str, ...]
    strata: int = 1
    data_parallel_size: int = 1

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of the layout. The micro-batch size is chosen so that each rank computes four microbatches per
        step.
        """
        micro_batch_size = GLOBAL_BATCH_SIZE // (4 * self.data_parallel_size)
        return (*self.parallel_flags, "--micro-batch-size", str(micro_batch_size), "--ltd-strata", str(self.strata))


def _layout(world_size: int, flags: str = "", strata: int = 1, dp: int = 1) -> Layout:
    return Layout(world_size, tuple(flags.split()), strata, dp)


def one_process(strata: int) -> Layout:
    """The layout of the reference run for layouts with this number of strata."""
    return _layout(1, strata=strata)


_TP = "--tensor-model-parallel-size 2"
_SP = f"{_TP} --sequence-parallel"
_PP = "--pipeline-model-parallel-size 2"
_INTERLEAVED = f"{_PP} --num-layers-per-virtual-pipeline-stage 1"
_UNEVEN = "--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 1 --decoder-last-pipeline-num-layers 1"
_CP = "--context-parallel-size 2"
_SHARDED = "--use-distributed-optimizer"
_BUCKETS = (
    f"{_SHARDED} --overlap-grad-reduce --overlap-param-gather --ddp-num-buckets 7 --ddp-pad-buckets-for-high-nccl-busbw"
)
_OVERLAPS = f"{_SHARDED} --overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 5000"

LAYOUTS = {
    "tp2": _layout(2, _TP),
    "tp2 sp": _layout(2, _SP, strata=2),
    "pp2": _layout(2, _PP),
    "pp2 interleaved": _layout(2, _INTERLEAVED),
    "pp4 uneven": _layout(4, _UNEVEN),
    "cp2": _layout(2, _CP, strata=4),
    "cp2 tp2 sp": _layout(4, f"{_CP} {_SP}", strata=4),
    "dp2": _layout(2, dp=2),
    "dp2 sharded": _layout(2, _SHARDED, dp=2),
    "dp2 sharded overlaps": _layout(2, _OVERLAPS, dp=2),
    "dp2 sharded buckets": _layout(2, _BUCKETS, dp=2),
    "pp2 interleaved dp2 sharded overlaps": _layout(4, f"{_INTERLEAVED} {_OVERLAPS}", dp=2),
    "tp2 pp2": _layout(4, f"{_TP} {_PP}"),
    "tp2 sp dp2": _layout(4, _SP, strata=2, dp=2),
    "tp2 sp pp2 dp2": _layout(8, f"{_SP} {_PP}", strata=2, dp=2),
    "cp2 dp2": _layout(4, _CP, strata=4, dp=2),
}
"""Short name -> layout; "sharded" means the distributed optimizer."""

RECOMPUTE = {
    "selective": ("--recompute-granularity", "selective"),
    "full uniform": tuple("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1".split()),
    "full block": tuple("--recompute-granularity full --recompute-method block --recompute-num-layers 2".split()),
}
RECOMPUTED_LAYOUTS = {
    "one process": one_process(strata=1),
    **{name: LAYOUTS[name] for name in ("pp2", "tp2 sp", "dp2 sharded overlaps")},
}

_LLAMA = (
    "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
    "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2"
)
_DOCUMENT_MASKS = ("--reset-attention-mask", "--reset-position-ids", "--eod-mask-loss")
VARIANTS = {
    "dense": ("--ltd-min-kept-tokens", "32"),
    "learned positions": (),
    "RoPE": tuple(_LLAMA.split()),
    "document masks": _DOCUMENT_MASKS,
    "blocks": (*_LLAMA.split(), *_DOCUMENT_MASKS, "--ltd-block-size", "2"),
    "layer dropping": tuple("--layer-drop --layer-drop-theta 0.4 --layer-drop-gamma 0.5".split()),
}
"""Variants of the model, its positions and its masks, all with random-LTD; "dense" keeps every token.

In "document masks" the loss masks contain different numbers of ones. "blocks" keeps pairs of neighbouring tokens of
such samples. "layer dropping" is combined with random-LTD; its gates are the same in all layouts because each computes
the same number of samples at a time. "RoPE" and "blocks" use Llama's layer with untied embeddings, the others GPT-2's.
"""


_EVERYWHERE = ("learned positions", "RoPE", "document masks", "blocks")
_SAMPLE = ("pp2 interleaved dp2 sharded overlaps", "tp2 sp pp2 dp2")
_COMBINED = ("cp2 tp2 sp", "dp2 sharded overlaps", "dp2 sharded buckets", "cp2 dp2")
LAYOUT_CASES = [
    (name, variant)
    for name in LAYOUTS
    for variant in VARIANTS
    if (variant in _EVERYWHERE if name not in _COMBINED else variant in ("document masks", "blocks")) or name in _SAMPLE
]
"""The pairs of layout and variant that are compared with one process.

Every layout takes the variants of ``_EVERYWHERE``, except that those that only combine other layouts take the two
hardest. The layouts of ``_SAMPLE`` take all variants.
"""
RECOMPUTE_CASES = [
    (name, mode, variant)
    for name in RECOMPUTED_LAYOUTS
    for mode in RECOMPUTE
    for variant in VARIANTS
    if (variant in ("document masks", "blocks") if name != "dp2 sharded overlaps" else variant == "layer dropping")
    or (name == "one process" and variant in _EVERYWHERE)
]
"""With overlaps, skipped layers mark their gradients as ready, of which the recomputed pass must not do more."""

RANDOM_LTD = tuple("--random-ltd --ltd-min-kept-tokens 8 --ltd-growth-steps 3 --ltd-granularity 8".split())
"""Over three steps, layers 2 to 5 of six keep 8, 16 and 24 of 32 tokens."""
BYPASS = tuple(
    "--token-bypass --token-bypass-kept-tokens 8 --token-bypass-growth-steps 3 --token-bypass-granularity 8".split()
)
RANDOM_BYPASS = (*BYPASS, "--token-bypass-selector", "random")


SIX_LAYERS = (
    *"--num-layers 6 --hidden-size 32 --num-attention-heads 4 --seq-length 32 --seed 5".split(),
    *"--make-vocab-size-divisible-by 8 --init-method-std 0.1 --attention-dropout 0 --hidden-dropout 0".split(),
    *f"--train-iters {NUM_STEPS} --global-batch-size {GLOBAL_BATCH_SIZE} --clip-grad 0.2 --adam-eps 1e-4".split(),
    *"--lr 3e-3 --lr-decay-style cosine --lr-warmup-iters 1 --eval-iters 1 --log-interval 1000".split(),
)


def run_flags(data: str) -> tuple[str, ...]:
    """Flags of three steps of 16 samples of 32 tokens through six layers; a method's flags are added to them.

    The weights are large enough for attention to be far from uniform, and gradients are actually clipped. Adam's
    epsilon is far above the rounding error of gradients: without RoPE, the gradient of the keys' biases is nothing but
    rounding error, which Adam would otherwise amplify.
    """
    return ("--train-data-path", data, "--valid-data-path", data, "--tokenizer-type", "ByteTokenizer", *SIX_LAYERS)


def bert_command(data: str, vocabulary: str) -> tuple[str, ...]:
    """The same run for BERT; its samples mask different numbers of tokens and end in padding."""
    words = ("--tokenizer-type", "BertWordPieceLowerCase", "--vocab-file", vocabulary)
    return ("pretrain_bert_ltd.py", "--train-data-path", data, "--valid-data-path", data, *words, *SIX_LAYERS)


def classifier_command(folder: Path, vocabulary: str) -> tuple[str, ...]:
    """The same for BERT on 16 of 37 sentence pairs per step, written to ``folder``, with 10 held-out pairs."""
    draw = random.Random(1)
    for name, size in (("train", 37), ("valid", 10)):
        rows = [
            {"text": "the model " * draw.randint(1, 4), "other": "every token " * draw.randint(1, 9), "label": n % 3}
            for n in range(size)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--tokenizer-type", "BertWordPieceLowerCase", "--vocab-file", vocabulary)
    data = ("--train-data-path", str(folder / "train.jsonl"), "--valid-data-path", str(folder / "valid.jsonl"))
    return ("finetune_bert_ltd.py", *data, "--text-pair-column", "other", *words, *SIX_LAYERS)


def vit_command(folder: Path) -> tuple[str, ...]:
    """A vision transformer of six layers on 37 images, written to ``folder``, for three steps of 16.

    At ten times this learning rate each step multiplies differences in rounding, so that those of the third step's
    gradients exceed 1e-6.
    """
    return (
        *("finetune_vit_ltd.py", "--train-data-path", image_arrays(folder / "train.npz", 37)),
        *("--valid-data-path", image_arrays(folder / "valid.npz", 10, seed=1)),
        *"--img-h 31 --img-w 1 --patch-dim 1 --num-channels 1 --num-classes 3".split(),
        *"--num-layers 6 --hidden-size 32 --num-attention-heads 4 --init-method-std 0.1 --seed 5".split(),
        *"--attention-dropout 0 --hidden-dropout 0 --train-iters 3 --global-batch-size 16 --clip-grad 0.2".split(),
        *"--adam-eps 1e-4 --lr 3e-4 --lr-decay-style cosine --lr-warmup-iters 1 --log-interval 1000".split(),
    )
