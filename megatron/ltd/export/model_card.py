"""The README.md of an exported model: its sizes, its training, and the cost of that.

It is made from the checkpoint's run.json, and from the run's metrics.jsonl if it is found, up to the checkpoint's step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.ltd.checkpoint.load import Progress
from megatron.ltd.format import format_count, format_flops, markdown_table, without_markup
from megatron.ltd.hugging_face.architecture import Architecture
from megatron.ltd.methods.base import METHOD
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.reports.metrics import METRICS, RunHistory, read_history
from megatron.ltd.reports.summary import summarize
from megatron.ltd.words import in_words, value_of


def read_steps(folder: Path, iteration: int) -> RunHistory | None:
    """The history of the run up to ``iteration``; None if ``folder`` has none, as for an imported model.

    Raises ``UserError`` if no step of it is whole.
    """
    if iteration == 0 or not (folder / METRICS).is_file():
        return None
    history = read_history(folder, folder.name)
    steps = tuple(step for step in history.steps if step["iteration"] <= iteration)
    validations = tuple(line for line in history.validations if line["iteration"] <= iteration)
    return dataclasses.replace(history, steps=steps, validations=validations) if steps else None


def model_card(
    architecture: Architecture,
    model: ModelConfig,
    record: Mapping[str, Any],
    history: RunHistory | None,
    *,
    name: str,
    num_parameters: int,
    with_tokenizer: bool,
) -> str:
    """The text of README.md; ``record`` is the checkpoint's run.json, ``name`` the name of the model."""
    tokenizer = record["config"]["tokenizer"]["tokenizer_type"]
    use = "AutoModelForCausalLM, AutoTokenizer" if with_tokenizer else "AutoModelForCausalLM"
    more = [f'tokenizer = AutoTokenizer.from_pretrained("{name}")'] if with_tokenizer else []
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- megatron-ltd\n---",
        f"# {name}",
        f"A language model of {format_count(num_parameters)} parameters with the {architecture.title} architecture, "
        "trained with Megatron-LTD on Megatron-Core and exported from its checkpoint.",
        f"```python\nfrom transformers import {use}\n\n"
        + "\n".join([f'model = AutoModelForCausalLM.from_pretrained("{name}")', *more])
        + "\n```",
        'This needs the package `transformers`; without it run `pip install "megatron-ltd[hf]"` or '
        "`pip install transformers`.",
        "## Model\n\n"
        + markdown_table(_model_rows(model, str(tokenizer), with_tokenizer).items(), ("", ""), num_labels=2),
        "## Training\n\n" + markdown_table(_training_rows(model, record, history).items(), ("", ""), num_labels=2),
    ]
    return "\n\n".join(parts) + "\n"


def _model_rows(model: ModelConfig, tokenizer: str, with_tokenizer: bool) -> dict[str, str]:
    return {
        "layers": str(model.num_layers),
        "hidden size": str(model.hidden_size),
        "attention heads": str(model.num_attention_heads),
        "key-value heads": str(model.query_groups),
        "MLP width": str(model.mlp_size),
        "longest context": f"{model.learned_positions or model.seq_length} tokens",
        "tokenizer": tokenizer + ("" if with_tokenizer else ", not in this folder"),
    }


def _training_rows(model: ModelConfig, record: Mapping[str, Any], history: RunHistory | None) -> dict[str, str]:
    """The rows about training, with those from the history if it is known."""
    progress, schedule = Progress.read(record["progress"], model.seq_length), record["schedule"]
    settings = in_words(
        {setting: value for setting, value in schedule.items() if setting != METHOD and value not in (None, [], ())}
    )
    rows = {
        "method": value_of(METHOD, schedule[METHOD]) if METHOD in schedule else "none: the weights were imported",
        "steps": str(progress.iteration),
        "tokens": f"{progress.consumed_tokens:,}",
        "layer tokens": f"{progress.consumed_layer_tokens:,}",
        "layer tokens / layers": f"{progress.consumed_layer_tokens // model.num_layers:,}",
    }
    if history is not None:
        summary = summarize(history)
        rows["FLOPs"] = f"{format_flops(summary.flops)}; dense {format_flops(summary.dense_flops)}"
        rows["saved over dense (FLOPs)"] = f"{100.0 * summary.theoretical_saving:.1f} %"
        if history.steps[-1]["loss"] is not None:
            rows["training loss, last step"] = f"{history.steps[-1]['loss']:.4f}"
        if summary.validation_loss is not None:
            rows["validation loss, last"] = (
                f"{summary.validation_loss:.4f} (step {history.validations[-1]['iteration']})"
            )
    rows["dropout"] = f"attention {model.attention_dropout}, hidden {model.hidden_dropout}"
    rows["data, fingerprint"] = str(record["order"].get("train_data_fingerprint", "not known"))
    rows |= {key: f"`{value}`" for key, value in settings.items()}
    return {without_markup(key): without_markup(value) for key, value in rows.items()}
