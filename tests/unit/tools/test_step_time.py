"""The step-time benchmark: figures from known seconds, its contenders, and the command on a tiny model."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch
from step_time.config import StepTimeConfig
from step_time.measure import DENSE, HUGGING_FACE, Measurement, Variant
from step_time.report import figures, table

from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.mesh import initialize
from tests.support_errors import refused
from tests.unit.tools.tables import table_rows

TOY = {
    "num_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "seq_length": 16, "micro_batch_size": 2,
    "vocab_size": 64, "device": "cpu",
}  # fmt: skip
CONFIG = StepTimeConfig(**TOY)


def variant(name: str, flops: int, seconds: list[float], routing: tuple[float, ...] = ()) -> Variant:
    return Variant(name, lambda: None, flops, seconds=seconds, routing_seconds=list(routing))


def test_ratios_are_taken_within_rounds() -> None:
    # The second round is three times slower, which does not change the ratios within rounds.
    plain, fused = HUGGING_FACE
    measurement = Measurement(
        [
            variant(DENSE, 100, [2.0, 6.0, 2.0]),
            variant("K", 60, [1.0, 3.0, 1.0], routing=(0.02, 0.06, 0.02)),
            variant(plain, 100, [4.0, 12.0, 4.0]),
            variant(fused, 100, [2.5, 7.5, 2.5]),
        ],
        [100.0, 100 / 3, 100.0],
    )
    dense, dropped, hugging_face, _ = figures(measurement)
    assert (dropped.step_seconds, dropped.fastest_seconds, dropped.slowest_seconds) == (1.0, 1.0, 3.0)
    assert dropped.theoretical_saving == pytest.approx(0.4) and dropped.realised_saving == pytest.approx(0.5)
    assert dropped.routing_share == pytest.approx(0.02) and dropped.share_of_products == pytest.approx(0.6)
    assert dense.theoretical_saving is dense.routing_share is hugging_face.realised_saving is None
    assert dense.times_of == pytest.approx({plain: 0.5, fused: 0.8})
    header, lines = table([dense, dropped])
    assert lines[1][1:8] == ["1.000", "1.000 – 3.000", "0", "60%", "40.0%", "50.0%", "1.25"]
    assert {len(line) for line in lines} == {len(header)}


def test_all_contenders_train_from_the_same_weights() -> None:
    with initialize(ParallelConfig(device="cpu")) as mesh:
        from step_time import contenders

        torch.manual_seed(0)
        batch = contenders.build_batch(CONFIG, mesh.device)
        with contenders.built_run(contenders.flags_of(CONFIG), mesh) as run:
            dense = contenders.ours(run, batch, run.method)
            losses = {"dense": [dense() for _ in range(4)]}
            dropping = contenders.ours(run, batch, contenders.build_random_ltd(CONFIG, 8, block_size=4))
            assert [dropping() for _ in range(4)][-1] < losses["dense"][0]
        for name, activation in HUGGING_FACE.items():
            step = contenders.build_hugging_face(CONFIG, batch, activation)
            losses[name] = [step() for _ in range(4)]
    for found in losses.values():
        assert found[0] == pytest.approx(math.log(64), abs=0.05)
        assert found == sorted(found, reverse=True) and found[-1] < found[0]


def test_routing_without_a_layer_returns_every_tokens_gradient() -> None:
    from step_time import contenders

    torch.manual_seed(0)
    batch = contenders.build_batch(CONFIG, torch.device("cpu"))
    torch.manual_seed(7)
    route_all = contenders.build_routing(CONFIG, batch)
    torch.manual_seed(7)
    torch.randn(16, 2, 16)  # advances the generator as the contender does for its hidden states
    grads = torch.randn(16, 2, 16)
    for block_size in (1, 4):
        assert torch.equal(route_all(contenders.build_random_ltd(CONFIG, 8, block_size)), grads)


def test_the_command_prints_a_table_and_writes_json(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, output = repository / "tools" / "benchmark" / "step_time.py", tmp_path / "out.json"
    toy = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in TOY.items())
    more = "--rounds 2 --threads 1 --kept-tokens 4 --block-sizes 1 2 --executed-layers 2 --token-bypass --markdown"
    monkeypatch.setattr(sys, "argv", f"{script} {toy} {more} --json {output}".split())
    runpy.run_path(str(script))["main"]()
    printed = capsys.readouterr()
    methods = ["random-LTD, K = 4", "random-LTD in blocks of 2, K = 4", "TokenBypass, K = 8"]
    methods += ["layer dropping, 2 of 3 layers"]
    assert [row[0] for row in table_rows(printed.out)] == [DENSE, *methods, *HUGGING_FACE]
    assert "round 3 of 3: dense " in printed.err
    written = json.loads(output.read_text(encoding="utf-8"))
    assert {len(seconds) for seconds in written["rounds"]["step_seconds"].values()} == {2}
    assert all(row["step_seconds"] > 0 and row["flops_per_second"] > 0 for row in written["figures"])
    # by hand: one middle layer of three on 4 of 16 tokens, H 16, V 64, two samples, backward twice forward
    layer = {n: 24 * n * 16 * 16 + 4 * (n * (n + 1) // 2) * 16 for n in (4, 16)}
    head = 2 * 16 * 16 * 64
    figures_of = {row["name"]: row["flops"] for row in written["figures"]}
    assert figures_of[DENSE] == 3 * 2 * (3 * layer[16] + head)
    assert figures_of["random-LTD, K = 4"] == 3 * 2 * (2 * layer[16] + layer[4] + head)
    assert figures_of["layer dropping, 2 of 3 layers"] == 3 * 2 * (2 * layer[16] + head)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"num_layers": 2}, ["--num-layers 2", 3]),
        ({"rounds": 0}, ["--rounds 0", 1]),
        ({"threads": 0}, ["--threads 0", 1]),
        ({"kept_tokens": (512,)}, ["--kept-tokens 512", "--seq-length 512"]),
        ({"executed_layers": (12,)}, ["--executed-layers 12", "--num-layers 12"]),
        ({"block_sizes": (3,)}, ["--block-sizes 3", "--seq-length"]),
        ({"clock": "cpu"}, ["--clock cpu", "--threads 1", "--device cpu"]),
        ({"json": "no/such/folder/a.json"}, ["--json no/such/folder/a.json", "no/such/folder"]),
    ],
)
def test_bad_flags_are_refused(values: dict[str, object], names: list[object]) -> None:
    with refused(*names):
        StepTimeConfig(**values)  # type: ignore[arg-type]
