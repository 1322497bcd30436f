"""The page about settings files: its files can be read, and have the effects that the page describes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.evaluation.lm_eval.harness_args import HarnessArgs
from megatron.ltd.flags import FlagParser, add_flags
from tests.docs.documents import code_blocks


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "settings-files.md").read_text(encoding="utf-8")


def test_the_recipe_is_read_and_the_commands_parse(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _ = code_blocks(page, "yaml")
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(recipe)
    Path("longer.yaml").write_text("train-tokens: 20_000_000_000\nrandom-ltd: false\nprogress: false\n")
    first, second = (line.split()[2:] for line in code_blocks(page, "bash")[0].splitlines())
    config = parse_run_config(first)
    assert (config.model.hidden_size, config.model.add_bias_linear) == (1024, False)
    assert config.data.data_path == ("0.7", "books", "0.3", "pile")
    assert (config.training.train_tokens, config.optimizer.lr) == (10**10, 3e-4)
    assert config.methods["random_ltd"].enabled and config.logging.progress
    config = parse_run_config(second)
    assert (config.training.train_tokens, config.optimizer.lr, config.checkpoint.save) == (
        2 * 10**10,
        1e-4,
        "runs/longer",
    )
    assert not config.methods["random_ltd"].enabled and not config.logging.progress


def test_the_settings_of_an_evaluation(page: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from megatron.ltd.evaluation.lm_eval.lm_eval_flags import LmEvalParser

    _, evaluation = code_blocks(page, "yaml")
    (tmp_path / "evaluation.yaml").write_text(evaluation)
    parser = FlagParser(None, others=lambda: LmEvalParser().flags)
    add_flags(parser, HarnessArgs)
    ours, unknown = parser.parse_known_args(["--config", str(tmp_path / "evaluation.yaml")])
    assert ours.pretrained == "runs/random-ltd" and unknown == []
    assert parser.other_words == ["--tasks", "lambada_openai", "hellaswag", "--num_fewshot=0"]


def test_the_size_limit_on_the_page_is_the_codes(page: str) -> None:
    from megatron.ltd.flags import yaml_tree

    (limit,) = re.findall(r"at most (\d+) KiB", page)
    assert int(limit) * 1024 == yaml_tree._MOST_BYTES
