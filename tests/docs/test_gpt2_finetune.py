"""The GPT-2 example as a user runs it, in its small version, in this Python environment."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.arguments import parse_run_config
from tests.docs.documents import code_blocks
from tests.docs.example_scripts import run
from tests.end_to_end.runs import metrics, snapshot

pytestmark = pytest.mark.slow

FOLDER = Path("examples") / "gpt2_finetune"
SCRIPT = "gpt2_finetune/run.sh"


@pytest.fixture(scope="module")
def finished(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder, which was given as a relative path, and what was printed."""
    home = tmp_path_factory.mktemp("home")
    ended = run(repository, home, SCRIPT, "--out", "out", TINY="1")
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout[-2000:] + ended.stderr[-2000:]
    return home / "out", ended.stdout


def about(folder: Path) -> dict[str, Any]:
    """The first record of the run's log."""
    return json.loads((folder / "metrics.jsonl").read_text().partition("\n")[0])


def test_both_runs_start_from_the_weights_and_learn(finished: tuple[Path, str]) -> None:
    out, printed = finished
    assert printed.count(f"loading the weights of Hugging Face's gpt2 in {out}/tiny/weights") == 2
    starts = []
    for name in ("random_ltd", "dense"):
        perplexities = {
            step: line["perplexity"] for (kind, step), line in metrics(out / name).items() if kind != "train"
        }
        assert len(perplexities) >= 5 and min(perplexities) == 0
        assert perplexities[max(perplexities)] < 0.15 * perplexities[0]
        starts.append(perplexities[0])
    assert starts[0] == starts[1]
    assert re.search(rf"^perplexity before training +{starts[0]:.2f} +{starts[0]:.2f}$", printed, flags=re.MULTILINE)
    assert (out / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_runs_follow_the_recipe(finished: tuple[Path, str]) -> None:
    """Both runs compute the layer tokens of the passes over the text; all tokens are kept from 30 % of the steps on."""
    out, _ = finished
    tokens = json.loads((out / "train_text_document.json").read_text())["tokens"]
    dense_steps = (tokens - 1) // 64 // 8
    dense, dropped = about(out / "dense"), about(out / "random_ltd")
    assert dense["num_steps"] == dense_steps < dropped["num_steps"]
    ends = [
        metrics(out / name)["train", line["num_steps"]] for name, line in (("dense", dense), ("random_ltd", dropped))
    ]
    layer_tokens = [end["consumed_layer_tokens"] for end in ends]
    assert layer_tokens[0] == dense_steps * 8 * 64 * 4
    assert layer_tokens[0] <= layer_tokens[1] < layer_tokens[0] + 8 * 64 * 4
    kept = [line["kept_tokens"] for (kind, _), line in sorted(metrics(out / "random_ltd").items()) if kind == "train"]
    growth = int(0.3 * dense_steps)
    assert kept[0] == 16 and kept[growth - 1] < 64 and set(kept[growth:]) == {64}


def test_repeating_the_command_changes_nothing(finished: tuple[Path, str], repository: Path) -> None:
    out, _ = finished
    checkpoints = snapshot(out / "dense" / f"iter_{about(out / 'dense')['num_steps']:07d}")
    ended = run(repository, out.parent, SCRIPT, "--out", "out", TINY="1")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.count("there already: ") == 2 and ended.stdout.count("there is nothing left to do") == 2
    assert snapshot(out / "dense" / f"iter_{about(out / 'dense')['num_steps']:07d}") == checkpoints


def test_mistakes_are_refused(finished: tuple[Path, str], repository: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "weights").mkdir()
    for words, settings, message in (
        (
            ["weights", "text.txt", "text.txt", "--out", str(tmp_path)],
            {},
            "was not made by this example; choose another one",
        ),
        (["--out", str(finished[0]), "--seed", "7"], {"TINY": "1"}, "--seed"),
    ):
        ended = run(repository, tmp_path, SCRIPT, *words, **settings)
        assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1 and message in ended.stderr, ended
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "weights"]


def test_the_card_names_existing_files(repository: Path, finished: tuple[Path, str]) -> None:
    card = (repository / FOLDER / "README.md").read_text()
    paths = set(re.findall(r"[\w/]+\.(?:py|sh)\b", card)) - {"run.sh"}
    assert len(paths) == 5 and all((repository / path).is_file() for path in paths)
    (command,) = (block for block in code_blocks(card, "bash") if "pretrain_gpt_ltd.py" in block)
    words = shlex.split(command.split("pretrain_gpt_ltd.py")[1].replace("\\\n", " "))
    words[words.index("--pretrained-checkpoint") + 1] = str(finished[0] / "tiny" / "weights")
    config = parse_run_config([*words, "--ltd-min-kept-tokens", "16"])
    assert config.model.hidden_size == 64 and config.tokenizer.tokenizer_type == "GPT2BPETokenizer"
