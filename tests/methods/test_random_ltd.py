"""random-LTD in whole runs: schedules, dropping layers, the closed form of layer tokens, and blocks and strata."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import pretrain

FLAGS = "--random-ltd --ltd-min-kept-tokens 8 --ltd-growth-steps 10 --ltd-granularity 4".split()


def test_layer_tokens_and_the_learning_rate_that_follows_them(flags: list[str], folder: Path) -> None:
    """Two layers keep all tokens; two keep floor(8 + 24 t / 10) rounded down to a multiple of 4. A step has four
    samples. With linear decay to 0 and no warm-up, the rate is proportional to the remaining layer tokens.
    """
    linear = "--lr-decay-style linear --min-lr 0 --lr-warmup-fraction 0".split()
    run = pretrain([*flags, *FLAGS, *linear], folder)
    kept = [8, 8, 12, 12, 16, 20, 20, 24, 24, 28, 32, 32]
    assert run.column("kept_tokens") == kept
    consumed = run.column("consumed_layer_tokens")
    assert consumed[-1] == 4 * (2 * 32 * 12 + 2 * sum(kept))
    expected = [3e-3 * (1 - before / consumed[-1]) for before in (0, *consumed[:-1])]
    assert run.column("lr") == pytest.approx(expected, rel=1e-9)


def test_named_layers_drop_and_no_others(flags: list[str], folder: Path) -> None:
    run = pretrain([*flags, *FLAGS, "--ltd-layers", "1,3-4", "--ltd-allow-edge-layers", "--exit-interval", "1"], folder)
    assert run.column("consumed_layer_tokens") == [4 * (3 * 8 + 32)]


@pytest.mark.parametrize(
    ("schedule", "kept"),
    [
        (
            "shrinking --ltd-min-kept-tokens 8 --ltd-growth-steps 10 --ltd-granularity 8",
            [32, *[24] * 3, *[16] * 3, 8, 8],
        ),
        ("constant --ltd-min-kept-tokens 10", [10] * 9),
        ("staged --ltd-stages 0:8 3:32 7:16 --ltd-granularity 8", [*[8] * 3, *[32] * 4, 16, 16]),
    ],
)
def test_other_schedules_are_followed_and_resumed(
    flags: list[str], folder: Path, schedule: str, kept: list[int]
) -> None:
    """Kept tokens are computed by hand and layer tokens by the closed form; the run is also stopped and resumed."""
    flags = [*flags, "--random-ltd", "--ltd-schedule", *schedule.split(), "--train-iters", "9"]
    straight = pretrain(flags, folder / "straight")
    assert straight.column("kept_tokens") == kept
    assert straight.column("consumed_layer_tokens")[-1] == 4 * (2 * 32 * 9 + 2 * sum(kept))
    pretrain([*flags, "--exit-interval", "4"], folder / "parts")
    resumed = pretrain([*flags, "--load", str(folder / "parts")], folder / "parts")
    assert resumed.kind("train") == straight.kind("train")


def test_blocks_and_strata_keep_different_tokens_at_equal_cost(
    flags: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All block sizes divide the granularity of 4; the printed header and the first record of the log contain them."""
    more = ["", "--ltd-block-size 2", "--ltd-block-size 4", "--ltd-strata 2", "--ltd-strata 4"]
    flags = [*flags, *FLAGS, "--exit-interval", "2"]
    runs = [pretrain([*flags, *of_run.split()], folder / f"{number}") for number, of_run in enumerate(more)]
    assert len({run.column("consumed_layer_tokens")[-1] for run in runs}) == 1
    assert len({run.column("loss")[0] for run in runs}) == 5
    starts = [run.kind("run")[0] for run in runs]
    assert [start["method"] for start in starts] == ["random_ltd"] * 5
    assert [start["method_settings"]["ltd_block_size"] for start in starts] == [None, 2, 4, None, None]
    said = capsys.readouterr().out
    assert "random-LTD in blocks of 2\n" in said and "random-LTD in blocks of 4\n" in said
