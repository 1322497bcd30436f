"""The flags that a run's log records, against the command line that started the run."""

from __future__ import annotations

import json
import shlex

import pytest

from megatron.ltd.arguments import build_parser, parse_run_config
from megatron.ltd.commands import COMMANDS as COMMANDS_BY_NAME
from megatron.ltd.flags import flag_fields, flag_name
from megatron.ltd.forecast.config import PlanConfig
from megatron.ltd.reports.page.settings import command, settings
from megatron.ltd.workloads import WORKLOADS

RUN = ["--train-iters", "20", "--lr", "1e-3"]
TEXT = [*RUN, "--train-data-path", "d", "--valid-data-path", "v"]
COMMANDS = {
    "gpt": [
        *TEXT, "--tokenizer-type", "ByteTokenizer", "--disable-bias-linear", "--swiglu", "--random-ltd",
        "--ltd-min-kept-tokens", "16", "--ltd-growth-steps", "9", "--micro-batch-size", "2", "--bias-swiglu-fusion",
    ],
    "bert": [*TEXT, "--tokenizer-type", "BertWordPieceCase", "--vocab-file", "w"],
    "bert_classifier": [
        *RUN, "--train-data-path", "d", "--tokenizer-type", "BertWordPieceCase", "--vocab-file", "w",
    ],
    "vit": [*RUN, "--num-layers", "4", "--train-data-path", "d"],
}  # fmt: skip


@pytest.mark.parametrize("task", COMMANDS)
def test_changed_flags_are_those_that_were_typed(task: str) -> None:
    config = parse_run_config(COMMANDS[task], WORKLOADS[task])
    found = settings(json.loads(json.dumps(config.to_dict())))
    actions = [action for action in build_parser(WORKLOADS[task])._actions if "--help" not in action.option_strings]
    flags = {action.option_strings[0] for action in actions}  # of a pair of switches the one without no-
    of_plans = {flag_name(PlanConfig, field.name) for field in flag_fields(PlanConfig)}  # not logged
    assert {setting.flag for setting in found} == flags - {"--config"} - of_plans
    assert {setting.flag for setting in found if setting.is_changed} == {
        word for word in COMMANDS[task] if word.startswith("--")
    }


def test_values_are_shown_as_they_are_typed() -> None:
    config = json.loads(json.dumps(parse_run_config(COMMANDS["gpt"]).to_dict()))
    config["model"]["of_tomorrow"] = [1, 2]
    found = {setting.flag: setting for setting in settings(config)}
    spelled = {
        flag: (found[flag].spelled(found[flag].value), found[flag].spelled(found[flag].default)) for flag in found
    }
    assert spelled["--disable-bias-linear"] == spelled["--swiglu"] == ("given", "not given")
    assert spelled["--no-progress"] == ("not given", "not given")
    assert spelled["--train-iters"] == ("20", "not given") and spelled["--train-data-path"] == ("d", "not given")
    assert found["of_tomorrow"].is_changed and spelled["of_tomorrow"][0] == "1 2"


def test_a_switch_with_no_is_shown_and_typed_as_such() -> None:
    typed = parse_run_config([*COMMANDS["gpt"], "--no-bias-dropout-fusion"])
    (found,) = (setting for setting in settings(typed.to_dict()) if setting.flag == "--bias-dropout-fusion")
    assert found.is_changed and found.words == ["--no-bias-dropout-fusion"]
    assert (found.spelled(found.value), found.spelled(found.default)) == ("off", "not given")


@pytest.mark.parametrize("workload", COMMANDS)
def test_the_command_gives_the_same_settings(workload: str) -> None:
    config = parse_run_config(COMMANDS[workload], WORKLOADS[workload])
    program, *words = shlex.split(command(json.loads(json.dumps(config.to_dict()))).replace("\\\n", ""))
    entry = COMMANDS_BY_NAME[words[0]]
    assert program == "megatron-ltd" and entry.function == f"train:{words[0].replace('-', '_')}"
    assert parse_run_config(words[1:], WORKLOADS[workload]).to_dict() == config.to_dict()


def test_the_command_quotes_words_and_leaves_out_what_this_version_does_not_know() -> None:
    config = json.loads(json.dumps(parse_run_config([*COMMANDS["gpt"], "--save", "a b; c"]).to_dict()))
    config["model"]["of_tomorrow"] = 1
    assert "--save 'a b; c'" in command(config) and "tomorrow" not in command(config)
