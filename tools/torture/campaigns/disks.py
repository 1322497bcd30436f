"""Full, closed and read-only disks, and limits of a process, while a command writes.

Right: the command works, or ends in one line; once the fault is gone the same command works, and its result is equal to
that of a disk without faults. A run resumes for that from what it had saved.
"""

from __future__ import annotations

import json
import os
import random
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from megatron.ltd.errors import RunStopped

from .. import namespaces
from ..child import Bounds, in_child
from ..commands import Command, Result, Undisturbed
from ..material import GPT, copy_of
from ..trials import Trial
from ..verdict import problem_of

_ENOUGH = 1 << 28
_TRAIN = [*GPT, *"--load disk/run --save disk/run --save-interval 2".split()]
_LAST_SAVE = ["disk/run/iter_0000006/*.distcp"]
_PREPARE = "--input text.jsonl --output-prefix disk/out --tokenizer-type ByteTokenizer"


COMMANDS: Mapping[str, Command] = {
    "training": Command("pretrain_gpt_ltd.py", _TRAIN, _LAST_SAVE),
    "training, async": Command("pretrain_gpt_ltd.py", [*_TRAIN, "--async-save"], _LAST_SAVE),
    "training, its log elsewhere": Command(
        "pretrain_gpt_ltd.py", [*_TRAIN, "--log-dir", "log"], _LAST_SAVE),
    "cached indices": Command(
        "pretrain_gpt_ltd.py", [*GPT, *"--data-cache-path disk/cache --save run2".split()], ["run2/iter*/*.distcp"]),
    "preparing data": Command("tools/preprocess_data.py", _PREPARE.split(), ["disk/out*.[bi]*"]),
    "merging data": Command(
        "tools/merge_datasets.py", "--input data more --output-prefix disk/out".split(), ["disk/out.[bi]*"]),
    "training a tokenizer": Command(
        "tools/train_tokenizer.py", "--input text.jsonl --vocab-size 300 --output-prefix disk/out".split(),
        ["disk/out.model"]),
    "exporting": Command(
        "tools/export_hf.py", "--load last --output disk/out --no-tokenizer".split(), ["disk/out/*.safetensors"]),
    "importing": Command(
        "tools/import_hf.py", "--load hf --save disk/out --tokenizer-type ByteTokenizer".split(),
        ["disk/out/iter*/*.distcp"]),
    "plotting": Command("tools/plot_run.py", "--runs run half --output disk/out.png".split(), ["disk/out.png"]),
    "reporting": Command("tools/report.py", "--run run --output disk/out.html".split()),
}  # fmt: skip


def _full(disk: Path, draw: random.Random) -> None:
    namespaces.change(disk, 4096 * draw.choice((1, 2, 4, draw.randint(1, 60), draw.randint(1, 300))))


def _later(act: Callable[[Path], None], disk: Path, draw: random.Random) -> None:
    """Start a process that acts at a random moment, and tries again while files are open."""
    delay = draw.uniform(0.0, 1.5)
    if os.fork() == 0:
        time.sleep(delay)
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            with suppress(OSError):
                act(disk)
                break
            time.sleep(0.01)
        os._exit(0)


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def _freed(disk: Path) -> None:
    namespaces.change(disk, _ENOUGH)
    (disk / "filler").unlink(missing_ok=True)


def _unwritable(disk: Path) -> None:
    namespaces.change(disk, _ENOUGH, read_only=True)


@dataclass(frozen=True)
class Fault:
    """How a fault of the disk begins and ends, or a limit of the process and its values.

    ``on_disk``: it needs a file system of its own.
    """

    begin: Callable[[Path, random.Random], None] = lambda disk, draw: None
    end: Callable[[Path], None] = lambda disk: None
    on_disk: bool = True
    limit: int | None = None
    values: Sequence[int] = ()


FAULTS: Mapping[str, Fault] = {
    "full": Fault(_full, _freed),
    "full while it runs": Fault(lambda disk, draw: _later(_fill, disk, draw), _freed),
    "few inodes": Fault(lambda disk, draw: namespaces.change(disk, _ENOUGH, draw.randint(2, 30)), _freed),
    "read-only": Fault(lambda disk, draw: _unwritable(disk), _freed),
    "read-only while it runs": Fault(lambda disk, draw: _later(_unwritable, disk, draw), _freed),
    "a closed folder": Fault(
        lambda disk, draw: disk.chmod(draw.choice((0o000, 0o100, 0o400, 0o500, 0o600))), lambda disk: disk.chmod(0o755),
        on_disk=False),
    "a limit of file size": Fault(
        on_disk=False, limit=resource.RLIMIT_FSIZE, values=(4000, 8000, 16_000, 30_000, 60_000, 120_000)),
    "a limit of open files": Fault(
        on_disk=False, limit=resource.RLIMIT_NOFILE, values=(9, 12, 16, 24, 40, 64, 100, 128, 140)),
    "a limit of processes": Fault(on_disk=False, limit=resource.RLIMIT_NPROC, values=(0, 1, 2, 5)),
}  # fmt: skip


class Disks:
    """See the module."""

    def __init__(self, material: Path) -> None:
        self._material, self._undisturbed = material, Undisturbed(material, "a disk without faults")

    def attempt(self, number: int, draw: random.Random, folder: Path) -> Trial:
        names = list(FAULTS)
        name, command_name = names[number % len(names)], draw.choice(list(COMMANDS))
        whole = self._undisturbed.result_of(command_name, COMMANDS[command_name])
        copy_of(self._material, folder)
        answer = folder.with_name(f"{folder.name}.answer")
        outer = in_child(
            lambda: answer.write_text(json.dumps(asdict(_try(number, name, command_name, draw, folder, whole)))),
            folder.with_name(f"{folder.name}-outer"), Bounds(600.0),
        )  # fmt: skip
        if not answer.exists():
            raise RunStopped(f"disks {number} could not be tried: {outer.said[-2000:]}")
        return Trial(**json.loads(answer.read_text()))


def _try(number: int, name: str, command_name: str, draw: random.Random, folder: Path, whole: Result) -> Trial:
    """In a child: set the fault up, run the command with it and without it."""
    fault, command, disk = FAULTS[name], COMMANDS[command_name], folder / "disk"
    trial = partial(Trial, "disks", number, name, command_name)
    if fault.on_disk:
        try:
            namespaces.enter()
            namespaces.mount_memory(disk, _ENOUGH)
        except OSError as error:
            return trial("", f"skipped: no file systems of its own for a user of this machine ({error})", 0.0)
    else:
        disk.mkdir()
        if fault.limit != resource.RLIMIT_NPROC:
            namespaces.give_up_rights()
        elif in_child(namespaces.become_limited, folder).status != 0:
            return trial("", "skipped: processes of root are not limited here", 0.0)
    fault.begin(disk, draw)
    limit = (lambda: None) if fault.limit is None else partial(_limit, fault.limit, draw.choice(fault.values))
    ending = command.run(folder, limit)
    problem = problem_of(ending, may_stop=True)
    time.sleep(0.0 if "while" not in name else 0.3)
    fault.end(disk)
    if problem or (ending.status == 0 and command.result(folder, ending) == whole):
        return trial(str(ending), problem, ending.seconds)
    again = command.run(folder)
    seconds = ending.seconds + again.seconds
    if again.status != 0:
        return trial(f"{ending}; then {again}", "does not work once the fault is gone", seconds)
    differs = command.result(folder, again) != whole
    return trial(str(ending), "another result once the fault is gone" if differs else "", seconds)


def _limit(what: int, value: int) -> None:
    """Limit this process."""
    if what == resource.RLIMIT_NPROC:
        namespaces.become_limited()
    resource.setrlimit(what, (value, value))
