"""Settings files: what they may hold, which value wins, and one-line errors for all other files."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron.ltd.errors import UserError
from megatron.ltd.flags import FlagParser, add_flags, read_flags, settings_lines
from megatron.ltd.flags.files import setting_line
from tests.unit.flags.kitchen import Kitchen, kitchen_parser, parse


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def parse_text(file: Path, text: str, *arguments: object) -> Kitchen:
    file.write_text(text, encoding="utf-8")
    return parse("--config", file, *arguments)


@pytest.mark.parametrize(
    ("text", "kitchen"),
    [
        ("", Kitchen()),
        ("# nothing\n", Kitchen()),
        ("num-cooks: 3", Kitchen(num_cooks=3)),
        ("num_cooks: 3", Kitchen(num_cooks=3)),
        ('num-cooks: "3"', Kitchen(num_cooks=3)),
        ("num-cooks: 010", Kitchen(num_cooks=10)),
        ("num-cooks: -3", Kitchen(num_cooks=-3)),
        ("heat: 1e-3", Kitchen(heat=1e-3)),
        ("heat: 3", Kitchen(heat=3.0)),
        ("name: -x", Kitchen(name="-x")),
        ("name: --heat", Kitchen(name="--heat")),
        ("name: 12:30", Kitchen(name="12:30")),
        ("name: no", Kitchen(name="no")),
        ("name: 'true'", Kitchen(name="true")),
        ('name: ""', Kitchen(name="")),
        ("spices: salt", Kitchen(spices=("salt",))),
        ("spices: [0.7, a, -b]", Kitchen(spices=("0.7", "a", "-b"))),
        ("weights:\n  - 1\n  - 2e-1", Kitchen(weights=(1.0, 0.2))),
        ("a:\n  b:\n    heat: 2\n  lid: true\nnum-cooks: 3", Kitchen(num_cooks=3, heat=2.0, lid=True)),
        ("a: {" * 15 + "heat: 2" + "}" * 15, Kitchen(heat=2.0)),
        ("lid: true", Kitchen(lid=True)),
        ("lid: false", Kitchen()),
        ("salt: false", Kitchen(salt=False)),
        ("salt: true", Kitchen()),
        ("no-salt: true", Kitchen(salt=False)),
        ("no_salt: false", Kitchen()),
        ("shut-window: True", Kitchen(window=False)),
        ("fire: false", Kitchen(no_fire=True)),
        ("no-fire: true", Kitchen(no_fire=True)),
        ("lamp: true", Kitchen(lamp=True)),
        ("lamp: false", Kitchen(lamp=False)),
        ("no-lamp: true", Kitchen(lamp=False)),
        ("no_lamp: false", Kitchen(lamp=True)),
    ],
)
def test_a_file_sets_the_same_value_as_a_flag(file: Path, text: str, kitchen: Kitchen) -> None:
    assert parse_text(file, text) == kitchen


def test_a_later_file_and_then_the_command_line_win(file: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.yaml"
    later.write_text("heat: 2\nlid: false\nno-salt: false\n")
    file.write_text("heat: 1\nnum-cooks: 3\nlid: true\nno-salt: true\nname: first\n")
    for files in ([["--config", file, later]], [["--config", file], ["--config", later]]):
        words = [word for words in files for word in words]
        assert parse(*words) == Kitchen(num_cooks=3, heat=2.0, name="first")
        assert parse("--heat", "3", *words, "--name", "typed") == Kitchen(num_cooks=3, heat=3.0, name="typed")
    assert parse("--config", later, file) == Kitchen(num_cooks=3, heat=1.0, lid=True, salt=False, name="first")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num-cook: 3", r":1: num-cook: there is no such setting; use num-cooks$"),
        ("a:\n  x: 1\n  salted: 1", r":2,3: x, salted: there are no such settings; --help lists the flags$"),
        ("kitchen:", r":1: kitchen: there is no such setting"),
        ("config: a.yaml", r":1: config: there is no such setting"),
        ("help: true", r":1: help: there is no such setting"),
        ("\nnum-cooks: three", r":2: num-cooks: 'three' is not a whole number"),
        ("num-cooks: 3.5", r":1: num-cooks: '3.5' is not a whole number"),
        ("heat: .inf", r":1: heat: '.inf' is not a finite number"),
        ("dish: cake", r":1: dish: invalid choice: 'cake' \(choose from soup, pie\)"),
        ("num-cooks: [3]", r":1: num-cooks: a list of 1 values; the flag takes one"),
        ("num-cooks: true", r":1: num-cooks: true is for switches"),
        ("num-cooks:", r":1: num-cooks: there is no value"),
        ("num-cooks: null", r":1: num-cooks: there is no value"),
        ("spices: []", r":1: spices: there is no value"),
        ("spices: [a, [b]]", r":1: a list holds another list"),
        ("lid: 1", r":1: lid: 1 is not true or false"),
        ("lid: yes", r":1: lid: yes is not true or false"),
        ("lid: 'true'", r":1: lid: true is not true or false"),
        ("lid: [true]", r":1: lid: a list is not true or false"),
        ("lid:\n  heat: 1", r":1: lid: this is a flag and cannot be a heading"),
        ("heat: 1\nheat: 2", r":2: heat is written twice, the first time in line 1"),
        ("a:\n  heat: 1\nheat: 2", r":3: heat is set twice, the first time in .*:2; keep one"),
        ("num-cooks: 1\nnum_cooks: 1", r":2: num_cooks is set twice"),
        ("salt: true\nno-salt: true", r":2: no-salt is set twice"),
        ("heat: !!python/object/apply:os.system [ls]", r":1: the tag tag:yaml.org,2002:python/.* is not supported"),
        ("heat: !x 1", r":1: the tag !x is not supported"),
        ("heat: &a 1", r":1: anchors and aliases are not supported"),
        ("heat: *a", r":1: anchors and aliases are not supported"),
        ("- heat", r":1: the file is not made of KEY: VALUE lines"),
        ("heat", r":1: the file is not made of KEY: VALUE lines"),
        ("heat: 1\n---\nheat: 2", r":2: a second document starts"),
        ("? [a]\n: 1", r":1: a key is not a name"),
        ("heat: 1\n  lid: [", r":2: this is not YAML"),
        ("heat: [1", r": this is not YAML"),
        ("heat: '\x00'", r": this is not YAML"),
        ("[" * 100_000, r":1: (this is not YAML|the file is not|a list holds another|groups are nested)"),
        ("a: " + "{a: " * 20_000, r":1: groups are nested in more than 16 levels"),
        ("heat: 1 # " + "x" * (1 << 18), r"Larger than"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_line(file: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_text(file, text)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    assert re.search(message, str(caught.value)), caught.value


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    """Other paths that are no readable files: end_to_end/test_odd_files."""
    (tmp_path / "binary").write_bytes(b"heat: 1\n\xff\xfe")
    for name, message in (("none", "there is no such file"), ("binary", "binary:2: this is not UTF-8")):
        with pytest.raises(UserError, match=message):
            parse("--config", tmp_path / name)
    with pytest.raises(UserError, match="--config: expected at least one argument"):
        parse("--config")


def test_an_error_says_which_file_sets_the_flag(file: Path) -> None:
    file.write_text("heat: 1\nnum-cooks: 3\n")
    parser = kitchen_parser()
    parser.parse_args(["--config", str(file), "--heat", "2"])
    assert str(parser.with_origin(UserError("--num-cooks 3: too many"))) == (
        f"--num-cooks 3: too many (--num-cooks is set in {file}:2)"
    )
    for other in ("--heat 2: too hot", "--lid: shut", "the oven is cold"):
        assert str(parser.with_origin(UserError(other))) == other


@given(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.integers(), st.floats(allow_nan=False)))
def test_a_line_is_valid_yaml_of_the_value(value: object) -> None:
    assert yaml.safe_load(setting_line("name", value)) == {"name": value}


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"])), min_size=1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(),
    st.booleans(),
)
def test_written_settings_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, spices: list[str], heat: float, cooks: int, on: bool
) -> None:
    kitchen = Kitchen(
        cooks, heat, "pie", name, tuple(spices), (heat, 1.0), salt=on, window=on, lid=on, no_fire=on, lamp=on
    )
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    given = {name: value for name, value in vars(kitchen).items() if value != getattr(Kitchen(), name)}
    file.write_text("\n".join(settings_lines(kitchen, given)), encoding="utf-8")
    assert parse("--config", file) == kitchen


def test_defaults_are_comments() -> None:
    assert settings_lines(Kitchen(heat=1e-6, salt=False), {"heat": 1e-6, "salt": False}) == [
        "# kitchen", "# num-cooks: 2", "heat: 1.0e-06", "# dish: soup", "no-salt: true",
    ]  # fmt: skip


def other_program() -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    actions = [
        parser.add_argument("--tasks", "-t", nargs="+"),
        parser.add_argument("--model_args", nargs="+"),
        parser.add_argument("--limit", type=float),
        parser.add_argument("--samples"),
        parser.add_argument("--log_samples", action="store_true"),
        parser.add_argument("--template", nargs="?"),
    ]
    return {spelling: action for action in actions for spelling in action.option_strings}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks: a", ["--tasks=a"]),
        ("tasks: [a, b]", ["--tasks", "a", "b"]),
        ("limit: 1e-1", ["--limit=1e-1"]),
        ("log-samples: true", ["--log_samples"]),
        ("log_samples: false", []),
        ("template: true", ["--template"]),
        ("template: chat", ["--template=chat"]),
        ("a:\n  model_args:\n    seed: 3\n    stop: [a, 1]", ["--model_args", "seed=3", 'stop=["a", 1]']),
        ("samples: {a: [1, 2]}", ['--samples={"a": [1, 2]}']),
        ("lid: true\nlimit: 2", ["--limit=2"]),
    ],
)
def test_flags_of_another_program(file: Path, text: str, words: list[str]) -> None:
    file.write_text(text, encoding="utf-8")
    parser = FlagParser("about", others=other_program)
    add_flags(parser, Kitchen)
    ours, unknown = parser.parse_known_args(["--config", str(file), "--more"])
    assert parser.other_words == words and unknown == ["--more"]
    assert read_flags(ours, Kitchen) == Kitchen(lid="lid" in text)
    file.write_text("tasks: a\nlimit: 3", encoding="utf-8")
    later = file.with_name("later.yaml")
    later.write_text("tasks: [b, c]", encoding="utf-8")
    parser.parse_known_args(["--config", str(file), str(later)])
    assert parser.other_words == ["--tasks", "b", "c", "--limit=3"]
    parser.parse_known_args(["--config", str(file), str(later), "-t", "d"])
    assert parser.other_words == ["--limit=3"]
    file.write_text("task: a\nlog_samples: 3", encoding="utf-8")
    with pytest.raises(UserError, match=r":2: log_samples: there is no value that the flag takes"):
        parser.parse_known_args(["--config", str(file)])
    file.write_text("task: a", encoding="utf-8")
    with pytest.raises(UserError, match=r":1: task: there is no such setting; use tasks"):
        parser.parse_known_args(["--config", str(file)])
