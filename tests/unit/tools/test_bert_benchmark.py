"""The comparison of methods on BERT: flags, baselines, and a tiny version of it from books to report."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from bert_text import baseline, data, recipe

from tests.support_errors import refused
from tests.support_processes import PATIENCE_SECONDS
from tests.unit.tools.common.made_up import book
from tests.warm.start import warm_python


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Write a small book and a few labelled sentences, and return the flags that name them."""
    books = tmp_path / "books"
    books.mkdir()
    text = "\n".join(topics[name] for name in ("assert", "class", "debugger", "with", "yield"))
    (books / "a.txt").write_text(book(text), encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "labelled.zip", "w") as archive:
        for name, word in (("neg", "dull"), ("pos", "bright")):
            lines = "\n".join(f"a {word} film number {number}" for number in range(30))
            archive.writestr(f"sentence_polarity/rt-polarity.{name}", lines)
    return ["--data", str(books), "--labelled", str(tmp_path / "labelled.zip")]


def test_variants_differ_only_in_the_flags_of_their_methods() -> None:
    flags = {variant: recipe.FULL.method_flags(variant) for variant in recipe.VARIANTS}
    assert flags["dense"] == [] and "--token-bypass" in flags["token-bypass"]
    assert flags["random-ltd + layer-drop"] == flags["random-ltd"] + flags["layer-drop"]


def test_a_bag_of_words_separates_labels_with_different_words(tmp_path: Path) -> None:
    rows = [{"text": f"{word} {n}", "label": word} for n in range(8) for word in ("dull", "bright")]
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = [tmp_path / name for name in ("a", "b", "c", "train.jsonl", "valid.jsonl")]
    found = baseline.bag_of_words(recipe.Data(*places))
    assert found == {"accuracy": 1.0, "f1": 1.0}


def test_another_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_text("no")
    with refused(f"--labelled {tmp_path / 'no.zip'}", "sentence_polarity.zip"):
        data.read_labelled_zip(tmp_path / "no.zip")


@pytest.mark.slow
def test_from_books_to_report(repository: Path, tmp_path: Path, sources: list[str]) -> None:
    """Every part runs with one variant, and a second start does not repeat finished runs."""
    work = tmp_path / "work"
    script = tmp_path / "one_variant.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import bert_text.recipe as recipe; "
        "recipe.VARIANTS = ('random-ltd + layer-drop',); import bert_text.report as report; "
        "report.VARIANTS = recipe.VARIANTS; import bert; bert.main()"
    )
    command = [warm_python(), str(script), str(repository / "tools" / "benchmark"), "--tiny", "--jobs", "2"]
    command += ["--work-dir", str(work), *sources]
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    ended = [
        subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        for _ in range(2)
    ]
    assert [run.returncode for run in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    assert "finished finetuned random-ltd + layer-drop seed 1" in ended[0].stdout
    assert "finished" not in ended[1].stdout
    record = json.loads((work / "report.json").read_text())
    pretrained, scratch, tuned = record["runs"]
    assert pretrained["flops"] < pretrained["dense_flops"] and tuned["flops"] == scratch["flops"]
    assert pretrained["measures"].keys() >= {"masked_lm_loss", "sentence_order_accuracy"}
    assert tuned["measures"].keys() == {"accuracy", "f1"}
    page = (work / "report.md").read_text()
    assert 3.0 < record["baselines"]["masked_lm_loss"] < 6.2 and "- token frequencies: " in page
    assert "| bag of words, logistic regression |" in page and "| no pretraining | 1 |" in page
    console = (work / "finetuned-random-ltd-layer-drop-seed1" / "console.log").read_text()
    assert "weights only" in console and "not loaded from the checkpoint" in console
