"""The programs whose command lines are tried: their script, their flags, and command lines that work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.ltd.config import flag_classes
from megatron.ltd.data.builtin.corpus import CorpusConfig
from megatron.ltd.data.merge import MergeConfig
from megatron.ltd.data.preprocess import PreprocessConfig
from megatron.ltd.data.train_tokenizer import TrainTokenizerConfig
from megatron.ltd.evaluation.lm_eval.harness_args import HarnessArgs
from megatron.ltd.evaluation.lm_eval.harness_command import TaskFlags
from megatron.ltd.evaluation.local_tasks.prepare import PrepareConfig
from megatron.ltd.evaluation.sampling_config import SamplingConfig
from megatron.ltd.export.config import ExportConfig, ImportConfig
from megatron.ltd.reports.figures.config import PlotConfig
from megatron.ltd.reports.page.config import ReportConfig
from megatron.ltd.reports.summary import SummaryConfig
from megatron.ltd.reports.task_table import CompareConfig
from megatron.ltd.tokenizers.config import TokenizerFiles
from megatron.ltd.workloads import BERT, BERT_CLASSIFIER, GPT, VIT

from . import material
from .warm import REPOSITORY


@dataclass(frozen=True)
class Program:
    """One script."""

    path: Path
    classes: Sequence[type]
    """The dataclasses of its flags."""
    bases: Sequence[Sequence[str]]
    """Command lines that work in a copy of the material."""
    trains: bool = False

    @property
    def name(self) -> str:
        return self.path.name


def _training(script: str, entry: object, words: Sequence[str], *more: str) -> Program:
    bases = [[*words, *variant.split()] for variant in ("", *more)]
    return Program(REPOSITORY / script, flag_classes(entry), bases, trains=True)  # type: ignore[arg-type]


def _tool(script: str, classes: Sequence[type], *bases: str) -> Program:
    return Program(REPOSITORY / "tools" / script, classes, [base.split() for base in bases])


_LLAMA = "--swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear"
_OTHER = "--save out --save-interval 1 --async-save --token-bypass --layer-drop"
_BLOCKS = "--ltd-block-size 2 --recompute-granularity selective --bf16 --save out"
_HIDDEN = "--load half --save half --override-opt-param-scheduler"
_FINE = "--load last --finetune --save out --use-distributed-optimizer"


def programs() -> list[Program]:
    """All programs that read their flags from dataclasses, but this one and the benchmarks."""
    return [
        _training("pretrain_gpt_ltd.py", GPT, material.GPT, _LLAMA, _OTHER, _BLOCKS, _HIDDEN, _FINE),
        _training("pretrain_bert_ltd.py", BERT, material.BERT, "--random-ltd", "--token-bypass --save out"),
        _training("finetune_bert_ltd.py", BERT_CLASSIFIER, material.CLASSIFIER, "--layer-drop --save out"),
        _training("finetune_vit_ltd.py", VIT, material.VIT, "--random-ltd --save out"),
        _tool("preprocess_data.py", (PreprocessConfig, TokenizerFiles),
              "--input text.jsonl --output-prefix out --tokenizer-type ByteTokenizer",
              "--input text.txt --output-prefix out --tokenizer-type SentencePieceTokenizer "
              "--tokenizer-model pieces.model",
              "--input text.jsonl --output-prefix out --tokenizer-type GPT2BPETokenizer --vocab-file vocab.json "
              "--merge-file merges.txt",
              "--input text.jsonl --output-prefix out --split-sentences --tokenizer-type BertWordPieceLowerCase "
              "--vocab-file vocab.txt"),
        _tool("train_tokenizer.py", (TrainTokenizerConfig,), "--input text.jsonl --vocab-size 300 --output-prefix out"),
        _tool("merge_datasets.py", (MergeConfig,), "--input data more --output-prefix out"),
        _tool("export_hf.py", (ExportConfig, TokenizerFiles), "--load run --output out --no-tokenizer"),
        _tool("import_hf.py", (ImportConfig, TokenizerFiles), "--load hf --save out --tokenizer-type ByteTokenizer"),
        _tool("generate_text.py", (SamplingConfig, TokenizerFiles),
              "--load run --prompt the --num-tokens-to-generate 3 --device cpu"),
        _tool("evaluate.py", (HarnessArgs, TaskFlags), "--load run --device cpu --tasks wikitext --task-data out"),
        _tool("prepare_tasks.py", (PrepareConfig,), "--task wikitext --validation text.txt --output-dir out"),
        _tool("builtin_corpus.py", (CorpusConfig,), "--output-dir out --max-mb 0.01"),
        _tool("report.py", (ReportConfig,), "--run run --plan plan.json --output out.html"),
        _tool("plot_run.py", (PlotConfig,), "--runs run half --x tokens --output out.svg"),
        _tool("summarize_runs.py", (SummaryConfig,), "--runs run half"),
        _tool("compare_runs.py", (CompareConfig,), "--results run half"),
    ]  # fmt: skip
