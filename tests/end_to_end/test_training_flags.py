"""Flags of Megatron-LM as whole runs: what they log, leave out of a checkpoint, and change."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.training.build import build_run
from tests.end_to_end.runs import metrics, refusal, run_status, tiny_flags, write_data
from tests.support import read_run, world


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that logs norms and zeros; its output matrix is not tied to the embedding."""
    folder = tmp_path_factory.mktemp("run") / "out"
    asked = ["--log-params-norm", "--log-num-zeros-in-grad", "--untie-embeddings-and-output-weights"]
    assert run_status(tiny_flags(data, *asked, "--save", folder)) == (0, "")
    return folder


def losses(folder: Path) -> list[float]:
    return [line["loss"] for (kind, _), line in sorted(metrics(folder).items()) if kind == "train"]


def test_the_norm_of_parameters_is_that_of_the_checkpoint(run: Path) -> None:
    weights = {name: tensor for name, tensor in read_run(run).tensors(6).items() if not name.startswith("optimizer")}
    assert "output_layer.weight" in weights
    expected = sum(float(tensor.double().square().sum()) for tensor in weights.values()) ** 0.5
    assert metrics(run)["train", 6]["params_norm"] == pytest.approx(expected, rel=1e-6)


def test_zeros_in_the_gradient_are_those_of_unseen_ids(run: Path) -> None:
    """At least the rows that pad the vocabulary of 257 to 384, and no row of the 28 ids of the text."""
    zeros = [line["num_zeros"] for (kind, _), line in metrics(run).items() if kind == "train"]
    assert all((384 - 257) * 16 <= count < 384 * 16 for count in zeros)


def test_skip_train_evaluates_and_leaves_everything_as_it_was(
    data: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--load", run, "--skip-train", "--untie-embeddings-and-output-weights", "--log-dir", tmp_path]
    assert run_status(tiny_flags(data, *words)) == (0, "")
    found, before = metrics(tmp_path), metrics(run)
    assert found.keys() == {("validation", 6)} and found["validation", 6] == before["validation", 6]
    assert "--skip-train is given" in capsys.readouterr().out


def test_weights_alone(data: str, tmp_path: Path) -> None:
    """A checkpoint without the optimizer continues with a new one, if that is asked for."""
    out = tmp_path / "out"
    assert run_status(tiny_flags(data, "--save", out, "--no-save-optim", "--exit-interval", 3)) == (0, "")
    assert not [name for name in read_run(out).tensors(3) if name.startswith("optimizer")]
    going_on = tiny_flags(data, "--save", out, "--load", out)
    line = refusal(going_on)
    assert f"--load {out}" in line and "--no-save-optim" in line and "--no-load-optim" in line
    assert run_status([*going_on, "--no-load-optim"]) == (0, "")
    assert len(losses(out)) == 6


def test_a_learning_rate_of_the_embedding(data: str, tmp_path: Path) -> None:
    """An equal rate changes no bit. Another one changes the run, which can be resumed, with every kind of norm."""
    layers = ["--qk-layernorm", "--apply-layernorm-1p", "--use-distributed-optimizer"]

    def trained(name: str, *more: object) -> list[float]:
        assert run_status(tiny_flags(data, *layers, "--log-dir", tmp_path / name, *more)) == (0, "")
        return losses(tmp_path / name)

    plain = trained("plain")
    assert trained("same", "--decoupled-lr", "1e-3", "--decoupled-min-lr", 0) == plain
    other = trained("other", "--decoupled-lr", "5e-2")
    assert other[0] == plain[0] and other[-1] != plain[-1]
    rates = [[metrics(tmp_path / name)["train", step]["lr"] for step in range(1, 7)] for name in ("plain", "other")]
    assert rates[0] == rates[1]
    saving = ["--decoupled-lr", "5e-2", "--save", tmp_path / "out"]
    trained("first", *saving, "--exit-interval", 3)
    assert trained("rest", *saving, "--load", tmp_path / "out") == other[3:]


@pytest.mark.parametrize("tied", [True, False])
def test_which_weights_have_the_decoupled_rate(tied: bool, data: str, tmp_path: Path) -> None:
    """The embedding of tokens and the output layer, as in Megatron-LM, decaying to a least rate of their own."""
    untie = [] if tied else ["--untie-embeddings-and-output-weights"]
    asked = ["--decoupled-lr", "5e-2", "--decoupled-min-lr", "1e-2", "--min-lr", "1e-4", "--log-dir", tmp_path, *untie]
    with world() as mesh:
        run = build_run(
            parse_run_config(tiny_flags(data, *asked, *([] if tied else ["--untie-embeddings-and-output-weights"]))),
            mesh,
        )
        rates = {
            id(weight): (group["max_lr"], group["min_lr"])
            for group in run.state.optimizer.chained_optimizers[0].optimizer.param_groups
            for weight in group["params"]
        }
        found = {
            name.removeprefix("module."): rates[id(weight)] for name, weight in run.state.chunks[0].named_parameters()
        }
        run.log.close()
    own = {name for name, rate in found.items() if rate == (5e-2, 1e-2)}
    assert own == {"embedding.word_embeddings.weight", *([] if tied else ["output_layer.weight"])}
    assert {rate for name, rate in found.items() if name not in own} == {(1e-3, 1e-4)}


def test_upkeep(data: str, tmp_path: Path) -> None:
    asked = ["--manual-gc", "--manual-gc-interval", 2, "--empty-unused-memory-level", 1]
    profile = ["--profile", "--use-pytorch-profiler", "--profile-step-start", 1, "--profile-step-end", 2]
    assert run_status(tiny_flags(data, *asked, *profile, "--log-dir", tmp_path)) == (0, "")
    assert gc.isenabled()
    names = {event.get("name") for event in json.loads((tmp_path / "trace-0.json").read_text())["traceEvents"]}
    assert "aten::linear" in names or "aten::matmul" in names or "aten::mm" in names


def test_a_checkpoint_of_the_old_format_is_named(data: str, tmp_path: Path) -> None:
    old = tmp_path / "iter_0000100" / "mp_rank_00"
    old.mkdir(parents=True)
    (old / "model_optim_rng.pt").write_bytes(b"a pickle")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("100")
    line = refusal(tiny_flags(data, "--load", tmp_path, "--finetune"))
    assert line.startswith(f"--load {tmp_path}: iter_0000100/mp_rank_00/model_optim_rng.pt is a checkpoint in ")
    assert "old format torch" in line
