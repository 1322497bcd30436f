"""A run that continues with other training data or another sequence length, and keeps optimizer, step and clock."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.checkpoint.files import checkpoint_path, read_manifest
from megatron.ltd.data.batch import Batch
from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.tokenizers.config import TokenizerFiles
from megatron.ltd.training.build import build_run
from megatron.ltd.training.run import Run
from megatron.ltd.words import name_of
from tests.end_to_end.runs import metrics, refusal, run_status, tiny_flags, write_data
from tests.support import assert_differs, world
from tests.support_errors import assert_names
from tests.unit.tokenizers.test_sentencepiece import train

FLAG = "--override-data"
BEFORE = 2
"""Steps with the first data."""
ROTARY = ("--position-embedding-type", "rope")


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Data that the run did not begin with."""
    return write_data(tmp_path_factory.mktemp("added"), "added", "dolor sit amet ")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    """The checkpoint of a run after ``BEFORE`` steps. Tests must not change it."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    assert run_status(tiny_flags(data, *ROTARY, "--save", folder, "--exit-interval", BEFORE)) == (0, "")
    return folder


def blend(*prefixes: str) -> list[str]:
    return ["--train-data-path", *prefixes]


def continued(begun: Path, folder: Path, data: str, *starts: list[object]) -> Path:
    """Copy ``begun`` to ``folder``, and start the run there as often as there are flags."""
    shutil.copytree(begun, folder)
    for more in starts:
        assert run_status(tiny_flags(data, *ROTARY, "--save", folder, "--load", folder, *more)) == (0, "")
    return folder


def stored(folder: Path, iteration: int) -> tuple[dict[str, object], dict[str, object]]:
    """What a checkpoint says about progress, and the checksums of its tensors."""
    path = checkpoint_path(folder, iteration)
    tensors = {name: entry for name, entry in (read_manifest(path) or {}).items() if "distcp" in name}
    return json.loads((path / "run.json").read_text())["progress"], tensors


CHANGES = {
    "other data": lambda data, added: blend(added),
    "added data": lambda data, added: blend("0.25", data, "0.75", added),
    "longer samples": lambda data, added: ["--seq-length", "32"],
    "both, and documents apart": lambda data, added: [*blend(data, added), "--seq-length", "8",
                                                      "--reset-attention-mask", "--reset-position-ids"],
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_resume_of_the_continued_run_is_exact(
    change, data: str, added: str, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if a script gives the flag at every start. Without the flag the first start is refused."""
    flags = change(data, added)
    assert_names(refusal(tiny_flags(data, *ROTARY, "--load", begun, "--log-dir", tmp_path, *flags)), FLAG, "--finetune")
    straight = continued(begun, tmp_path / "straight", data, [FLAG, *flags])
    killed = continued(begun, tmp_path / "killed", data, [FLAG, *flags, "--exit-interval", 4], flags, [FLAG, *flags])
    said = [line for line in capsys.readouterr().out.splitlines() if FLAG in line]
    assert len(said) == 2, "only the starts at which something changed say so"
    assert metrics(killed) == metrics(straight)
    assert stored(killed, 6) == stored(straight, 6)
    length = int(flags[flags.index("--seq-length") + 1]) if "--seq-length" in flags else 16
    progress, tensors = stored(straight, 6)
    assert tensors and progress["data_first_sample"] == BEFORE * 4 and progress["consumed_samples"] == 24
    assert progress["consumed_tokens"] == BEFORE * 4 * 16 + (6 - BEFORE) * 4 * length
    last = metrics(straight)["train", 6]
    assert (last["consumed_tokens"], last["seq_length"], last["kept_tokens"]) == (
        progress["consumed_tokens"], length, length)  # fmt: skip


def first_batch(run: Run) -> Batch:
    with closing(run.batches(run.train_data, run.progress.consumed_samples)) as batches:
        return next(batches)


def test_new_data_are_read_from_their_first_sample(data: str, added: str, begun: Path, tmp_path: Path) -> None:
    """Tokens as of a run that starts with them; sample ids, which kept tokens are drawn by, go on. Adam's moments and
    the clock are the checkpoint's.
    """
    with world() as mesh:
        loaded = ["--load", begun, "--log-dir", tmp_path]
        runs = [
            build_run(parse_run_config(tiny_flags(data, *ROTARY, *more)), mesh)
            for more in (loaded, [*loaded, FLAG, *blend(added)], ["--log-dir", tmp_path, *blend(added)])
        ]
        before, after, fresh = runs
        assert torch.equal(first_batch(after).tokens_BS, first_batch(fresh).tokens_BS)
        assert not torch.equal(first_batch(after).tokens_BS, first_batch(before).tokens_BS)
        assert first_batch(after).sample_ids_B.tolist() == [BEFORE * 4, BEFORE * 4 + 1]
        moments = [
            [state["exp_avg"] for state in run.state.optimizer.chained_optimizers[0].optimizer.state.values()]
            for run in (before, after)
        ]
        assert moments[0] and all(map(torch.equal, *moments))
        assert after.state.scheduler.num_steps == before.state.scheduler.num_steps > 0
        assert after.learning_rate == before.learning_rate
        for run in runs:
            run.log.close()


@pytest.mark.parametrize("clock", ["layer-tokens", "tokens", "samples"])
def test_longer_samples_keep_the_learning_rate_of_every_step(data: str, tmp_path: Path, clock: str) -> None:
    """A dense run whose lengths are in steps: the rates are those of a run that was never changed."""
    flags = [flag for flag in tiny_flags(data, *ROTARY, "--lr-clock", clock, "--save", tmp_path / "run")
             if flag != "--random-ltd"]  # fmt: skip
    straight = [*flags, "--save", str(tmp_path / "straight")]
    assert run_status(straight) == (0, "")
    assert run_status([*flags, "--exit-interval", "3"]) == (0, "")
    assert run_status([*flags, "--load", str(tmp_path / "run"), FLAG, "--seq-length", "32"]) == (0, "")
    found, expected = metrics(tmp_path / "run"), metrics(tmp_path / "straight")
    for iteration in range(1, 7):
        assert found["train", iteration]["lr"] == pytest.approx(expected["train", iteration]["lr"], rel=1e-12)


def test_what_another_length_does_not_fit_is_refused(data: str, straight: Path, begun: Path, tmp_path: Path) -> None:
    length = ("--seq-length", 32, FLAG, "--log-dir", tmp_path)
    learned = refusal(tiny_flags(data, "--load", straight, *length))
    assert_names(learned, "--max-position-embeddings 32", "--seq-length 32", "then 16")
    loaded = tiny_flags(data, *ROTARY, "--load", begun, *length)
    assert_names(refusal([*loaded, "--ltd-granularity", "3"]), "--ltd-granularity 3")
    assert_names(refusal([*loaded, "--ltd-min-kept-tokens", "8"]), "--ltd-min-kept-tokens 4")
    assert_names(refusal([*loaded, "--train-iters", "8"]), "--override-opt-param-scheduler")
    assert_names(refusal([*loaded, "--step-batch-size-schedule", "0:2", "128:4"]), "--step-batch-size-schedule")
    assert_names(refusal([*loaded, "--finetune"]), FLAG, "--finetune")
    assert_names(refusal(tiny_flags(data, FLAG)), FLAG, "--load")


def test_another_tokenizer_stays_refused(data: str, begun: Path, tmp_path: Path) -> None:
    model = train(tmp_path, "some text of letters", vocab_size=30)
    other = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", model]
    encoded = preprocess(
        PreprocessConfig(input=(str(Path(data).parent / "train.jsonl"),), output_prefix=str(tmp_path / "d")),
        TokenizerFiles("SentencePieceTokenizer", tokenizer_model=str(model)),
    )
    (prefix,) = encoded.cards
    line = refusal(tiny_flags(prefix, *ROTARY, "--load", begun, FLAG, "--log-dir", tmp_path, *other))
    assert name_of("tokenizer_fingerprint") in line and str(begun) in line, line


def test_another_seed_draws_the_same_data_anew(data: str, begun: Path, tmp_path: Path) -> None:
    flags = tiny_flags(data, *ROTARY, "--load", begun, "--log-dir", tmp_path, "--seed", 7)
    assert_differs(refusal(flags), "seed", "7", "1234")
    assert run_status([*flags, FLAG]) == (0, "")
    assert metrics(tmp_path)["train", 6]["consumed_samples"] == 24
