"""The command lines of two of Megatron-LM's example scripts, in small: every flag works, or is refused with a reason.

Flags and values are those that ``examples/gpt3/train_gpt3_175b_distributed.sh`` and
``examples/llama/train_llama3_8b_h100_fp8.sh`` pass to ``pretrain_gpt.py``, word by word as the shell splits them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron.ltd.arguments import build_parser
from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.megatron_lm.accepted import ACCEPTED
from megatron.ltd.tokenizers.config import TokenizerFiles
from megatron.ltd.tokenizers.gpt2_bpe import byte_alphabet
from tests.end_to_end.runs import metrics, refusal, run_status

GPT3_175B = """
--num-layers 96 --hidden-size 12288 --num-attention-heads 96 --seq-length 2048 --max-position-embeddings 2048
--attention-backend auto --micro-batch-size 1 --global-batch-size 1536
--step-batch-size-schedule 0:16 2.4B:320 4.8B:624 7.2B:928 9.6B:1232 12B:1536 --train-iters 500000
--weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.95 --init-method-std 0.006 --clip-grad 1.0 --fp16 --lr 6.0e-5
--lr-decay-style cosine --min-lr 6.0e-6 --lr-warmup-fraction .001 --lr-decay-iters 430000
--tensor-model-parallel-size 8 --pipeline-model-parallel-size 16 --data-path DATA --vocab-file VOCAB
--merge-file MERGES --split 949,50,1 --log-interval 100 --save-interval 10000 --eval-interval 1000
--save CHECKPOINTS --load CHECKPOINTS --eval-iters 10 --tensorboard-dir TENSORBOARD
"""
LLAMA3_8B = """
--use-mcore-models --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32
--group-query-attention --num-query-groups 8 --kv-channels 128 --seq-length 8192 --max-position-embeddings 8192
--position-embedding-type rope --rotary-base 1000000 --rotary-percent 1.0 --attention-dropout 0.0
--hidden-dropout 0.0 --swiglu --normalization RMSNorm --init-method-std 0.0134 --attention-backend fused
--apply-layernorm-1p --untie-embeddings-and-output-weights --disable-bias-linear --micro-batch-size 1
--global-batch-size 128 --train-samples 1953125000 --lr-decay-samples 1949218748 --lr-warmup-samples 3906252
--lr 0.00015 --min-lr 0.00001 --decoupled-lr 5.0e-4 --decoupled-min-lr 4.5e-5 --lr-decay-style cosine
--clip-grad 1.0 --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.95 --bf16 --grad-reduce-in-bf16
--cross-entropy-loss-fusion --calculate-per-token-loss --manual-gc --empty-unused-memory-level 1
--exit-duration-in-mins 235 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
--fp8-format hybrid --fp8-amax-history-len 1024 --fp8-amax-compute-algo max --fp8-param-gather
--tensor-model-parallel-size 1 --context-parallel-size 1 --sequence-parallel --data-path DATA
--tokenizer-type HuggingFaceTokenizer --tokenizer-model TOKENIZER --data-cache-path CACHE --split '99,1,0'
--no-create-attention-mask-in-dataloader --no-mmap-bin-files --num-workers 1 --vocab-size 128256 --log-interval 1
--eval-iters 32 --eval-interval 100 --save-interval 1000 --log-throughput --profile --profile-step-start 4
--profile-step-end 6 --ckpt-format torch_dist --distributed-timeout-minutes 60 --save CHECKPOINTS --load CHECKPOINTS
--tensorboard-dir TENSORBOARD
"""
LLAMA3_8B_MOCK = " ".join(LLAMA3_8B.split()).replace(
    "--data-path DATA --tokenizer-type HuggingFaceTokenizer --tokenizer-model TOKENIZER",
    "--mock-data --tokenizer-type NullTokenizer --tiktoken-pattern v2",
)
"""Without arguments, the script takes mock data."""
SCRIPTS = {"gpt3": GPT3_175B, "llama3": LLAMA3_8B, "llama3 mock": LLAMA3_8B_MOCK}
SMALLER = {
    "--num-layers": "2", "--hidden-size": "32", "--ffn-hidden-size": "64", "--num-attention-heads": "4",
    "--num-query-groups": "2", "--kv-channels": "8", "--seq-length": "32", "--max-position-embeddings": "32",
    "--global-batch-size": "4", "--train-iters": "6", "--lr-decay-iters": "6", "--train-samples": "24",
    "--lr-decay-samples": "24", "--lr-warmup-samples": "4", "--tensor-model-parallel-size": "1",
    "--pipeline-model-parallel-size": "1", "--eval-iters": "1", "--vocab-size": "512", "--num-workers": "0",
    "--log-interval": "1", "--step-batch-size-schedule": "0:1 64:2 256:4",
    "--attention-backend": "auto",  # fused names a kernel of CUDA
}  # fmt: skip
FP8 = {"--fp8-format", "--fp8-amax-history-len", "--fp8-amax-compute-algo"}
"""Flags of Transformer Engine's layers on a GPU."""
NOT_HERE = {*FP8, "--fp8-param-gather"}
"""Refused on a CPU, with what to use."""
OURS = set(build_parser().flags)


def pairs(script: str) -> list[list[str]]:
    """Each flag with its values."""
    found: list[list[str]] = []
    for word in script.split():
        if word.startswith("--"):
            found.append([word])
        else:
            found[-1].append(word)
    return found


def smaller(script: str, places: dict[str, str], without: set[str]) -> list[str]:
    words = []
    for name, *values in pairs(script):
        if name in without:
            continue
        new = SMALLER[name].split() if name in SMALLER and values else values
        words += [name, *(places.get(value, value) for value in new)]
    return words


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A GPT-2 tokenizer without merges, the same as tokenizer.json, and text in its ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("files")
    vocabulary = {char: token for token, char in enumerate([*byte_alphabet(), "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    text = "Call me Ishmael. Some years ago, never mind how long precisely."
    (folder / "text.jsonl").write_text(f"{json.dumps({'text': text})}\n" * 100)
    gpt2 = TokenizerFiles(
        "GPT2BPETokenizer", vocab_file=str(folder / "vocab.json"), merge_file=str(folder / "merges.txt")
    )
    return {
        "VOCAB": str(gpt2.vocab_file), "MERGES": str(gpt2.merge_file), "TOKENIZER": str(folder),
        "gpt3": encoded(folder, "gpt3", gpt2),
        "llama3": encoded(folder, "llama3", TokenizerFiles("HuggingFaceTokenizer", tokenizer_model=str(folder))),
    }  # fmt: skip


def encoded(folder: Path, name: str, tokenizer: TokenizerFiles) -> str:
    """The prefix of the text in the ids of a tokenizer."""
    config = PreprocessConfig(input=(str(folder / "text.jsonl"),), output_prefix=str(folder / name), append_eod=True)
    return next(iter(preprocess(config, tokenizer).cards))


def places(files: dict[str, str], name: str, folder: Path) -> dict[str, str]:
    new = {"CHECKPOINTS": "out", "TENSORBOARD": "tb", "CACHE": "cache"}
    return {**files, "DATA": files.get(name, ""), **{place: str(folder / path) for place, path in new.items()}}


@pytest.mark.parametrize("script_name", SCRIPTS)
def test_a_shrunk_script_trains(
    script_name: str, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = SCRIPTS[script_name]
    words = smaller(script, places(files, script_name, tmp_path), NOT_HERE)
    status, error = run_status(words)
    assert status == 0, error
    said = capsys.readouterr().out
    for name, *values in pairs(script):
        if name in ACCEPTED:
            assert f"{' '.join([name, *values])} is accepted: " in said
        else:
            assert name in OURS | NOT_HERE, name
    lines = metrics(tmp_path / "out")
    losses = [line["loss"] for (kind, _), line in sorted(lines.items()) if kind == "train"]
    assert len(losses) == 6 and all(4.0 < loss < 7.0 for loss in losses)
    batches = [line["batch_size"] for (kind, _), line in sorted(lines.items()) if kind == "train"]
    assert batches == ([1, 1, 2, 2, 2, 4] if script == GPT3_175B else [4] * 6)
    assert (tmp_path / "out" / "latest_checkpointed_iteration.txt").read_text() == "6"
    assert list((tmp_path / "tb").glob("events*"))


def test_flags_that_are_not_here_are_named_together(files: dict[str, str], tmp_path: Path) -> None:
    line = refusal(smaller(LLAMA3_8B, places(files, "llama3", tmp_path), set()))
    assert line.startswith("--fp8-param-gather: weights stay in bfloat16")
