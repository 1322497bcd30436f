"""The exception for a mistake of the user, and the wrapper of every command.

A mistake of the user ends the command with exit status 2 and one line that names the flag or file, the value, the rule
and the fix. Errors in our own code are asserts and keep their traceback.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron.ltd.machine import denied, fix_of, limits_problem

_INTERRUPTED = 130
_FIRST_PRINTS_SECONDS = 10.0
_AGAIN_SECONDS = 0.02


def _one_line(text: str) -> str:
    """``text`` with line ends and other characters that cannot be printed written as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _OneLine(Exception):
    """An error whose message is for the user."""

    def __str__(self) -> str:
        return _one_line(super().__str__())


class UserError(_OneLine):
    """A flag or file of the user cannot be used.

    The message is one line: ``--flag VALUE: what is wrong; what to do``.
    """


class RunStopped(_OneLine):
    """The run stopped itself (a NaN, a loss spike): the message says why, and how to continue. Exit status 1."""


class LostContact(RunStopped):
    """Another process of the run has died. Every process that notices prints it, since the first one may have died."""


@contextmanager
def reads_from(place: str, fix: str) -> Iterator[None]:
    """Turns an ``OSError`` of the block into a ``UserError``; ``place`` is a flag and its value."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}); {fix}") from None


@contextmanager
def writes_to(place: str, fix: str | None = None) -> Iterator[None]:
    """The same for output; without ``fix`` the error says what helps."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror}); {fix or fix_of(error.errno)}") from None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _open_streams() -> None:
    """Open what was closed at the start (``>&-``) on the null device: a later file must not become standard output.

    What the terminal cannot show, such as a name that is not UTF-8, is written as an escape.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # becomes the lowest that is free, which is this one
                os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")


def run_command(main: Callable[[], object]) -> None:
    """Run a command line's ``main`` and turn its exceptions into an exit status.

    0: done. 1: the run stopped itself (``RunStopped``). 2: a mistake of the user (``UserError``). 130: Ctrl-C.
    141: the reader of its output has closed it, as after ``| head``; a program that SIGPIPE ends has this status too.
    An error of the machine, such as a missing permission or memory, also ends in one line and with 2, and so does a
    name that is not UTF-8 where a library requires it.
    Under a launcher only the first process of each node prints the line, except for ``LostContact`` and such errors;
    the others wait for it, for ten seconds at most or until the launcher ends them.
    """
    _open_streams()
    _wait_briefly()
    quiet_torch()
    try:
        problem = limits_problem()
        if problem is not None:
            raise UserError(problem)
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again at exit
        raise SystemExit(141) from None
    except UserError as error:
        raise _ended(2, f"error: {error}") from None
    except LostContact as error:
        _say(f"stopped: {error}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # at exit, communication libraries may wait for the process that has died
    except RunStopped as error:
        raise _ended(1, f"stopped: {error}") from None
    except KeyboardInterrupt:
        raise _ended(_INTERRUPTED, "interrupted") from None
    except (ImportError, SystemError) as error:
        if not isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C while a library in C was imported
            raise
        raise _ended(_INTERRUPTED, "interrupted") from None
    except (OSError, RuntimeError, MemoryError, UnicodeEncodeError) as error:
        line = denied(error)
        if line is None:
            raise
        raise _ended(2, f"error: {_one_line(line)}", all_print=True) from None


def _ended(status: int, what: str, *, all_print: bool = False) -> SystemExit:
    """The exit with ``status``, once ``what`` is printed by the processes that print, and kept for the launcher.

    A process that does not print waits: a launcher ends the other processes when it sees the first exit, which must not
    be before the first process has printed. After Ctrl-C nobody waits.
    """
    prints = all_print or os.environ.get("LOCAL_RANK", "0") == "0"
    if prints:
        _say(what)
    elif status != _INTERRUPTED:
        # How the launcher ends it, also where a run or a script ignores it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with suppress(KeyboardInterrupt):
            time.sleep(_FIRST_PRINTS_SECONDS)
    _keep_for_launcher(what, prints)
    return SystemExit(status)


def _say(what: str) -> None:
    print(_line(what), file=sys.stderr, flush=True)


def _line(what: str) -> str:
    return f"{Path(sys.argv[0]).name}: {what}"


def _keep_for_launcher(what: str, printed: bool) -> None:
    """Write the line where torchrun looks for it: its closing report shows it, and ``printed`` is for our own launcher.

    The format is that of ``ErrorHandler`` in torch.distributed.elastic.multiprocessing.errors. ``LostContact`` is not
    kept, because the cause is in another process.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        about = {"timestamp": str(int(time.time())), "printed": printed}
        with suppress(OSError):
            whole = Path(f"{path}.whole")  # half a file would end torchrun with a traceback
            whole.write_text(json.dumps({"message": {"message": _line(what), "extraInfo": about}}), encoding="utf-8")
            whole.replace(path)


@contextmanager
def quiet_log(name: str, level: int = logging.CRITICAL) -> Iterator[None]:
    """Hide what a library logs below ``level`` in the block, such as an error that it also raises."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def quiet_torch() -> None:
    """Silence two messages of torch that ask for nothing, and raise Ctrl-C again that reached a destructor.

    A module that Megatron-Core imports warns that there is a compiler of CUDA, and no GPU. And where a checkpoint could
    not be written, since Python 3.13 the streams of torch's writer report that their file is closed already.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _report_unraisable


def _report_unraisable(found: sys.UnraisableHookArgs) -> None:
    if issubclass(found.exc_type, KeyboardInterrupt):  # Ctrl-C in a destructor, which Python would print and forget
        main = threading.main_thread().ident or 0
        again = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (main, signal.SIGINT))  # not here, in the hook
        again.daemon = True
        again.start()
    elif not (isinstance(found.exc_value, ValueError) and type(found.object).__name__ == "NoCloseWriter"):
        sys.__unraisablehook__(found)


def _wait_briefly() -> None:
    """Let OpenMP's threads spin for microseconds, not milliseconds, before they sleep, unless the user has chosen.

    On a machine that others use too, threads that spin take the processor from the thread that they wait for. Read by
    GNU's OpenMP when torch is imported, which no command has done yet.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
