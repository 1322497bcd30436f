"""Flags of Megatron-LM that are refused: why, and what to use instead.

The first rule whose pattern a flag matches answers for it, else the rule of its group in Megatron-LM's ``--help``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

MUON = (
    "the optimizer is Adam: the Muon of Megatron-Core 0.16.1 calls an interface that the released emerging-optimizers "
    "(0.3.0, for Python 3.12) no longer has"
)
_LEAVE_OUT = "leave it out"

_RULES: Sequence[tuple[str, str]] = (
    # What to use here.
    (r"warmup", "the warm-up has a unit; use --lr-warmup-iters, -samples, -tokens or -fraction"),
    (r"checkpoint-activations", "use --recompute-granularity full with --recompute-method and --recompute-num-layers"),
    (r"padded-vocab-size", "use --vocab-size and --make-vocab-size-divisible-by"),
    (r"num-virtual-stages-per-pipeline-rank", "use --num-layers-per-virtual-pipeline-stage"),
    (r"pipeline-model-parallel-layout|account-for-.*", "use --decoder-first- and --decoder-last-pipeline-num-layers"),
    (r"save-retain-interval", "use --keep-last, the number of checkpoints to keep"),
    (r"ckpt-fully-parallel-load-.*",
     "the data-parallel group shares the reading, and tensors are broadcast; use --ckpt-fully-parallel-load alone"),
    (r"ckpt-fully-parallel-save-process-group", "data-parallel processes share the writing; leave it out"),
    (r"use-mp-args-from-checkpoint-args", "a checkpoint loads under any layout; give the layout"),
    (r"no-use-tokenizer.*|disable-use-tokenizer.*", "a typed flag wins over the checkpoint; type the tokenizer"),
    (r"override-ckpt-iteration", "use --ckpt-step"),
    (r"wandb-save-dir", "Weights & Biases writes into the run's folder; use --log-dir"),
    (r"log-progress", "consumed tokens and FLOPs are in metrics.jsonl; leave it out"),
    (r"yaml-cfg", "use --config"),
    (r"squared-relu|quick-geglu|glu-linear-offset|activation-func-.*", "the MLP has GELU, or SiLU with --swiglu"),
    (r"init-method-xavier-uniform|embedding-init-method-std", "weights are normal; use --init-method-std"),
    (r"(start|end)-weight-decay|weight-decay-incr-style", "weight decay is constant; use --weight-decay"),
    (r"phase-transition-iterations", "continue with --override-data or --override-opt-param-scheduler at each phase"),
    (r"decrease-batch-size-if-needed", "use a --global-batch-size that the processes divide"),
    (r"tiktoken-pattern", "TikTokenizer splits words as Llama 3 does; leave it out"),
    (r"tiktoken-num-special-tokens|tokenizer-special-tokens", "use --tiktoken-special-tokens"),
    (r"tensor-parallel-num-weight-shards|.*fsdp.*|.*hsdp.*|data-parallel-sharding-strategy|outer-dp-.*|"
     r"num-distributed-optimizer-instances", "sharded data parallelism is --use-distributed-optimizer here"),
    (r"window-.*|softmax-type|.*sliding.*", "attention is to all earlier tokens"),
    (r"hierarchical-context-.*|hybrid-context-parallel|cp-comm-type|max-seqlen-per-dp-cp-rank",
     "context parallelism gathers keys and values; use --context-parallel-size alone"),
    (r"cpu-offloading-.*|optimizer-cpu-offload|optimizer-offload-.*|.*offload.*|.*pin-cpu-.*|overlap-cpu-.*",
     "nothing is offloaded to the CPU; use recompute or more parallelism"),
    (r"use-precision-aware-optimizer|main-(grads|params)-dtype|exp-avg.*", "the optimizer's state is in fp32"),
    (r"(yarn|relative-attention|rotary|mrope|no-rope|rope)-.*", "positions are learned, or plain or Llama 3's RoPE"),
    (r"muon-.*", MUON),
    (r"lion-.*|sgd-.*|qk-clip.*|no-weight-decay-cond-type|apply-wd-to-.*", "the optimizer is Adam"),
    # What is not here at all.
    (r".*moe.*|.*expert.*|num-experts|ep-overlap-.*|high-priority-a2a-.*|use-grouped-gemm-.*",
     "there is no mixture of experts here; use a dense model"),
    (r"fp8-param-gather|.*-fp8-transpose-cache|.*mxfp8-param.*",
     "weights stay in bfloat16, and layers make copies in fp8; leave it out"),
    (r"fp8-.*|no-fp8-.*|disable-fp8-.*|te-precision-config-file",
     "fp8 is that of --fp8-format and --fp8-recipe in all products of layers; leave it out"),
    (r".*fp4-.*", "4-bit training is not available; use --bf16, with or without --fp8-format"),
    (r"multi-latent-attention|.*(q|kv)-lora.*|qk-(head|pos)-.*|v-head-dim|.*mla.*|mscale.*|experimental-attention-.*|"
     r"dsa-.*|no-dsa-.*|disable-dsa-.*|linear-.*|qk-l2-norm|attention-output-gate|apply-query-key-.*",
     "attention is multi-head or grouped-query"),
    (r"mtp-.*", "one token is predicted at a time"),
    (r".*mamba.*|is-hybrid-model|hybrid-.*|gdp-.*|mhc-.*|enable-mhc-.*|mup-.*|use-mup|heterogeneous-.*|spec|"
     r"apply-residual-connection-.*|fp32-residual-.*", "the model is a plain transformer"),
    (r"rl-.*|no-rl-.*|grpo-.*|langrl-.*|perform-rl-step|refit-method|sft.*|chat-template|freeze-all-layers|logits-.*",
     "there is pretraining and finetuning on plain text only"),
    (r".*cuda-graph.*", "graphs are those of --cuda-graph-impl local, of whole layers in training; leave it out"),
    (r"inference-.*|no-inference-.*|.*prefill.*|flash-decode|batch-invariant-.*|.*speculative.*|.*static-engine|"
     r"max-tokens-to-oom|output-bert-embeddings|bert-embedder-type|use-same-sampling-.*",
     "a trained model is used by tools/generate_text.py and tools/evaluate.py"),
    (r".*tp-comm-.*",
     "Transformer Engine's overlap of tensor-parallel communication is not set up here, and its buffers are for one "
     "number of tokens; use --sequence-parallel, --overlap-grad-reduce and --overlap-param-gather"),
    (r".*comm-overlap.*|.*nccl.*|.*sharp.*|.*symmetric.*|defer-embedding-.*|wgrad-.*|delay-wgrad-.*|"
     r".*p2p.*|.*kitchen.*|.*op-fuser|gtp-.*", "communication and kernels are Megatron-Core's defaults; leave it out"),
    (r"fim-.*", "samples are packed documents; fill-in-the-middle is not available"),
    (r"null-tokenizer-.*", "NullTokenizer has the ids below --vocab-size, and the last ends a document"),
)  # fmt: skip
"""A pattern of the whole flag without its dashes, and the answer."""

_GROUPS: Mapping[str, str] = {
    "biencoder": "there are no retrieval models here",
    "vision": "a vision transformer is trained by finetune_vit_ltd.py",
    "profiling": "only --profile, its steps and --use-pytorch-profiler are here",
    "opentelemetry": "steps are logged to metrics.jsonl, TensorBoard and Weights & Biases",
    "one logger": "steps are logged to metrics.jsonl, TensorBoard and Weights & Biases",
    "straggler": "processes are not timed against each other",
    "workload inspector": "there is no such server here",
    "in-process restart": "a scheduler restarts the run, which continues with --load",
    "ft_package": "a scheduler restarts the run, which continues with --load",
    "autoresume": "a scheduler restarts the run, which continues with --load",
    "rerun engine": "steps are not run again; see --check-for-spiky-loss",
    "fault injector": "faults are injected by tools/torture.py",
    "msc": "files are read from mounted file systems",
    "checkpointing": "checkpoints are torch_dist folders; docs/training.md has their flags",
    "tokenizer": "docs/your-data.md has the flags of tokenizers",
    "data and dataloader": "docs/your-data.md has the flags of data",
    "distributed init": "docs/parallelism.md has the flags of layouts",
}
_ELSEWHERE = "there is no such flag here"


@cache
def recorded() -> Mapping[str, tuple[tuple[str, ...], ...]]:
    """All flags of Megatron-LM's GPT pretraining by group, each as the tuple of its spellings."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for line in (Path(__file__).parent / "flags.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            flags = groups.setdefault(line.strip("[]"), [])
        elif line.startswith("--"):
            flags.append(tuple(line.split()))
    return {group: tuple(found) for group, found in groups.items()}


def refusal(flag: str) -> str | None:
    """Why there is no ``flag`` here, and what to use; None if it is not a flag of Megatron-LM's."""
    group = next((name for name, flags in recorded().items() if any(flag in spelled for spelled in flags)), None)
    if group is None:
        return None
    name = flag.removeprefix("--")
    rule = next((answer for pattern, answer in _RULES if re.fullmatch(pattern, name)), None)
    return rule or _GROUPS.get(group) or f"{_ELSEWHERE}; {_LEAVE_OUT}"
