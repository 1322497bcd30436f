"""``--plan`` against the published recipe, against what a real run logs, and as a command of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.checkpoint.run_format import FORMAT_VERSION
from megatron.ltd.errors import UserError
from megatron.ltd.forecast.forecast import plan_ahead
from megatron.ltd.forecast.report import Forecast
from megatron.ltd.launch import launch
from megatron.ltd.plan.accounting import dense_step_flops
from tests.support import parse, pretrain, small_dataset
from tests.support_errors import assert_names, refused
from tests.support_processes import PATIENCE_SECONDS

RECIPE = (
    "--num-layers 24 --hidden-size 2048 --num-attention-heads 16 --seq-length 2048 --global-batch-size 512 "
    "--micro-batch-size 8 --train-tokens 300000000000 --lr 2e-4 --min-lr 1e-6 --lr-warmup-tokens 3000000000 "
    "--lr-decay-style cosine --attention-dropout 0 --hidden-dropout 0 --vocab-size 50257 --bf16 --random-ltd "
    "--ltd-min-kept-tokens 128 --ltd-granularity 16 --plan --plan-gpus 64"
)
GROWTH = "--ltd-growth-steps 200000"


def forecast(*flags: str) -> Forecast:
    return plan_ahead(parse_run_config([*RECIPE.split(), *" ".join(flags).split()]))


def kept_tokens(step: int) -> int:
    """The published schedule, implemented independently."""
    return 2048 if step >= 200_000 else (128 + 1920 * step // 200_000) // 16 * 16


def test_the_published_recipe() -> None:
    """An exact count ends 32 steps before that of the published scripts, which round each step's mean length down."""
    exact = floored = exact_steps = floored_steps = 0
    while floored < 300_000_000_000:
        kept = kept_tokens(floored_steps)
        floored += 512 * ((2 * 2048 + 22 * kept) // 24)
        floored_steps += 1
        if exact < 300_000_000_000 * 24:
            exact += 512 * (2 * 2048 + 22 * kept)
            exact_steps += 1
    assert (exact_steps, floored_steps) == (372_757, 372_789)
    planned = forecast(GROWTH).to_dict()
    totals = planned["totals"]
    assert totals["steps"] == exact_steps and totals["layer_tokens"] == exact
    assert totals["samples"] == 512 * exact_steps and totals["tokens"] == 512 * 2048 * exact_steps
    assert totals["layer_token_saving"] == pytest.approx(1 - exact / (24 * 512 * 2048 * exact_steps), rel=1e-12)
    assert [stage["kept_tokens"][1] for stage in planned["stages"]] == [*range(128, 2048, 16), 2048]
    assert sum(stage["layer_tokens"] for stage in planned["stages"]) == exact
    assert planned["parameters"] == 1_315_819_520
    assert planned["stages"][0]["first_lr"] == 0.0
    assert planned["stages"][-1]["last_lr"] == pytest.approx(1e-6, rel=1e-3)


def test_the_dense_run_of_the_recipe_counts_raw_tokens() -> None:
    """Without the method the same length flag counts raw tokens."""
    flags = RECIPE.replace("--random-ltd --ltd-min-kept-tokens 128 --ltd-granularity 16 ", "")
    totals = plan_ahead(parse_run_config(flags.split())).to_dict()["totals"]
    assert totals["steps"] == 286_103  # a length in samples ends a step earlier, since it is never passed
    in_samples = flags.replace("--train-tokens 300000000000", f"--train-samples {300_000_000_000 // 2048}")
    assert plan_ahead(parse_run_config(in_samples.split())).plan.num_steps == 286_102
    assert totals["layer_token_saving"] == totals["flops_saving"] == 0.0
    assert totals["equivalent_dense_tokens"] == totals["tokens"] == totals["train_tokens"]


def test_equivalent_dense_tokens_take_the_same_flops() -> None:
    planned = forecast(GROWTH)
    totals, step = planned.to_dict()["totals"], dense_step_flops(planned.sizes.shape, 512)
    assert totals["equivalent_dense_tokens"] * step / (512 * 2048) == pytest.approx(totals["flops"], rel=1e-9)


@pytest.mark.parametrize(
    ("unit", "saving", "share", "flops_saving"),
    [("layer-tokens", "layer_token_saving", 0.769, 0.318), ("flops", "flops_saving", 0.807, 1 / 3)],
)
def test_a_growth_that_saves_a_third(unit: str, saving: str, share: float, flops_saving: float) -> None:
    """Of layer tokens or of FLOPs; one step less does not, and the run keeps its length in tokens.

    The shares of the run that it takes, and of the FLOPs that it saves, are those of random-LTD's card.
    """
    solved = forecast(f"--plan-target-saving {1 / 3} --plan-saving-of {unit}")
    growth = solved.answer.flags["--ltd-growth-steps"]
    given, shorter = (forecast(f"--ltd-growth-steps {steps}") for steps in (growth, growth - 1))
    assert solved.plan == given.plan
    totals = solved.to_dict()["totals"]
    assert shorter.to_dict()["totals"][saving] < 1 / 3 <= totals[saving] == pytest.approx(1 / 3, abs=1e-5)
    assert (growth / totals["steps"], totals["flops_saving"]) == pytest.approx((share, flops_saving), abs=5e-4)
    assert totals["train_tokens"] >= 300_000_000_000


def test_defaults_grow_over_two_thirds_of_the_run() -> None:
    """Kept tokens start at a quarter of the sequence, in whatever unit the length of the run is given."""
    run = RECIPE.replace("--ltd-min-kept-tokens 128 ", "").replace("--lr-warmup-tokens 3000000000 ", "").split()
    place = run.index("--train-tokens")
    for length in (["--train-iters", "3000"], ["--train-samples", "1000000"], ["--train-tokens", "3000000000000"]):
        planned = plan_ahead(parse_run_config([*run[:place], *length, *run[place + 2 :]]))
        assert planned.settings["ltd_min_kept_tokens"] == 512
        steps = planned.plan.num_steps
        assert planned.settings["ltd_growth_steps"] == 2 * steps // 3
    without = " ".join(run).replace("--global-batch-size 512 ", "").split()
    with refused("--ltd-growth-steps", "--global-batch-size"):
        parse_run_config(without)


def test_the_plan_says_whether_its_memory_fits() -> None:
    small, large = (
        forecast(f"{GROWTH} --plan-gpu {gpu} --plan-mfu 0.4 --micro-batch-size {batch}").text()
        for gpu, batch in (("h200", 1), ("l40s", 8))
    )
    assert "131.32 GiB   (fits)" in small  # 141e9 bytes
    assert "44.70 GiB   (does not fit" in large


def test_a_plan_assumes_gpt2s_vocabulary(capsys: pytest.CaptureFixture[str]) -> None:
    flags = " ".join([*RECIPE.split(), *GROWTH.split()]).replace("--vocab-size 50257 ", "").split()
    launch(parse_run_config(flags))
    assert "--vocab-size" in (printed := capsys.readouterr().out) and "50,257" in printed
    assert plan_ahead(parse_run_config(flags)).sizes == forecast(GROWTH).sizes


def test_flags_of_a_method_that_is_off_get_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """This holds for typed flags; a settings file may serve runs with and without the method."""
    flags = RECIPE.replace("--random-ltd ", "").split()
    launch(parse_run_config(flags))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("warning"))
    assert_names(line, "--ltd-min-kept-tokens", "--ltd-granularity", "--random-ltd")
    (tmp_path / "shared.yaml").write_text("ltd-min-kept-tokens: 128\n")
    place = flags.index("--ltd-min-kept-tokens")
    without = [*flags[:place], *flags[place + 4 :]]
    launch(parse_run_config([*without, "--config", str(tmp_path / "shared.yaml")]))
    assert "warning" not in capsys.readouterr().out


def test_a_measured_step_needs_its_gpus_and_a_possible_speed() -> None:
    run = RECIPE.removesuffix(" --plan-gpus 64").split() + GROWTH.split()
    with refused("--plan-step-seconds 3.1", "--plan-gpus"):
        plan_ahead(parse_run_config([*run, "--plan-step-seconds", "3.1"]))
    with refused("--plan-step-seconds 3.1", "--plan-gpus 1"):
        plan_ahead(parse_run_config([*run, "--plan-step-seconds", "3.1", "--plan-gpus", "1"]))
    with refused("--plan-step-seconds 3.1", "--plan-gpus 8"):
        plan_ahead(parse_run_config([*run, "--plan-step-seconds", "3.1", "--plan-gpus", "8", "--plan-gpu", "a100"]))
    assert plan_ahead(parse_run_config([*run, "--plan-step-seconds", "3.1", "--plan-gpus", "64"])).speed is not None


def test_hours_that_pay_for_a_run() -> None:
    """Both flags of the answer give the run; it is within the budget, and one step more is not."""
    speed = "--plan-gpu a100 --plan-mfu 0.4"
    without_length = RECIPE.replace("--train-tokens 300000000000 ", "").split() + GROWTH.split() + speed.split()
    solved = plan_ahead(parse_run_config([*without_length, "--plan-gpu-hours", "3000"]))
    assert solved.answer is not None and solved.speed is not None
    flops = [
        plan_ahead(parse_run_config([*without_length, flag, str(value)])).plan
        for flag, value in solved.answer.flags.items()
    ]
    assert flops == [solved.plan, solved.plan] and set(solved.answer.flags) == {"--train-tokens", "--train-iters"}
    steps = solved.plan.num_steps
    longer = plan_ahead(parse_run_config([*without_length, "--train-iters", str(steps + 1)])).plan
    assert solved.speed.gpu_hours(solved.plan.flops(steps)) <= 3000 < solved.speed.gpu_hours(longer.flops(steps + 1))


def test_a_speed_gives_time_and_hours() -> None:
    planned = forecast(GROWTH, "--plan-gpu a100 --plan-mfu 0.4").to_dict()
    time = planned["time"]
    assert time["seconds"] == pytest.approx(planned["totals"]["flops"] / (64 * 312e12 * 0.4))
    assert time["gpu_hours"] == pytest.approx(time["seconds"] * 64 / 3600)
    assert time["mfu"] == pytest.approx(0.4) and forecast(GROWTH).to_dict()["time"] is None


def test_a_measured_dense_step_gives_the_time_of_others() -> None:
    """A dense step takes the measured time, other FLOPs their share of it; the MFU follows from a known peak."""
    planned = forecast(GROWTH, "--plan-step-seconds 3.1 --plan-peak-tflops 500").to_dict()
    time, step = planned["time"], dense_step_flops(forecast(GROWTH).sizes.shape, 512)
    assert time["seconds"] == pytest.approx(3.1 * planned["totals"]["flops"] / step)
    assert time["dense_seconds"] == pytest.approx(3.1 * planned["totals"]["steps"])
    assert time["mfu"] == pytest.approx(step / 3.1 / 64 / 500e12)


SHORT = (
    "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 32 --micro-batch-size 2 --train-iters 16 "
    "--rampup-batch-size 4 4 24 --global-batch-size 12 --lr 1e-3 --min-lr 1e-5 --lr-decay-style cosine "
    "--lr-warmup-iters 3 --eval-iters 0 --tokenizer-type ByteTokenizer --device cpu --no-progress "
    "--random-ltd --ltd-min-kept-tokens 8 --ltd-granularity 8 --ltd-growth-steps 10 --layer-drop "
    "--layer-drop-gamma 0.3"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """The training lines that a short run of two methods logged, and what it printed."""
    import contextlib
    import io

    folder, printed = tmp_path_factory.mktemp("run"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        finished = pretrain([*SHORT.split(), "--data-path", small_dataset(folder)], folder / "out")
    return finished.kind("train"), printed.getvalue()


def test_totals_and_rates_equal_those_that_a_run_logs(run: tuple[list[dict[str, Any]], str]) -> None:
    lines, _ = run
    planned = plan_ahead(parse([*SHORT.split(), "--plan"]))
    totals, last = planned.to_dict()["totals"], lines[-1]
    assert totals["steps"] == last["iteration"] == 16
    assert totals["samples"] == last["consumed_samples"]
    assert totals["tokens"] == last["consumed_tokens"]
    assert totals["layer_tokens"] == last["consumed_layer_tokens"]
    assert totals["flops"] == sum(line["step_flops"] for line in lines)
    assert totals["dense_flops"] == sum(line["dense_step_flops"] for line in lines)
    assert [planned.rate(step) for step in range(16)] == [line["lr"] for line in lines]
    for stage in planned.to_dict()["stages"]:
        of_stage = lines[stage["first_step"] : stage["first_step"] + stage["num_steps"]]
        assert {line["kept_tokens"] for line in of_stage} == {min(stage["kept_tokens"])}
        assert stage["flops"] == sum(line["step_flops"] for line in of_stage)
        assert (stage["first_lr"], stage["last_lr"]) == (of_stage[0]["lr"], of_stage[-1]["lr"])


def test_the_header_of_the_run_holds_the_same_table(
    run: tuple[list[dict[str, Any]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    launch(parse([*SHORT.split(), "--plan"]))
    assert table_of(capsys.readouterr().out) == table_of(run[1])


def table_of(text: str) -> list[str]:
    """The lines of the stage table in a command's output, up to and including the totals."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.split()[:1] == ["steps"])
    last = next(number for number, line in enumerate(lines) if line.startswith("total:"))
    return lines[first : last + 1]


def test_a_continued_run_prints_the_same_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After a change of method too, the table's learning rates continue from the clock that the checkpoint holds."""
    folder = tmp_path / "out"
    command = [*SHORT.split(), "--data-path", small_dataset(tmp_path)]
    tables = []
    for flags in (["--exit-interval", "8"], ["--load", str(folder)]):
        pretrain([*command, *flags], folder)
        tables.append(table_of(capsys.readouterr().out))
    assert tables[0] == tables[1]
    other = [flag for flag in command if flag != "--random-ltd"] + ["--override-opt-param-scheduler"]
    continued = pretrain([*other, "--load", str(folder), "--train-iters", "20", "--log-interval", "1"], folder)
    last = table_of(capsys.readouterr().out)[-2].split()
    assert f"{continued.column('lr')[-1]:.2e}".replace("e-0", "e-") in last


def test_a_plan_imports_no_torch_and_writes_only_its_file(repository: Path, tmp_path: Path) -> None:
    flags = [*RECIPE.split(), *GROWTH.split(), "--data-path", "nowhere", "--save", "out", "--plan-json", "plan.json"]
    code = (
        f"import sys; sys.argv = ['pretrain_gpt_ltd.py', *{flags!r}]\n"
        f"import runpy; runpy.run_path({str(repository / 'pretrain_gpt_ltd.py')!r}, run_name='__main__')\n"
        "heavy = {'torch', 'megatron.core', 'numpy', 'transformers'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    text = ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    stored = json.loads((tmp_path / "plan.json").read_text())
    assert stored == json.loads(json.dumps({"format_version": FORMAT_VERSION, **forecast(GROWTH).to_dict()}))
    for number in (stored["totals"]["layer_tokens"], stored["totals"]["equivalent_dense_tokens"], stored["parameters"]):
        assert f"{number:,}" in text
    assert all(len(line) <= 120 for line in text.splitlines()), max(text.splitlines(), key=len)


def test_only_rank_0_prints_the_plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Under a launcher, the plan is for the number of processes that it started, and only rank 0 prints."""
    config = parse_run_config([*RECIPE.replace("--plan-gpus 64", "").split(), *GROWTH.split()])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, printed in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        launch(config)
        said = capsys.readouterr().out
        assert ("2 GPUs: data 2" in said) == bool(said) == printed


def test_a_run_that_ends_while_dropping_tokens_prints_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    launch(parse_run_config([*RECIPE.split(), "--ltd-growth-steps", "900000"]))
    assert "warning: the run ends while layers still drop tokens" in capsys.readouterr().out.splitlines()[-1]


def test_the_fullest_stage_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    launch(parse_run_config([*RECIPE.split(), *GROWTH.split(), "--pipeline-model-parallel-size", "4"]))
    text = capsys.readouterr().out
    assert "pipeline stage 1 of 4, the fullest: layers 1-6" in text
    assert "64 GPUs: pipeline 4 x data 16" in text


def test_vocabularies_of_files_and_of_flags(tmp_path: Path) -> None:
    """Files that are there are read, and --vocab-size counts where they are not; a BERT needs one of the two."""
    flags = [*RECIPE.replace("--vocab-size 50257 ", "").split(), *GROWTH.split()]
    missing = ["--tokenizer-type", "GPT2BPETokenizer", "--vocab-file", "no.json", "--merge-file", "no.bpe"]
    assert plan_ahead(parse_run_config([*flags, "--tokenizer-type", "ByteTokenizer"])).sizes.shape.vocab_size == 384
    assert plan_ahead(parse_run_config([*flags, *missing, "--vocab-size", "500"])).sizes.shape.vocab_size == 512
    with pytest.raises(UserError, match=r"--vocab-file no.json: cannot be read"):
        plan_ahead(parse_run_config([*flags, *missing]))
    with refused("--vocab-size"):
        plan_ahead(parse(["pretrain_bert_ltd.py", "--train-iters", "10", "--lr", "1e-3", "--plan"]))


def test_encoders_are_planned_without_data() -> None:
    """The flags are enough; without its images, a ViT also needs --num-classes."""
    length = "--train-iters 10 --lr 1e-3 --plan"
    bert = plan_ahead(parse(["pretrain_bert_ltd.py", *length.split(), "--vocab-size", "30522"]))
    assert bert.plan.num_steps == 10 and bert.sizes.shape.vocab_size == 30592
    vit = plan_ahead(parse(["finetune_vit_ltd.py", *length.split(), "--num-classes", "1000"]))
    assert vit.plan.shape.seq_length == 197 and vit.sizes.outputs == "1000 classes"
    for missing in (["--plan"], ["--num-classes", "1000"]):
        with refused("--train-data-path"):
            parse(["finetune_vit_ltd.py", *length.split()[:-1], *missing])
