"""What a run evaluates on: several validation sets, test data, made-up data; and a run that goes on with other data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.runs import TINY, metrics, run_status, tiny_flags, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluated")


def evaluated(folder: Path, name: str, *data: object, more: tuple[object, ...] = ()) -> dict:
    log = folder / "logs" / name
    assert run_status([*TINY, *map(str, (*data, "--log-dir", log, *more))]) == (0, "")
    return metrics(log)


@pytest.mark.parametrize("whole", [(), ("--full-validation",)])
def test_each_validation_set_has_the_loss_that_it_has_alone(folder: Path, tmp_path: Path, whole: tuple) -> None:
    train, web, code = (write_data(tmp_path, name, seed) for name, seed in
                        (("train", "lorem ipsum "), ("web", "dolor sit "), ("code", "if x: y += ")))  # fmt: skip
    apart = [evaluated(tmp_path, f"{number}", "--train-data-path", train, "--valid-data-path", data, more=whole)
             for number, data in enumerate((web, code))]  # fmt: skip
    sets = ("--valid-data-path", f"web={web}", f"code={code}", "--test-data-path", code)
    together = evaluated(tmp_path, "sets", "--train-data-path", train, *sets, more=whole)
    for iteration in (3, 6):
        found = together["validation", iteration]
        losses = [one["validation", iteration]["loss"] for one in apart]
        assert [found["web/loss"], found["code/loss"]] == losses and losses[0] != losses[1]
        assert found["loss"] == pytest.approx(sum(losses) / 2)
    assert together["test", 6]["loss"] == apart[1]["validation", 6]["loss"]
    assert [iteration for kind, iteration in together if kind == "test"] == [6]
    trained = [{key: line for key, line in run.items() if key[0] == "train"} for run in (*apart, together)]
    assert trained[0] == trained[1] == trained[2]


def test_data_from_files_are_those_of_the_flags(folder: Path, tmp_path: Path) -> None:
    first, second = (write_data(tmp_path, name, name) for name in ("first", "second"))
    words = f"3 {first} 1 {second}"
    (tmp_path / "blend.txt").write_text(words.replace(" ", "\n"))
    (tmp_path / "splits.json").write_text(f'{{"train": "{words}", "valid": ["{second}"]}}')
    split = ("--split", "50,50")
    assert evaluated(tmp_path, "a", "--data-path", *words.split(), *split) == evaluated(
        tmp_path, "b", "--data-args-path", tmp_path / "blend.txt", *split
    )
    assert evaluated(tmp_path, "c", "--train-data-path", *words.split(), "--valid-data-path", second) == evaluated(
        tmp_path, "d", "--per-split-data-args-path", tmp_path / "splits.json"
    )


def test_mock_data_train_and_continue(tmp_path: Path) -> None:
    steps = ("--lr", "1e-2", "--train-iters", 30, "--log-dir", tmp_path / "logs", "--eval-interval", 15)
    saved = ("--save", tmp_path / "saved", "--load", tmp_path / "saved")
    assert run_status([*TINY, *map(str, ("--mock-data", *steps))]) == (0, "")
    straight = metrics(tmp_path / "logs")
    assert straight["validation", 30]["loss"] < straight["train", 1]["loss"] - 0.5
    for more in (("--exit-interval", 20), ()):
        assert run_status([*TINY, *map(str, ("--mock-data", *steps, *saved, *more))]) == (0, "")
    assert metrics(tmp_path / "logs") == straight


def test_a_run_goes_on_with_other_data_by_finetune(tmp_path: Path) -> None:
    """The run has the weights of the first data, and reads the second data from their first sample on."""
    first, second = write_data(tmp_path, "first", "lorem "), write_data(tmp_path, "second", "ipsum dolor ")
    saved = tmp_path / "saved"
    assert run_status(tiny_flags(first, "--save", saved, "--save-interval", 3)) == (0, "")
    status, said = run_status(tiny_flags(second, "--load", saved))
    assert status == 2 and "--finetune" in said and "--train-data-path" in said
    log = ("--log-dir", tmp_path / "logs")
    assert run_status(tiny_flags(second, "--load", saved, "--finetune", *log)) == (0, "")
    start, untrained = metrics(tmp_path / "logs"), tmp_path / "new"
    assert run_status(tiny_flags(second, "--log-dir", untrained)) == (0, "")
    assert start["train", 1]["consumed_samples"] == 4
    assert start["train", 1]["loss"] < metrics(untrained)["train", 1]["loss"]
