"""Settings of the GPT-3 examples that cannot be: one line, exit status 2, nothing made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron.ltd.tokenizers.gpt2_bpe import END_OF_TEXT, byte_alphabet
from tests.docs.gpt3_scripts import run

DATA = {"VOCAB_FILE": "v.json", "MERGE_FILE": "m.bpe", "DATA_PATH": "d"}
PROGRAMS = ("torchrun.sh", "preprocess_data.py", "pretrain_gpt_ltd.py")
REFUSED = {
    "no variant": ("pretrain_dense.sh", [], {}, "say how long: 300B, 200B or 150B, such as bash "),
    "another variant": ("pretrain_random_ltd.sh", ["250B"], {}, "the variant is '250B': give 300B, 200B or 150B"),
    "a flag first": ("pretrain_dense.sh", ["--lr", "1"], {}, "the variant is '--lr': give 300B, 200B or 150B"),
    "no vocabulary": ("pretrain_dense.sh", ["300B"], {}, "encoder.json is not there: run prepare_data.sh, or name"),
    "no data": (
        "pretrain_dense.sh", ["300B"], {"VOCAB_FILE": "v.json", "MERGE_FILE": "m.bpe"},
        "corpus_text_document.idx is not there: make it with prepare_data.sh, or name your data with DATA_PATH or",
    ),
    "no data of a name": (
        "pretrain_dense.sh", ["300B"], {"VOCAB_FILE": "v.json", "MERGE_FILE": "m.bpe", "DATA_PATH": "1 a"},
        "/a.idx is not there",
    ),
    "no blend": ("pretrain_dense.sh", ["300B"], {"BLEND": "none"}, "/none is no file: name one with a line WEIGHT"),
    "an empty blend": ("pretrain_dense.sh", ["300B"], {"BLEND": "empty"}, "/empty holds nothing: write a line WEIGHT"),
    "two sources": ("pretrain_dense.sh", ["300B"], {"BLEND": "empty", "DATA_PATH": "a"}, "are both given: keep one"),
    "precision": ("pretrain_dense.sh", ["300B"], {"PRECISION": "fp8"}, "PRECISION is 'fp8': give bf16, fp16 or fp32"),
    "recompute": ("pretrain_dense.sh", ["300B"], {"RECOMPUTE": "all"}, "RECOMPUTE is 'all': give none, mlp or full"),
    "a flag that there is not": (
        "pretrain_dense.sh", ["300B", "--no-such-flag"], {**DATA}, "--no-such-flag: there is no such flag; --help lists"
    ),
    "processes": (
        "pretrain_dense.sh", ["300B"], {**DATA, "GPUS_PER_NODE": "0", "NPROC": "3"},
        "--global-batch-size 256 is not a multiple of --micro-batch-size 16 x 3 data-parallel processes = 48",
    ),
    "GPUs that are no number": (
        "pretrain_dense.sh", ["300B"], {"GPUS_PER_NODE": "all", "DRY_RUN": "1"}, "GPUS_PER_NODE is 'all': give a whole"
    ),
    "nothing to show of no input": ("prepare_data.sh", [], {"DRY_RUN": "1"}, "INPUT is missing: name your corpus in"),
    "no input": ("prepare_data.sh", [], {}, "INPUT is missing: name your corpus in JSON lines"),
    "input as argument": ("prepare_data.sh", ["a.jsonl"], {}, "a.jsonl: takes no arguments; settings stand before"),
    "no vocabulary to prepare": (
        "prepare_data.sh", [], {"INPUT": "a.jsonl"}, "encoder.json is not there: name GPT-2's encoder.json (vocab.json)"
    ),
    "no such input": (
        "prepare_data.sh", [], {"INPUT": "a.jsonl", "VOCAB_FILE": "v.json", "MERGE_FILE": "m.bpe"}, "no such file"
    ),
    "a shard that is none": ("prepare_data.sh", [], {"SHARD": "3"}, "SHARD is '3': give the number of a part and how"),
    "a merge that is none": ("prepare_data.sh", [], {"MERGE": "all"}, "MERGE is 'all': give the number of parts"),
    "shard and merge": ("prepare_data.sh", [], {"MERGE": "2", "SHARD": "1/2"}, "SHARD=1/2 and MERGE=2 are both given"),
    "parts that are missing": ("prepare_data.sh", [], {"MERGE": "2"}, "part 1 of 2 is not there: make it with SHARD"),
    "nothing to evaluate": ("evaluate.sh", [], {}, "/out holds no checkpoint: train with pretrain_random_ltd.sh or"),
    "no such run": ("evaluate.sh", ["dense-1B"], {}, "/out/dense-1B holds no checkpoint: name a run of "),
    "environment": ("prepare_data.sh", [], {"MERGE": "2", "VENV": "none"}, "VENV="),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(repository: Path, tmp_path: Path, case: str) -> None:
    script, arguments, settings, message = REFUSED[case]
    for name in ("d.idx", "empty"):
        (tmp_path / name).touch()
    vocabulary = {piece: token for token, piece in enumerate([*byte_alphabet(), END_OF_TEXT])}
    (tmp_path / "v.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "m.bpe").write_text("#version: 0.2\n", encoding="utf-8")
    settings = {"OUT": "out", "DATA_DIR": "data", **settings}
    ended = run(repository, tmp_path, f"gpt3_350m/{script}", *arguments, **settings)
    lines = ended.stderr.splitlines()
    assert (ended.returncode, len(lines)) == (2, 1), ended.stdout + ended.stderr
    assert message in lines[0] and lines[0].startswith(tuple(f"{name}: error: " for name in (script, *PROGRAMS)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "script",
    ["pretrain_dense.sh", "pretrain_random_ltd.sh", "pretrain_random_ltd_blocks.sh", "prepare_data.sh", "evaluate.sh"],
)
def test_help_is_the_comment_that_a_script_opens_with(repository: Path, tmp_path: Path, script: str) -> None:
    ended = run(repository, tmp_path, f"gpt3_350m/{script}", "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"    bash examples/gpt3_350m/{script}" in ended.stdout or "VOCAB_FILE=" in ended.stdout
    assert "#" not in ended.stdout and "pipefail" not in ended.stdout
    assert ended.stdout == run(repository, tmp_path, f"gpt3_350m/{script}", "-h").stdout
