"""lm-eval's flags on our parser, against lm-eval's own command line."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("lm_eval")

from megatron.ltd.evaluation.lm_eval.lm_eval_flags import LmEvalParser, cache_arguments

COMMANDS = [
    "-t piqa boolq,copa -L 0.5 -f 3 -b auto:4 -o out -s",
    "--tasks a --tasks b --model_args pretrained=x,tensor_model_parallel_size=2 --model_args seed=3",
    "--gen_kwargs temperature=0.8,top_k=4,do_sample=true until=['a','b'] --num_fewshot 0",
    "--gen_kwargs {\"until\":[\"a,b=\"],\"top_p\":0.5} --wandb_args project=x name=1e-3",
    "--seed 42 --device cpu --max_batch_size 8 --predict_only --check_integrity --show_config",
    "--seed 0,None,8,52 --samples {\"a\":[0,2]} --system_instruction hello --trust_remote_code",
    "--apply_chat_template --fewshot_as_multiturn false --include_path x --use_cache c",
    "--apply_chat_template name --hf_hub_log_args hub_results_org=x --metadata max_seq_lengths=[1,2]",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_are_read_as_by_lm_eval(command: str) -> None:
    from lm_eval._cli.harness import HarnessCLI

    ours = vars(LmEvalParser().parse_args(command.split()))
    theirs = vars(HarnessCLI()._parser.parse_args(["run", *command.split()]))
    expected = {name: value for name, value in theirs.items() if value is not None and name not in ("command", "func")}
    if len(ours.get("seed", [])) == 1:
        ours["seed"] *= 4  # lm-eval's EvaluatorConfig repeats a single seed
    if "samples" in ours:
        ours["samples"] = json.loads(ours["samples"])  # EvaluatorConfig parses this too
    assert ours == expected


def test_every_flag_of_lm_eval_exists() -> None:
    from lm_eval._cli.harness import HarnessCLI

    theirs = set(HarnessCLI()._subparsers.choices["run"]._option_string_actions)
    assert theirs - set(LmEvalParser().flags) == {"-h", "--help", "-C", "--config"}


@pytest.mark.parametrize("mode", ["true", "refresh", "delete"])
def test_cache_arguments_equal_lm_evals(mode: str) -> None:
    from lm_eval._cli.utils import request_caching_arg_to_dict

    assert cache_arguments(mode) == request_caching_arg_to_dict(mode)
    assert cache_arguments({}) == request_caching_arg_to_dict(None)
