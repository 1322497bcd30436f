"""Train a model, or print the plan of a run: what the scripts beside the README do."""

from __future__ import annotations

import sys

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.launch import launch
from megatron.ltd.workloads import BERT, BERT_CLASSIFIER, GPT, VIT


def pretrain_gpt() -> None:
    """Pretrain a GPT."""
    launch(parse_run_config(None, GPT))


def pretrain_bert() -> None:
    """Pretrain a BERT."""
    launch(parse_run_config(None, BERT))


def finetune_bert() -> None:
    """Finetune a BERT on labelled sentences."""
    launch(parse_run_config(None, BERT_CLASSIFIER))


def finetune_vit() -> None:
    """Finetune a vision transformer."""
    launch(parse_run_config(None, VIT))


def plan() -> None:
    """Print the plan of a GPT's run, as ``pretrain_gpt`` with ``--plan`` does."""
    launch(parse_run_config([*sys.argv[1:], "--plan"], GPT))
