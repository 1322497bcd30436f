"""The figures of the evidence against records whose answers are known in closed form."""

from __future__ import annotations

from pathlib import Path

import pytest
from evidence.records import Record
from evidence.report import to_markdown
from evidence.summary import Curve, by_setting

from tests.unit.tools.evidence.made_up import dense, dense_loss, record

DENSE = [
    dense(seed, share, name)
    for seed in (1, 2, 3)
    for share, name in ((1.0, "dense"), (0.8, "dense@blocks16"), (0.5, "dense*0.5"))
]


def arm(name: str, eta: float, cost: float, *noise: float, lr: float = 3e-3) -> list[Record]:
    """Records of an arm that reaches the dense loss at a share ``eta`` of the steps, plus noise for each seed."""
    return [
        record(name, seed, dense_loss(eta, seed) + error, cost=cost, lr=lr) for seed, error in enumerate(noise, start=1)
    ]


def test_eta_is_the_share_of_dense_steps_with_the_same_loss() -> None:
    setting = by_setting([*DENSE, *arm("blocks16", 0.9, 0.8, 0.0, 0.0, 0.0), *arm("slow", 0.3, 0.7, 0.0, 0.0, 0.0)])
    blocks = setting["s256"].summary("blocks16")
    assert blocks.eta is not None and blocks.eta.mean == pytest.approx(0.9) and blocks.cost == pytest.approx(0.8)
    assert blocks.difference is not None and blocks.difference.mean == pytest.approx(dense_loss(0.9) - dense_loss(1))
    slow = setting["s256"].summary("slow")  # below the shortest dense run, so extrapolated
    assert slow.eta is not None and slow.eta.mean == pytest.approx(0.3)
    better = by_setting([*DENSE, *arm("a", 1.1, 0.8, 0.0, 0.0, 0.0)])["s256"].summary("a")
    assert better.eta is not None and better.eta.mean == pytest.approx(1.1)


def test_equal_flops_compares_with_the_dense_run_planned_for_the_arm() -> None:
    setting = by_setting([*DENSE, *arm("blocks16", 0.9, 0.8, 0.01, 0.0, -0.01), *arm("other", 0.9, 0.7, 0.0, 0.0, 0.0)])
    blocks = setting["s256"].summary("blocks16")
    assert blocks.at_equal_flops is not None
    assert blocks.at_equal_flops.mean == pytest.approx(dense_loss(0.9) - dense_loss(0.8))
    assert blocks.at_equal_flops.standard_error == pytest.approx(0.01 / 3**0.5)
    assert setting["s256"].summary("other").at_equal_flops is None


def test_dense_runs_of_equal_flops_are_compared_at_their_own_best_rate() -> None:
    """Of the rates with the most seeds: one seed at the rate of the longer dense runs does not count."""
    shorter = [dense(seed, 0.8, "dense@blocks16", lr) for seed in (1, 2, 3) for lr in (6e-3, 1.2e-2)]
    shorter += [record("dense@blocks16", seed, 9.0, steps=80, lr=1.2e-2) for seed in (1, 2, 3)]
    shorter += [record("dense@blocks16", 1, 1.0, steps=80)]
    whole = [dense(seed) for seed in (1, 2, 3)]
    blocks = by_setting([*whole, *shorter, *arm("blocks16", 0.9, 0.8, 0.0, 0.0, 0.0)])["s256"].summary("blocks16")
    assert blocks.at_equal_flops is not None and blocks.eta is not None
    assert blocks.at_equal_flops.mean == pytest.approx(dense_loss(0.9) - dense_loss(0.8))
    assert blocks.eta.mean == pytest.approx(0.9)


def test_each_arm_is_compared_at_its_best_rate_over_shared_seeds() -> None:
    """On seed 1, which both rates have, the high rate is worse; its low loss on an unshared seed does not count."""
    records = [*DENSE, dense(1, 0.9, "dense", 6e-3), *arm("blocks16", 0.9, 0.8, 0.0, 0.0)]
    records += arm("blocks16", 0.95, 0.8, 0.2, lr=6e-3) + [record("blocks16", 9, 1.0, cost=0.8, lr=6e-3)]
    setting = by_setting(records)["s256"]
    assert setting.best_rate("dense") == setting.best_rate("blocks16") == 3e-3
    assert setting.summary("blocks16").seeds == (1, 2)
    assert setting.arms == ["dense", "blocks16"]


def test_a_better_rate_with_fewer_seeds_is_said_but_not_compared() -> None:
    """Differences need pairs of seeds; that the arm may be better all the same is a line of the page."""
    records = [*DENSE, dense(1, 1.1, "dense", 6e-3), *arm("blocks16", 0.9, 0.8, 0.0, 0.0, 0.0)]
    setting = by_setting(records)["s256"]
    assert (setting.best_rate("dense"), setting.compared_rate("dense")) == (6e-3, 3e-3)
    blocks = setting.summary("blocks16")
    assert blocks.difference is not None and blocks.difference.mean == pytest.approx(dense_loss(0.9) - dense_loss(1))
    page = to_markdown({"s256": setting}, records, "", Path("plot.png"), len(records))
    gain = dense_loss(1) - dense_loss(1.1)
    assert f"**dense** at 0.006 ends {gain:.4f} lower than at 0.003, with seed 1 alone" in page
    assert f"**{dense_loss(1.1, 1):.4f}**" in page


def test_a_single_dense_length_gives_no_eta() -> None:
    setting = by_setting([dense(1), *arm("blocks16", 0.9, 0.8, 0.0)])["s256"]
    assert setting.dense_curve is None and setting.summary("blocks16").eta is None
    assert by_setting(arm("blocks16", 0.9, 0.8, 0.0)) == {}


def test_the_curve_goes_through_its_points_and_is_inverted() -> None:
    curve = Curve(((0.5, 0.4), (0.8, 0.1), (1.0, 0.0)))
    for share in (0.3, 0.5, 0.65, 0.8, 0.9, 1.0, 1.2):
        assert curve.share_at(curve.loss_at(share)) == pytest.approx(share)
    assert curve.loss_at(0.8) == pytest.approx(0.1) and curve.share_at(0.4) == pytest.approx(0.5)
