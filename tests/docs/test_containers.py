"""The Dockerfiles, without building them: instructions, copied files, extras and commands, as hadolint's rules ask."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest
from setuptools.config.pyprojecttoml import read_configuration

from megatron.ltd.commands import COMMANDS
from tests.docs.documents import code_blocks, section

NAMES = ("cpu", "gpu")
KNOWN = {"ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "SHELL", "USER", "WORKDIR"}


def dockerfile(repository: Path, name: str) -> str:
    return (repository / "tools" / "container" / f"{name}.Dockerfile").read_text(encoding="utf-8")


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction and its arguments, with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines)).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined]


def arguments(text: str, instruction: str) -> list[str]:
    return [rest for name, rest in instructions(text) if name == instruction]


@pytest.fixture(params=NAMES)
def text(request: pytest.FixtureRequest, repository: Path) -> str:
    return dockerfile(repository, request.param)


def test_instructions_are_known_and_in_order(text: str) -> None:
    names = [name for name, _ in instructions(text)]
    assert set(names) <= KNOWN and [name for name in names if name != "ARG"][0] == "FROM"
    assert names.count("CMD") == 1 and names[-1] == "CMD"
    assert all(Path(folder).is_absolute() for folder in arguments(text, "WORKDIR"))
    for written in [*arguments(text, "CMD"), *arguments(text, "SHELL")]:
        assert all(isinstance(word, str) for word in json.loads(written))  # the form that starts no further shell
    for written in arguments(text, "ENV"):
        assert all(re.fullmatch(r"[A-Z_]+=\S+", word) for word in shlex.split(written))


def test_every_image_has_a_tag(text: str) -> None:
    defaults = dict(written.split("=", 1) for written in arguments(text, "ARG"))
    images = [written.split()[0] for written in arguments(text, "FROM")]
    images = [re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], image) for image in images]
    assert all(re.fullmatch(r"[\w./-]+:[\w.-]+", image) and not image.endswith(":latest") for image in images), images


def sent_to_docker(repository: Path, path: str) -> bool:
    """Whether .dockerignore leaves ``path`` of the checkout in what is sent; of several rules the last one decides."""
    sent = True
    for rule in (repository / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = rule.removeprefix("!")
        if rule and not rule.startswith("#") and (fnmatch(path.split("/")[0], pattern) or fnmatch(path, pattern)):
            sent = rule.startswith("!")
    return sent


def test_what_is_copied_exists_and_is_sent(repository: Path, text: str) -> None:
    stages = [written.split()[2] for written in arguments(text, "FROM") if " AS " in written]
    for written in arguments(text, "COPY"):
        *sources, _ = [word for word in written.split() if not word.startswith("--from=")]
        if written.startswith("--from="):
            assert written.split()[0].removeprefix("--from=") in stages
            continue
        for source in sources if sources != ["."] else _needed_by_setup(repository):
            assert (repository / source).exists() and sent_to_docker(repository, source), source
    unsent = [".git", ".venv", "runs", "wandb", "tests", "docs", "megatron/ltd/__pycache__"]
    assert not [path for path in unsent if sent_to_docker(repository, path)]


def _needed_by_setup(repository: Path) -> Iterator[str]:
    yield from ("tools/setup_env.sh", "constraints.txt", "pyproject.toml", "setup.py", "README.md", "LICENSE")
    yield from (path.name for path in repository.glob("*_ltd.py"))
    yield from ("megatron/ltd/commands/train.py", "examples/launch/torchrun.sh")


def test_the_package_has_the_files_that_its_wheel_is_built_from(repository: Path) -> None:
    project = read_configuration(repository / "pyproject.toml", expand=False)["project"]
    copied = " ".join(arguments(dockerfile(repository, "gpu"), "COPY"))
    for name in ("pyproject.toml", "setup.py", "megatron", project["readme"], *project["license-files"]):
        assert re.search(rf"(^| ){re.escape(name)}( |$)", copied), name


def test_extras_and_commands_exist(repository: Path, text: str) -> None:
    extras = read_configuration(repository / "pyproject.toml", expand=False)["project"]["optional-dependencies"]
    run = " ".join(arguments(text, "RUN"))
    asked = [word for found in re.findall(r"setup_env\.sh ([\w -]+)", run) for word in found.split()]
    asked += [word for found in re.findall(r"wheel\}\[([\w,-]+)\]", run) for word in found.split(",")]
    assert asked and set(asked) <= extras.keys()
    (started,) = arguments(text, "CMD")
    assert json.loads(started)[:2] == ["python", "-m"]
    assert (repository / json.loads(started)[2].replace(".", "/") / "__main__.py").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_shell_commands_parse(repository: Path, name: str) -> None:
    for command in arguments(dockerfile(repository, name), "RUN"):
        ended = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("found", "allowed"),
    [("2.8.0", False), ("2.9.0", True), ("2.10.0+769ed778", True), ("2.11.0", True), ("2.12.0", False)],
)
def test_the_build_refuses_other_versions_of_transformer_engine(
    repository: Path, monkeypatch: pytest.MonkeyPatch, found: str, allowed: bool
) -> None:
    extras = read_configuration(repository / "pyproject.toml", expand=False)["project"]["optional-dependencies"]
    declared = [f"{needed}; extra == '{extra}'" for extra in extras for needed in extras[extra]]
    monkeypatch.setattr(metadata, "requires", lambda name: declared)
    monkeypatch.setattr(metadata, "version", lambda name: found)
    (script,) = re.findall(r'python -c "([^"]+)"', " ".join(arguments(dockerfile(repository, "gpu"), "RUN")))
    if allowed:
        exec(script, {})
    else:
        with pytest.raises(AssertionError, match=re.escape(found)):
            exec(script, {})


def test_the_pages_commands_name_the_dockerfiles_and_our_commands(repository: Path) -> None:
    page = section((repository / "docs" / "install.md").read_text(encoding="utf-8"), "In a container")
    commands = "".join([*code_blocks(page, "bash"), *(dockerfile(repository, name) for name in NAMES)])
    files = re.findall(r"--file (\S+)", commands)
    assert len(files) == 3 and all((repository / path).is_file() for path in files)
    named = re.findall(r"-m megatron\.ltd (\S+)", commands)
    assert named and set(named) <= COMMANDS.keys()
