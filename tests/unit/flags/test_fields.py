"""Flags generated from dataclasses: spelling, types, defaults, and errors of a wrong command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from megatron.ltd.errors import UserError
from megatron.ltd.flags import field_id, flag, flag_name, flag_values, from_record, shown
from tests.unit.flags.kitchen import Kitchen, parse


def test_an_empty_command_line_gives_the_defaults() -> None:
    assert parse() == Kitchen()


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--num-cooks", "3"], "num_cooks", 3),
        (["--num-cooks=3"], "num_cooks", 3),
        (["--num-cooks", "-3"], "num_cooks", -3),
        (["--heat", "1e-3"], "heat", 1e-3),
        (["--dish", "pie"], "dish", "pie"),
        (["--guests", "7"], "guests", 7),
        (["--spices", "a", "b"], "spices", ("a", "b")),
        (["--no-salt"], "salt", False),
        (["--shut-window"], "window", False),
        (["--lid"], "lid", True),
        (["--lamp"], "lamp", True),
        (["--no-lamp"], "lamp", False),
        (["--lamp", "--no-lamp"], "lamp", False),
        (["--num-cooks", "3", "--num-cooks", "4"], "num_cooks", 4),
    ],
)
def test_a_flag_sets_only_its_field(arguments: Sequence[str], field: str, value: object) -> None:
    parsed = parse(*arguments)
    assert parsed == Kitchen(**{field: value})
    assert type(getattr(parsed, field)) is type(value)


def test_the_id_of_a_flag_is_its_field() -> None:
    assert field_id("--num-cooks") == "num_cooks"


def test_flag_values() -> None:
    """Values are keyed by spelling; a switch's value is whether it is given, even if it sets its field to False."""
    untyped = {
        "--num-cooks": 2, "--heat": 0.5, "--dish": "soup", "--name": None, "--spices": (), "--weights": (),
        "--no-salt": False, "--shut-window": False, "--lid": False, "--no-fire": False, "--lamp": None,
        "--guests": None,
    }  # fmt: skip
    assert flag_values(parse()) == untyped
    typed = flag_values(parse("--no-salt", "--lid", "--guests", "7"))
    assert typed == untyped | {"--no-salt": True, "--lid": True, "--guests": 7}
    assert [flag_values(parse(word))["--lamp"] for word in ("--lamp", "--no-lamp")] == [True, "off"]


def test_flag_values_without_those_that_affect_something() -> None:
    @dataclass(frozen=True)
    class Hall:
        """hall"""

        seats: int = flag(2, help="seats", affects="model")
        curtain: bool = flag(False, help="curtain", affects="nothing")
        stage: str = flag("oak", help="stage")

    assert flag_values(Hall(), but_affecting="nothing") == {"--seats": 2, "--stage": "oak"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not given"), (False, "not given"), ((), "not given"), ([], "not given"), (True, "given"), (0, "0"),
        (0.001, "0.001"), ("a b", "a b"), ((4, 2, 24), "4 2 24"), ([4, 2, 24], "4 2 24"),
    ],
)  # fmt: skip
def test_values_as_shown_to_users(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(("field", "spelling"), [
    ("num_cooks", "--num-cooks"), ("salt", "--no-salt"), ("window", "--shut-window"), ("lid", "--lid"),
    ("lamp", "--lamp"),
])  # fmt: skip
def test_flag_name(field: str, spelling: str) -> None:
    assert flag_name(Kitchen, field) == spelling


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-cook", "3"], "--num-cook: there is no such flag; use --num-cooks"),
        (["--num-cook=3"], "--num-cook: there is no such flag; use --num-cooks"),
        (["--zzz"], "--zzz: there is no such flag; --help lists them all"),
        (["three"], "three: no flag takes this value; --help lists the flags and what each takes"),
        (["--num-cooks", "3.5"], "--num-cooks: '3.5' is not a whole number; give one such as 1000"),
        (["--heat", "inf"], "--heat: 'inf' is not a finite number; give one such as 0.1 or 3e-4"),
        (["--heat", "warm"], "--heat: 'warm' is not a finite number; give one such as 0.1 or 3e-4"),
        (["--heat"], "--heat: expected one argument"),
        (["--heat=--"], "--heat=--: -- is not a value; give another one"),
        (["--", "--heat"], "--: flags after it are not read; leave it out"),
        (["--lid=true"], "--lid: 'true' is given, and a switch takes no value; drop it"),
        (["two\nlines"], "two lines: no flag takes this value; --help lists the flags and what each takes"),
        (["--spices"], "--spices: expected at least one argument"),
    ],
)
def test_mistakes_are_one_line(arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(*arguments)
    assert str(caught.value) == message
    assert capsys.readouterr().err == ""


def test_a_wrong_choice_lists_the_right_ones() -> None:
    with pytest.raises(UserError, match=r"^--dish: invalid choice: 'cake' \(choose from '?soup'?, '?pie'?\)$"):
        parse("--dish", "cake")


def test_help_shows_titles_defaults_and_percent_signs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    said = capsys.readouterr().out
    assert caught.value.code == 0
    assert "\nkitchen:\n" in said and "Only the first line" not in said
    assert "cooks, 50 % of them asleep (default: 2)" in said


@pytest.mark.parametrize("config", [
    Kitchen(), Kitchen(3, 1.0, "pie", "x", ("a", "b"), (0.5,), salt=False, window=False, lid=True, guests=4),
])  # fmt: skip
def test_a_record_is_read_back(config: Kitchen) -> None:
    assert from_record(json.loads(json.dumps(dataclasses.asdict(config))), Kitchen, "x", "y") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_cooks": "2"}, "x: the y setting num_cooks has a value that it cannot have"),
        ({"num_cooks": True}, "setting num_cooks"),
        ({"num_cooks": 2.0}, "setting num_cooks"),
        ({"num_cooks": None}, "setting num_cooks"),
        ({"heat": True}, "setting heat"),
        ({"heat": float("nan")}, "setting heat"),
        ({"heat": float("inf")}, "setting heat"),
        ({"heat": 10**400}, "setting heat"),
        ({"dish": "tea"}, "setting dish"),
        ({"guests": [1]}, "setting guests"),
        ({"spices": "salt"}, "setting spices"),
        ({"spices": [1]}, "setting spices"),
        ({"salt": 0}, "setting salt"),
        ({"rooms": 1}, "x: this version does not know the y setting rooms"),
    ],
)
def test_bad_records_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_record(values, Kitchen, "x", "y")


def test_a_record_without_a_required_field_is_refused() -> None:
    @dataclass(frozen=True)
    class Table:
        legs: int

    with pytest.raises(UserError, match="x: the y setting legs is missing"):
        from_record({}, Table, "x", "y")
