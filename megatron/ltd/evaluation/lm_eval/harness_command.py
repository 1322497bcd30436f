"""lm-eval's own command line around a model of ours: what ``tools/evaluate.py`` does.

    our flags          --load, tokenizer files, layout, --task-data: read first, and a wrong one is answered at once
    all other flags    lm-eval's: --tasks, --num_fewshot, --limit, --output_path, --log_samples, ...

The model is opened before lm-eval looks at its 15,000 tasks, and lm-eval is handed it in place of a name. Results are
written by the first process, in lm-eval's own files. With ``--model`` it is lm-eval's command and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.lm_eval.harness_args import NAME, HarnessArgs
from megatron.ltd.flags import FlagParser, add_flags, flag, flag_name, flag_values
from megatron.ltd.flags.unknown import about_unknown
from megatron.ltd.hugging_face.config_file import is_hugging_face

_OTHER_COMMANDS = ("ls", "validate")


@dataclass(frozen=True)
class TaskFlags:
    """tasks"""

    task_data: str | None = flag(
        None,
        metavar="DIR",
        help="local copies of the tasks' data, as tools/prepare_tasks.py writes them: nothing is downloaded",
    )


def evaluate(arguments: Sequence[str], description: str | None) -> None:
    """Run the command ``arguments``. Raises ``UserError``."""
    parser = FlagParser(description, others=lambda: lm_eval_command()[1]["run"]._option_string_actions)
    for config_class in (HarnessArgs, TaskFlags):
        add_flags(parser, config_class)
    ours, theirs = parser.parse_known_args(list(arguments))
    task_data = getattr(ours, "task_data", None)
    if task_data is not None:  # before anything of Hugging Face's is imported
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    need_lm_eval()
    command = _parse(theirs, known=parser)
    if command.command in _OTHER_COMMANDS or getattr(command, "model", None) not in (None, NAME):
        typed = [flag_name(HarnessArgs, name) for name in vars(ours) if name != "task_data"]
        if typed:
            raise UserError(f"{typed[0]} is for models of this program: leave it out, or drop --model {command.model}")
        with _tasks(command, task_data):
            command.func(command)
        return
    args = _harness_args(ours, command)
    asked = _check(args, command)
    num_processes = int(os.environ.get("WORLD_SIZE", "1")) // args.tensor_model_parallel_size
    with (
        _tasks(command, task_data, num_processes=num_processes, limit=asked.limit, samples=asked.samples),
        _without_git_complaint(),
    ):
        _run(args, command)


def need_lm_eval() -> None:
    """Raises ``UserError`` where the package is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "the package lm-eval is not installed, which brings tasks, prompts and metrics: run "
            "pip install 'megatron-ltd[eval]'"
        )


def lm_eval_command() -> tuple[Any, dict[str, Any]]:
    """lm-eval's command line, and its commands by name."""
    need_lm_eval()
    from lm_eval._cli import HarnessCLI

    cli = HarnessCLI()
    return cli, cli._subparsers.choices


def _parse(arguments: list[str], known: FlagParser) -> argparse.Namespace:
    """lm-eval's reading of its own flags."""
    from lm_eval.utils import setup_logging

    setup_logging()
    cli, commands = lm_eval_command()
    if not arguments or arguments[0] not in commands:
        arguments = ["run", *arguments]
    arguments[1:1] = known.other_words
    typed = commands[arguments[0]]

    def refuse(message: str) -> NoReturn:
        words = message.removeprefix("unrecognized arguments: ").split()
        unknown = [word.partition("=")[0] for word in words if word.startswith("-")]
        if unknown and words[0].startswith("-"):
            spellings = [*known.flags, *typed._option_string_actions]
            where = "--help lists ours, and lm_eval run --help lm-eval's"
            raise UserError(about_unknown(unknown, spellings, "flag", where))
        raise UserError(message.removeprefix("argument "))

    cli._parser.error = typed.error = refuse
    return cli._parser.parse_args(arguments)


def _harness_args(ours: argparse.Namespace, command: argparse.Namespace) -> HarnessArgs:
    """Our flags, ``--model_args`` and what lm-eval's own flags say of the model."""
    typed = {name: value for name, value in vars(ours).items() if name != "task_data"}
    model_args = dict(command.model_args or {})
    for name in model_args.keys() & typed.keys():
        raise UserError(f"--model_args {name}={model_args[name]} and {flag_name(HarnessArgs, name)} are both given")
    if command.seed is not None and command.seed[2] is not None:
        model_args.setdefault("seed", command.seed[2])
    asked = {"batch_size": getattr(command, "batch_size", None), "device": command.device}
    args = HarnessArgs.read({**model_args, **typed}, asked)
    command.model_args = {name: value for name, value in dataclasses.asdict(args).items() if value is not None}
    command.batch_size, command.device = args.batch_size, args.device
    return args


def _check(args: HarnessArgs, command: argparse.Namespace) -> Any:
    """What can be known before torch is imported. Returns lm-eval's own reading of its flags."""
    folder = Path(str(args.pretrained))
    if not is_hugging_face(folder) and not checkpoint_files.candidates(folder):
        raise UserError(f"--load {folder} holds no checkpoint: name the --save folder of a run that has saved one")
    if not command.tasks:
        raise UserError("--tasks is missing: name one or more, such as --tasks lambada_openai hellaswag")
    if getattr(command, "apply_chat_template", False):
        raise UserError("--apply_chat_template is given: a model of this program has no chat template; leave it out")
    for package in ("wandb", "trackio"):
        if getattr(command, f"{package}_args", None) and importlib.util.find_spec(package) is None:
            raise UserError(
                f"--{package}_args is given: the package {package} is not installed; install it, or drop it"
            )
    if command.use_cache is not None and args.tensor_model_parallel_size > 1:
        raise UserError(
            f"--use_cache {command.use_cache} is given with --tensor-model-parallel-size "
            f"{args.tensor_model_parallel_size}: each process would leave out what its own cache holds, and they "
            "answer together; leave it out"
        )
    if command.output_path is not None:
        target = Path(command.output_path)
        target = target.parent if target.suffix == ".json" else target
        try:
            target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=target):
                pass
        except OSError as error:
            raise UserError(
                f"--output_path {command.output_path} cannot be written ({error.strerror}): choose a folder of yours"
            ) from None
    from lm_eval.config.evaluate_config import EvaluatorConfig

    try:
        logging.disable(logging.WARNING)  # it is read again for the run, and warns then
        asked = EvaluatorConfig.from_cli(command)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise UserError(" ".join(str(error).split())) from None
    finally:
        logging.disable(logging.NOTSET)
    if asked.limit is not None and asked.limit <= 0:
        raise UserError(f"--limit is {asked.limit:g}: it must be above 0; leave it out to score every example")
    return asked


@contextlib.contextmanager
def _tasks(command: argparse.Namespace, task_data: str | None, **examples: Any) -> Iterator[None]:
    """Refuse tasks that there are not; with ``task_data`` have lm-eval find the local ones, and those alone.

    ``examples``: which are scored by how many processes, as ``CheckedTasks`` takes it.
    """
    from megatron.ltd.evaluation import local_tasks

    typed = getattr(command, "tasks", None) or ()  # of another command than run a text
    names = [name for part in ([typed] if isinstance(typed, str) else typed) for name in part.split(",")]
    include_path = getattr(command, "include_path", None)
    if include_path:
        if task_data is not None:
            raise UserError(f"--include_path {include_path} and --task-data {task_data} are both given: keep one")
        yield
        return
    import lm_eval.tasks

    from megatron.ltd.evaluation.lm_eval.task_loading import CheckedTasks

    whole = lm_eval.tasks.TaskManager
    with local_tasks.task_folder(names, None if task_data is None else Path(task_data)) as folder:
        command.include_path = str(folder)
        # Reading all of lm-eval's own tasks takes it 15 s, and its command has no way to leave them out.
        more: dict[str, Any] = {} if task_data is None else {"include_defaults": False}
        lm_eval.tasks.TaskManager = functools.partial(CheckedTasks, **more, **examples)
        try:
            yield
        finally:
            lm_eval.tasks.TaskManager = whole


@contextlib.contextmanager
def _without_git_complaint() -> Iterator[None]:
    """lm-eval asks git for the commit of the folder it runs in, and git complains on the terminal where there is none.

    Results then say that there is none, as they did.
    """
    import lm_eval.evaluator

    here, whole = Path.cwd(), lm_eval.evaluator.get_git_commit_hash
    if not any((folder / ".git").exists() for folder in (here, *here.parents)):
        lm_eval.evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        lm_eval.evaluator.get_git_commit_hash = whole


def _run(args: HarnessArgs, command: argparse.Namespace) -> None:
    """Open the model, on all processes that were started, and let lm-eval ask it."""
    from megatron.ltd.parallel.contact import keeping_contact
    from megatron.ltd.parallel.mesh import initialize

    with (
        initialize(args.parallel, agree_on=flag_values(args)) as mesh,
        keeping_contact(mesh, lambda: "start the evaluation again"),
    ):
        from megatron.ltd.evaluation.lm_eval.harness import HarnessModel
        from megatron.ltd.evaluation.load import load_model

        loaded = load_model(Path(str(args.pretrained)), args.tokenizer_files, args.parallel, mesh)
        for note in loaded.notes if mesh.is_first else ():
            print(note)
        command.model = HarnessModel.of(loaded, args)
        with contextlib.nullcontext() if mesh.is_first else _silent(command):
            command.func(command)


@contextlib.contextmanager
def _silent(command: argparse.Namespace) -> Iterator[None]:
    """For all processes but the first: lm-eval takes the first of each node for one that tells and writes."""
    with tempfile.TemporaryDirectory() as nowhere, open(os.devnull, "w") as dump, contextlib.redirect_stdout(dump):
        if command.output_path is not None:
            command.output_path = nowhere
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
            sys.stdout.flush()
