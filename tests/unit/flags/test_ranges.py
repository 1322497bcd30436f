"""Every flag that is a number has a range, and a value from outside it gets one line and exit status 2."""

from __future__ import annotations

import dataclasses
import inspect
import math
import pkgutil
import random
from collections.abc import Callable, Iterator
from importlib import import_module

import pytest

import megatron.ltd
from megatron.ltd.arguments import parse_run_config
from megatron.ltd.config import flag_classes
from megatron.ltd.data.blends import parse_blend, plain_split
from megatron.ltd.data.inputs.documents import Shard
from megatron.ltd.evaluation.lm_eval.harness_args import HarnessArgs
from megatron.ltd.export.config import ExportConfig
from megatron.ltd.flags import FlagParser, Settings, add_flags, flag, flag_fields, flag_name, read_flags
from megatron.ltd.flags.fields import value_type
from megatron.ltd.flags.ranges import AMOUNT, COUNT, SHARE, Range, _annotations, range_of
from megatron.ltd.workloads import WORKLOADS
from tests.support_errors import refused

DRAWS = 3


def config_classes() -> Iterator[type]:
    """Every dataclass of flags in the library."""
    found = {config_class for entry in WORKLOADS.values() for config_class in flag_classes(entry)}
    names = [module.name for module in pkgutil.walk_packages(megatron.ltd.__path__, "megatron.ltd.")]
    without_torch = [name for name in names if "config" in name.rpartition(".")[2] or ".data." in name]
    for module in map(import_module, without_torch):
        classes = [value for value in vars(module).values() if inspect.isclass(value)]
        found |= {value for value in classes if dataclasses.is_dataclass(value) and flag_fields(value)}
    yield from sorted(found, key=lambda config_class: (config_class.__module__, config_class.__name__))


def numbers() -> Iterator[tuple[type, str]]:
    """Every class of flags with each of its fields that are numbers."""
    for config_class in config_classes():
        for field in flag_fields(config_class):
            if value_type(_annotations(config_class)[field.name])[0] in (int, float):
                yield config_class, field.name


NUMBERS = list(numbers())


def outside(allowed: Range, kind: type, seed: str) -> list[str]:
    """Values around and far beyond both ends, and some that are drawn."""
    draw = random.Random(seed)
    if kind is int:
        low, high = math.ceil(allowed.least), math.floor(allowed.most)
        near = [low if allowed.above else low - 1, high if allowed.below else high + 1]
        far = [high + 1 + draw.randrange(1 << 80), low - 1 - draw.randrange(1 << 80), 1 << 64, -(10**300), 10**300]
        return [str(value) for value in (*near, *far)] + ["1.5", "many", "", "0x10", "1e3", "--"]
    edges = [math.nextafter(allowed.least, -math.inf), math.nextafter(allowed.most, math.inf)]
    edges += [allowed.least] * allowed.above + [allowed.most] * allowed.below
    far = [allowed.most + 10 ** draw.uniform(18.1, 300) for _ in range(DRAWS)]
    far += [allowed.least - 10 ** draw.uniform(18.1, 300) for _ in range(DRAWS)]
    return [repr(float(value)) for value in (*edges, *far)] + ["nan", "inf", "-inf", "many", "", "1e400"]


@pytest.mark.parametrize(("config_class", "name"), NUMBERS, ids=[f"{part.__name__}-{name}" for part, name in NUMBERS])
def test_values_outside_the_range(config_class: type, name: str) -> None:
    assert issubclass(config_class, Settings)
    allowed, spelling = range_of(config_class, name), flag_name(config_class, name)
    assert allowed is not None
    kind = value_type(_annotations(config_class)[name])[0]
    parser = FlagParser(None)
    add_flags(parser, config_class)
    for text in outside(allowed, kind, f"{config_class.__name__} {name}"):
        with refused(spelling):
            read_flags(parser.parse_args([f"{spelling}={text}"]), config_class)


def test_all_flags_of_a_run_are_there() -> None:
    assert len(NUMBERS) > 100


@pytest.mark.parametrize("word", ["--lr=--", "--num-layers=--", "two\nlines", "--lr\n=3", "a\rb"])
def test_words_that_no_flag_takes(word: str) -> None:
    with refused():
        parse_run_config(["--train-iters", "1", "--lr", "1", word])


NINES = "9" * 5000
LISTS = {
    "--ltd-layers": ["--random-ltd", "--ltd-growth-steps=1", f"--ltd-layers=2-{NINES}"],
    "--ltd-layers of other digits": ["--random-ltd", "--ltd-growth-steps=1", "--ltd-layers=\u0662"],
    "--token-bypass-layers": ["--token-bypass", f"--token-bypass-layers=2-{NINES}"],
    "--token-bypass-stages": ["--token-bypass", "--token-bypass-schedule=staged", f"--token-bypass-stages=0:{NINES}"],
}


@pytest.mark.parametrize("flags", LISTS.values(), ids=LISTS.keys())
def test_numbers_within_text(flags: list[str]) -> None:
    with refused(flags[-1].partition("=")[0]):
        parse_run_config(["--train-iters", "1", "--lr", "1", "--seq-length", "1024", *flags])


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Shard.parse(f"1/{NINES}"), "--shard"),
        (lambda: ExportConfig(load="a", output="b", max_shard_size=f"{NINES}GB"), "--max-shard-size"),
        (lambda: HarnessArgs(pretrained="a", batch_size="\u00b2"), "--batch_size"),
        (lambda: parse_blend("--data-path", ("1e308", "a", "1e308", "b")), "--data-path"),
        (lambda: plain_split("1e308,1e308,1"), "--split"),
    ],
)  # fmt: skip
def test_numbers_within_other_text(make: Callable[[], object], name: str) -> None:
    with refused(name):
        make()


@dataclasses.dataclass(frozen=True)
class Oven(Settings):
    """oven"""

    heat: float | None = flag(None, range=SHARE, help="heat")
    racks: tuple[int, ...] = flag((), help="racks")
    hours: float = flag(1, help="hours")
    name: str = flag("oven", help="name")


def test_the_defaults_of_ranges() -> None:
    assert (range_of(Oven, "racks"), range_of(Oven, "hours"), range_of(Oven, "name")) == (COUNT, AMOUNT, None)
    assert Oven(0.0, (1, 2), 0) and Oven(None, ())
    with refused("--heat 1.0", "below 1"):
        Oven(heat=1.0)
    with refused("--racks 0", "at least 1"):
        Oven(racks=(2, 0))
