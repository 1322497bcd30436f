"""What each training flag affects, against what checkpoints store and what runs compare and report."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from megatron.ltd.arguments import build_parser, parse_run_config
from megatron.ltd.config import PARTS, WORKLOAD_PARTS, flag_classes
from megatron.ltd.flags import Affects, flag_fields
from megatron.ltd.forecast.config import PlanConfig
from megatron.ltd.methods import METHODS
from megatron.ltd.methods.base import Dense, ModelFacts
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.encoder_config import BertModelConfig, ViTConfig
from megatron.ltd.models.execution_config import OF_FP8
from megatron.ltd.plan.accounting import ModelShape
from megatron.ltd.plan.clock import RunClock
from megatron.ltd.plan.config import OptimizerConfig, TrainingConfig
from megatron.ltd.workloads import WORKLOADS
from tests.methods.cases import CASES

AFFECTS: dict[str, dict[str, Affects | None]] = {
    workload: {field.name: field.metadata["affects"] for part in flag_classes(entry) for field in flag_fields(part)}
    for workload, entry in WORKLOADS.items()
}
"""What each flag affects, by workload and field."""
OF_PLANS = {field.name for field in flag_fields(PlanConfig)}
"""Flags that are not part of a run."""


def fields(workload: str, *affects: Affects) -> set[str]:
    return {name for name, found in AFFECTS[workload].items() if found in affects}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_flag_states_what_it_affects(workload: str) -> None:
    assert {name for name, found in AFFECTS[workload].items() if found not in get_args(Affects)} == set()
    typed = {action.dest for action in build_parser(WORKLOADS[workload])._actions} - {"help", "config"}
    assert AFFECTS[workload].keys() == typed and len(typed) > 90


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_field_is_the_id_of_one_flag(workload: str) -> None:
    """A field has the same flag in all workloads, because their checkpoints share the ids."""
    spelled = {action.dest: action.option_strings for action in build_parser(WORKLOADS[workload])._actions}
    for other in WORKLOADS.values():
        for action in build_parser(other)._actions:
            assert spelled.get(action.dest, action.option_strings) == action.option_strings


OF_THE_VOCABULARY = {
    "tokenizer_type", "vocab_file", "merge_file", "tokenizer_model",  # the tokenizer's fingerprint
    "eod_token", "tiktoken_special_tokens",
    "vocab_size", "make_vocab_size_divisible_by",  # the padded vocabulary
}  # fmt: skip
IDENTITIES: dict[str, dict[str, Any]] = {
    "gpt": ModelConfig().identity(128),
    "bert": BertModelConfig().identity(128),
    "bert_classifier": BertModelConfig().identity(128),
    "vit": ViTConfig().identity(),
}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_flags_that_affect_the_model_are_in_its_identity(workload: str) -> None:
    """The identity holds the flag itself or, for some, what is derived from it."""
    covered = {"group_query_attention"} | (
        OF_THE_VOCABULARY if workload != "vit" else set()
    )  # the identity has the number of query groups
    assert fields(workload, "model") - covered == IDENTITIES[workload].keys() - {"padded_vocab_size"}


def test_what_affects_the_order() -> None:
    """Held by ``Workload.order``: paths by content, the classes by count and names; see the tests of the workloads."""
    data = {"seed", "seq_length", "data_path", "split", "train_data_path", "data_args_path", "per_split_data_args_path"}
    assert fields("gpt", "order") == data | {"mock_data"}
    assert fields("bert", "order") == data | {"mask_prob", "short_seq_prob"}
    columns = {"text_column", "label_column", "text_pair_column"}
    assert fields("bert_classifier", "order") == {"seed", "seq_length", "train_data_path"} | columns
    assert fields("vit", "order") == {"seed", "data_path", "train_data_path", "num_classes"}


FACTS = ModelFacts(num_layers=6, seq_length=64, seed=1)


@pytest.mark.parametrize("method", METHODS)
def test_flags_that_affect_a_methods_schedule_are_in_its_settings(method: str) -> None:
    """Continued runs compare these settings, which hold a method's name instead of the switch that turns it on."""
    entry = METHODS[method]
    switch, permits = entry.flag.removeprefix("--").replace("-", "_"), {"ltd_allow_edge_layers"}
    names = {field.name for field in flag_fields(entry.config_class)}
    assert {AFFECTS["gpt"][name] for name in names} == {"schedule"}
    case = next(case for case in CASES.values() if case.method == method)
    run = "--num-layers 4 --seq-length 32 --lr 1e-3 --train-iters 3".split()
    settings = parse_run_config([*run, *case.dropping]).build_method().settings
    assert names - {switch} - permits == settings.keys() - {"method"}
    assert settings["method"] == method


def test_other_flags_that_affect_the_schedule_are_in_the_clocks_settings() -> None:
    """The settings hold the flag itself, or a length in units of the learning rate's clock."""
    shape = ModelShape(
        num_layers=6, hidden_size=8, ffn_hidden_size=32, num_attention_heads=2, num_query_groups=2, kv_channels=4,
        gated_mlp=False, vocab_size=64, seq_length=64,
    )  # fmt: skip
    clock = RunClock.build(shape, 4, Dense(FACTS), TrainingConfig(train_iters=4), OptimizerConfig(lr=1e-3))
    held = clock.settings(clock.schedule()).keys() - {"method"}
    units = ("iters", "samples", "tokens", "fraction")
    lengths = {f"lr_{part}_length" for part in ("warmup", "decay", "wsd_decay")}
    of_methods = {field.name for entry in METHODS.values() for field in flag_fields(entry.config_class)}
    wanted = fields("gpt", "schedule") - of_methods
    horizons = {name for name in wanted if name.rpartition("_")[2] in units}
    assert {f"{name.rpartition('_')[0]}_length" for name in horizons} == lengths <= held
    assert wanted - horizons == held - lengths


def test_flags_that_a_continued_run_reports() -> None:
    """These flags change the numbers of a run, but not its model, the order of data or the schedule."""
    assert fields("gpt", "numbers") == {
        "norm_epsilon", "attention_dropout", "hidden_dropout", "init_method_std", "use_cpu_initialization",
        "reset_position_ids", "reset_attention_mask", "eod_mask_loss", "micro_batch_size", "train_iters",
        "train_samples", "train_tokens", "weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "clip_grad", "bf16",
        "fp16", "grad_reduce_in_bf16", "loss_scale", "initial_loss_scale", "min_loss_scale", "loss_scale_window",
        "hysteresis", *OF_FP8,
    }  # fmt: skip
    assert fields("vit", "numbers") - fields("gpt", "numbers") == {"image_mean", "image_std"}


def test_flags_that_belong_to_one_start() -> None:
    """A resumed run does not report changes of these flags."""
    assert fields("gpt", "start") == {
        "save", "load", "ckpt_step", "pretrained_checkpoint", "save_interval", "keep_last", "async_save",
        "no_save_optim", "no_load_optim", "ckpt_fully_parallel_save", "ckpt_fully_parallel_load", "finetune",
        "exit_on_missing_checkpoint", "use_checkpoint_args", "skip_train", "override_opt_param_scheduler",
        "override_data", "exit_interval", "exit_duration_in_mins", "log_interval",
    }  # fmt: skip


def test_ranks_compare_all_flags_but_those_of_a_machine() -> None:
    """A difference in a flag that is missing here would go unnoticed at the start of a run."""
    assert fields("gpt", "nothing") - OF_PLANS == {
        "log_dir", "tensorboard_dir", "wandb_project", "wandb_exp_name", "wandb_entity", "peak_tflops",
        "mlflow_experiment", "mlflow_run_name", "profile", "profile_step_start", "profile_step_end",
        "use_pytorch_profiler", "progress", "num_workers", "num_dataset_builder_threads", "mmap_bin_files",
        "data_cache_path",
    }  # fmt: skip
    shared = parse_run_config(["--lr", "1e-3", "--train-iters", "10"]).shared_flags()
    spelled = {action.dest: action.option_strings[0] for action in build_parser()._actions}  # the first of a pair
    assert shared.keys() == {spelled[name] for name in AFFECTS["gpt"].keys() - OF_PLANS - fields("gpt", "nothing")}
    assert shared["--lr"] == 1e-3 and shared["--random-ltd"] is False


def test_a_stored_config_has_the_ids_of_its_flags() -> None:
    config = parse_run_config(["--lr", "1e-3", "--train-iters", "3"])
    stored = json.loads(json.dumps(config.to_dict()))
    assert stored.keys() == {*WORKLOAD_PARTS, *PARTS, "methods"}
    parts = [part for name, part in stored.items() if name != "methods"] + [*stored["methods"].values()]
    assert {name for part in parts for name in part} == AFFECTS["gpt"].keys() - OF_PLANS
    assert stored["optimizer"]["lr"] == 1e-3 and stored["methods"]["random_ltd"]["ltd_granularity"] == 16
