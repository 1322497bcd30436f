"""The work behind ``tools/evaluate.py``: lm-eval's ``simple_evaluate`` on a model of ours.

    our flags        --load, --ckpt-step, tokenizer files, layout, --task-data, --verbose
    lm-eval's flags  --tasks, --num_fewshot, --limit, --output_path, --log_samples, ...     (``lm_eval_flags``)

Flags and tasks are checked before torch is imported. The first process writes lm-eval's own result files and prints its
table. With ``--model NAME`` lm-eval opens one of its own models. ``ls`` and ``validate`` are lm-eval's commands.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import glob
import importlib.util
import io
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.errors import UserError, writes_to
from megatron.ltd.evaluation.lm_eval.harness_args import NAME, HarnessArgs
from megatron.ltd.evaluation.lm_eval.lm_eval_flags import LmEvalParser, cache_arguments
from megatron.ltd.flags import FlagParser, add_flags, flag, flag_name, flag_values
from megatron.ltd.flags.unknown import about_unknown
from megatron.ltd.hugging_face.config_file import is_hugging_face

_OTHER_COMMANDS = ("ls", "validate")
_PASSED_ON = (
    "model_args", "num_fewshot", "batch_size", "max_batch_size", "device", "use_cache", "limit", "samples",
    "check_integrity", "write_out", "log_samples", "system_instruction", "apply_chat_template", "fewshot_as_multiturn",
    "gen_kwargs", "predict_only", "confirm_run_unsafe_code", "metadata",
)  # fmt: skip
"""Fields of lm-eval's ``EvaluatorConfig`` that are arguments of ``simple_evaluate`` by the same name."""
_SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


@dataclass(frozen=True)
class TaskFlags:
    """tasks"""

    task_data: str | None = flag(
        None,
        metavar="DIR",
        help="local copies of the tasks' data, written by tools/prepare_tasks.py; nothing is downloaded",
    )
    verbose: bool = flag(False, help="show lm-eval's log and progress bars")


def evaluate(arguments: Sequence[str], description: str | None) -> None:
    """Run the command ``arguments``. Raises ``UserError``."""
    if any(word.partition("=")[0] == "--task-data" for word in arguments):  # before Hugging Face's modules are imported
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    if not {"-h", "--help"} & set(arguments):
        need_lm_eval()
    if arguments and arguments[0] in _OTHER_COMMANDS:
        _other_command(arguments)
        return
    ours, typed = _read_flags(arguments[1:] if arguments[:1] == ["run"] else arguments, description)
    task_data, verbose = ours.pop("task_data", None), ours.pop("verbose", False)
    verbose = verbose or bool({"verbosity", "write_out"} & typed.keys())
    args = None
    if typed.get("model") in (None, NAME):
        args = _harness_args(ours, typed)
        _check(args, typed)
    elif ours:
        name = flag_name(HarnessArgs, next(iter(ours)))
        raise UserError(f"{name}: is for models of this program; leave it out, or drop --model {typed['model']}")
    with _quiet(verbose):
        asked = _lm_eval_config(typed)
        with _tasks(asked, task_data, args) as (names, manager), _without_git_complaint():
            score = functools.partial(_score, asked, names, manager, verbose)
            score(asked.model) if args is None else _score_ours(args, score)


def _read_flags(arguments: Sequence[str], description: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of our flags and of lm-eval's, from files and the command line; absent if not given."""
    parser = FlagParser(description, others=lambda: LmEvalParser().flags)
    for config_class in (HarnessArgs, TaskFlags):
        add_flags(parser, config_class)
    ours, words = parser.parse_known_args(list(arguments))
    theirs = LmEvalParser()
    typed, unknown = theirs.parse_known_args([*parser.other_words, *words])
    if unknown:
        flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        if not flags:
            raise UserError(f"{' '.join(unknown)}: no flag takes this value; --help lists the flags")
        otherwise = "--help lists ours, and lm_eval run --help lm-eval's"
        raise UserError(about_unknown(flags, [*parser.flags, *theirs.flags], "flag", otherwise))
    return vars(ours), vars(typed)


def need_lm_eval() -> None:
    """Raises ``UserError`` if the package is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("the package lm-eval is not installed: run pip install 'megatron-ltd[eval]'")


def _other_command(arguments: Sequence[str]) -> None:
    """lm-eval's ``ls`` and ``validate``, which also find the group of the paper's tasks."""
    from megatron.ltd.evaluation.local_tasks.overlays import task_folder

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_flags(parser, TaskFlags)
    ours, theirs = parser.parse_known_args(arguments)
    parser.add_argument("--tasks", "-t", default="")
    names = parser.parse_known_args(theirs)[0].tasks.split(",")
    task_data = getattr(ours, "task_data", None)
    with task_folder(list(filter(None, names)), None if task_data is None else Path(task_data)) as folder:
        is_given = any(word.startswith("--include_path") for word in theirs)
        more = [] if is_given else ["--include_path", str(folder)]
        status = subprocess.run([sys.executable, "-m", "lm_eval", *theirs, *more], check=False).returncode
    raise SystemExit(status)


def _harness_args(ours: Mapping[str, Any], typed: dict[str, Any]) -> HarnessArgs:
    """Our flags, ``--model_args``, and those of lm-eval's flags that concern the model; ``typed`` gets the result."""
    model_args = dict(typed.get("model_args", {}))
    for name in model_args.keys() & ours.keys():
        raise UserError(
            f"--model_args {name}={model_args[name]}: {flag_name(HarnessArgs, name)} sets the same; give one of them"
        )
    seeds = typed.get("seed", [])
    if len(seeds) in (1, 3, 4) and (seed := seeds[min(2, len(seeds) - 1)]) is not None:
        model_args.setdefault("seed", seed)
    args = HarnessArgs.read({**model_args, **ours}, typed)
    given = {name: value for name, value in dataclasses.asdict(args).items() if value is not None}
    typed.update(model=NAME, model_args=given, batch_size=args.batch_size, device=args.device)
    return args


def _check(args: HarnessArgs, typed: Mapping[str, Any]) -> None:
    """What can be known before torch is imported."""
    folder = args.place
    if not is_hugging_face(folder) and not checkpoint_files.candidates(folder):
        raise UserError(f"--load {folder}: holds no checkpoint; give the --save folder of a run that has saved one")
    if "tasks" not in typed:
        raise UserError("--tasks: required; give one or more, such as --tasks lambada_openai hellaswag")
    if "apply_chat_template" in typed:
        raise UserError("--apply_chat_template: models of this program have no chat template; leave it out")
    for package in ("wandb", "trackio"):
        if f"{package}_args" in typed and importlib.util.find_spec(package) is None:
            raise UserError(f"--{package}_args: the package {package} is not installed; install it, or drop the flag")
    if "use_cache" in typed and args.tensor_model_parallel_size > 1:
        raise UserError(
            f"--use_cache {typed['use_cache']}: does not work with --tensor-model-parallel-size "
            f"{args.tensor_model_parallel_size}, because each process has its own cache; leave it out"
        )


def _lm_eval_config(typed: Mapping[str, Any]) -> Any:
    """lm-eval's ``EvaluatorConfig``, with its own checks, and a check of the folder for results."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    try:
        asked = EvaluatorConfig.from_cli(argparse.Namespace(**typed))
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise UserError(" ".join(str(error).split())) from None
    if asked.limit is not None and asked.limit <= 0:
        raise UserError(f"--limit {asked.limit:g}: must be above 0; leave it out to score every example")
    if asked.output_path is not None:
        target = Path(asked.output_path)
        target = target.parent if target.suffix == ".json" else target
        with writes_to(f"--output_path {asked.output_path}"):
            target.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=target).close()
    return asked


@contextlib.contextmanager
def _tasks(asked: Any, task_data: str | None, args: HarnessArgs | None) -> Iterator[tuple[list[str], Any]]:
    """The tasks to score, and the ``TaskManager`` that loads them: of local data those alone, which takes no time.

    lm-eval needs 15 seconds to read all of its own tasks.
    """
    from megatron.ltd.evaluation.local_tasks.overlays import task_folder

    typed = asked.tasks.split(",") if isinstance(asked.tasks, str) else asked.tasks
    names = [name.strip() for part in typed for name in part.split(",")]
    if asked.include_path and task_data is not None:
        raise UserError(f"--include_path {asked.include_path}: --task-data {task_data} is also given; keep one")
    model_parallel_size = 1 if args is None else args.tensor_model_parallel_size
    data = None if task_data is None else Path(task_data)
    with contextlib.nullcontext() if asked.include_path else task_folder(names, data) as folder:
        from megatron.ltd.evaluation.lm_eval.task_loading import CheckedTasks

        manager = CheckedTasks(
            include_path=str(folder or asked.include_path),
            include_defaults=data is None,
            metadata=asked.metadata,
            num_processes=int(os.environ.get("WORLD_SIZE", "1")) // model_parallel_size if args else 1,
            limit=asked.limit,
            samples=asked.samples,
            local=data,
        )
        yield list(dict.fromkeys(match for name in names for match in _matches(name, manager))), manager


def _matches(name: str, manager: Any) -> list[str]:
    """The tasks, or files of tasks, that a name or a pattern stands for."""
    found: list[str]
    if name.endswith((".yaml", ".yml")):
        found = [str(Path(file).absolute()) for file in sorted(glob.glob(name))]
    else:
        found = manager.match_tasks([name])
    if not found:
        raise UserError(f"--tasks {name}: lm-eval has no such task; lm-eval ls tasks lists them")
    return found


def _score_ours(args: HarnessArgs, score: Callable[..., None]) -> None:
    """Load the model on all processes that were started, and ``score`` it."""
    from megatron.ltd.parallel.contact import keeping_contact
    from megatron.ltd.parallel.mesh import initialize

    with (
        initialize(args.parallel, agree_on=flag_values(args)) as mesh,
        keeping_contact(mesh, lambda: "start the evaluation again"),
    ):
        from megatron.ltd.evaluation.lm_eval.harness import HarnessModel

        # lm-eval takes the first process of each node for the one that reports.
        score(HarnessModel.load(args, mesh), reports=mesh.is_first)


def _score(asked: Any, names: list[str], manager: Any, verbose: bool, model: Any, *, reports: bool = True) -> None:
    """Score ``model``, an object or lm-eval's name of one; with ``reports`` write and print the results."""
    from lm_eval import simple_evaluate

    from megatron.ltd.evaluation.lm_eval.results import Report

    report = Report.open(asked) if reports else None
    # lm-eval prints to standard output when it starts to bootstrap.
    with contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO()):
        results = simple_evaluate(
            model=model,
            tasks=names,
            task_manager=manager,
            evaluation_tracker=None if report is None else report.tracker,
            **{name: getattr(asked, name) for name in _PASSED_ON},
            **cache_arguments(asked.cache_requests),
            **dict(zip(_SEEDS, asked.seed or [None] * len(_SEEDS), strict=True)),
        )
    if report is not None and results is not None:
        report.write(results)


@contextlib.contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Without lm-eval's log lines and progress bars, unless ``verbose``. Our own notes and bars are shown."""
    if verbose:
        from lm_eval.utils import setup_logging

        setup_logging()
        yield
        return
    ours, handler = logging.getLogger("megatron.ltd"), logging.StreamHandler(sys.stderr)
    ours.addHandler(handler)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        ours.removeHandler(handler)


@contextlib.contextmanager
def _without_git_complaint() -> Iterator[None]:
    """Outside a git repository lm-eval asks git for a commit all the same, and git complains on the terminal.

    Results then have no commit, as they have none anyway.
    """
    import lm_eval.evaluator

    here, whole = Path.cwd(), lm_eval.evaluator.get_git_commit_hash
    if not any((folder / ".git").exists() for folder in (here, *here.parents)):
        lm_eval.evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        lm_eval.evaluator.get_git_commit_hash = whole
