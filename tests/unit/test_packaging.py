"""The package: it shares a namespace with Megatron-Core, and declares and pins its dependencies.

Dependencies are read from the sources with ``ast`` and from the text of pyproject.toml and constraints.txt.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools.config.pyprojecttoml import read_configuration

import megatron.ltd

SUPPORTED_PYTHONS = ("3.10", "3.11", "3.12", "3.13")
UPSTREAM_NAMES = ("training", "inference", "rl", "post_training", "core", "legacy")
# Distributions whose import name differs from the name under which they are installed.
DISTRIBUTION_OF = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "megatron": "megatron-core",
    "lm_eval": "lm-eval",
    "yaml": "pyyaml",
    "mlflow": "mlflow-skinny",
}


def project_table(repository: Path) -> dict:
    return read_configuration(repository / "pyproject.toml", expand=False)["project"]


def requirements(repository: Path, extra: str | None = None) -> list[Requirement]:
    project = project_table(repository)
    return [
        Requirement(line) for line in (project["optional-dependencies"][extra] if extra else project["dependencies"])
    ]


def all_requirements(repository: Path) -> list[Requirement]:
    extras = project_table(repository)["optional-dependencies"]
    return requirements(repository) + [item for extra in extras for item in requirements(repository, extra)]


def pins(repository: Path, python_version: str) -> dict[str, Requirement]:
    """The pins of constraints.txt for one version of Python; fails if a name has two."""
    found: dict[str, Requirement] = {}
    for line in (repository / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({"python_version": python_version}):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice for Python {python_version}"
            found[name] = pin
    return found


def run_python(code: str) -> str:
    """What ``code`` prints in a fresh interpreter."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_megatron_is_a_namespace_without_names_of_megatron_lm(repository: Path) -> None:
    assert not (repository / "megatron" / "__init__.py").exists()
    ours = {path.name.removesuffix(".py") for path in (repository / "megatron").iterdir()} - {"__pycache__"}
    assert ours == {"ltd"} and not ours & set(UPSTREAM_NAMES)


def imported_distributions(folder: Path) -> dict[str, Path]:
    """Distribution name -> one file that imports it, outside the standard library and ``megatron.ltd``."""
    found: dict[str, Path] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            else:
                continue
            for module in modules:
                top = module.partition(".")[0]
                if top not in sys.stdlib_module_names and not f"{module}.".startswith("megatron.ltd."):
                    found[canonicalize_name(DISTRIBUTION_OF.get(top, top))] = path
    return found


def test_every_third_party_import_is_declared(repository: Path) -> None:
    declared = {canonicalize_name(item.name) for item in all_requirements(repository)}
    imported = imported_distributions(repository / "megatron" / "ltd")
    assert {"torch", "megatron-core"} <= set(imported)
    undeclared = {name: str(path) for name, path in imported.items() if name not in declared}
    assert undeclared.keys() == {"triton"}, "torch for CUDA requires it, and nothing else needs it"


@pytest.mark.parametrize("python_version", SUPPORTED_PYTHONS)
def test_every_dependency_has_an_exact_pin_that_pyproject_allows(repository: Path, python_version: str) -> None:
    pinned = pins(repository, python_version)
    for pin in pinned.values():
        assert [specifier.operator for specifier in pin.specifier] == ["=="], pin
    for item in all_requirements(repository):
        pin = pinned[canonicalize_name(item.name)]
        version = next(iter(pin.specifier)).version
        assert item.specifier.contains(version, prereleases=True), f"{pin} is outside {item}"


def test_indirect_dependencies_are_pinned_too(repository: Path) -> None:
    pinned = pins(repository, f"{sys.version_info.major}.{sys.version_info.minor}")
    waiting = [canonicalize_name(item.name) for item in requirements(repository) + requirements(repository, "dev")]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        # CUDA libraries belong to the torch build, which pins them itself.
        if name in seen or name == "triton" or name.startswith(("nvidia-", "cuda-")):
            continue
        seen.add(name)
        assert name in pinned, f"{name} is installed but constraints.txt does not pin it"
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for item in map(Requirement, needed):
            if item.marker is None or item.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(item.name))


def test_lm_eval_finds_our_model_by_its_entry_point(repository: Path) -> None:
    """Later versions of lm-eval read entry points; ours must give the class that is registered under this name."""
    pytest.importorskip("lm_eval")
    ((name, place),) = project_table(repository)["entry-points"]["lm_eval.models"].items()
    module, _, attribute = place.partition(":")
    code = f"import {module} as m; from lm_eval.api.registry import get_model as g; print(g({name!r}) is m.{attribute})"
    assert run_python(code) == "True"


def test_megatron_core_on_a_cpu_imports_no_compiler() -> None:
    code = (
        "import sys, torch; from megatron.ltd.parallel import cpu_backend; compiling = torch.compile;"
        "cpu_backend.install(); import megatron.core.jit as jit;"
        "print(torch.compile is compiling, jit.jit_fuser(len) is len, 'torch._inductor.compile_fx' in sys.modules)"
    )
    assert run_python(code) == "True True False"


def test_the_version_is_read_without_importing_anything(repository: Path) -> None:
    text = (repository / "megatron" / "ltd" / "__init__.py").read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(\d+\.\d+\.\d+)"$', text, re.MULTILINE) == [megatron.ltd.__version__]


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """The part of a checkout that ``tools/setup_env.sh`` needs, without a ``.venv``."""
    (tmp_path / "tools").mkdir()
    shutil.copy(repository / "tools" / "setup_env.sh", tmp_path / "tools")
    for name in ("pyproject.toml", "setup.py", "constraints.txt"):
        shutil.copy(repository / name, tmp_path)
    return tmp_path


def set_up(checkout: Path, *extras: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(checkout / "tools" / "setup_env.sh"), *extras],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def stub_python(folder: Path, script: str) -> str:
    path = folder / "stub-python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def refusal(checkout: Path, *extras: str, **environment: str) -> str:
    """The one line of a setup that is refused, without the name of the script; there is no environment then."""
    result = set_up(checkout, *extras, **environment)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and not (checkout / ".venv").exists()
    return line.removeprefix("setup_env.sh: error: ")


@pytest.mark.parametrize("version", ["3.9.18", "3.14.0", "2.7.18", "13.10.1"])
def test_setup_refuses_a_python_that_is_not_supported(checkout: Path, version: str) -> None:
    python = stub_python(checkout, f"echo {version}")
    needed = f"PYTHON={python} is Python {version}, and 3.10 to 3.13 is needed: set PYTHON to one"
    assert refusal(checkout, PYTHON=python) == needed


def test_setup_refuses_a_python_that_does_not_run(checkout: Path) -> None:
    assert "does not run" in refusal(checkout, PYTHON=str(checkout / "absent"))


def test_setup_refuses_an_extra_that_is_not_declared(checkout: Path, repository: Path) -> None:
    listed = " ".join(project_table(repository)["optional-dependencies"])
    assert refusal(checkout, "develop", PYTHON=sys.executable) == f"extra develop is not one of: {listed}"


def test_setup_names_the_missing_ensurepip(checkout: Path) -> None:
    python = stub_python(checkout, 'case "$2" in *version_info*) echo 3.12.1;; *) exit 1;; esac')
    line = refusal(checkout, PYTHON=python)
    assert "no ensurepip" in line and "python3.12-venv" in line


def test_a_failed_setup_leaves_no_environment_and_names_its_log(checkout: Path, tmp_path: Path) -> None:
    # An interpreter that creates an environment in which pip always fails.
    script = (
        'case "$*" in *version_info*) echo 3.12.1;; *ensurepip*) exit 0;; '
        '"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python";; *) echo pip is down; exit 1;; esac'
    )
    python = stub_python(checkout, script)
    logs = tmp_path / "logs"
    logs.mkdir()
    result = set_up(checkout, PYTHON=python, TMPDIR=str(logs))
    assert result.returncode == 1
    assert not (checkout / ".venv").exists()
    (log,) = logs.iterdir()
    assert log.read_text(encoding="utf-8") == "pip is down\n"
    assert str(log) in result.stderr.splitlines()[-1]


def test_a_second_setup_installs_nothing_and_extras_add_up(checkout: Path) -> None:
    # An interpreter whose pip records its arguments instead of installing anything.
    calls = checkout / "calls"
    script = (
        'case "$*" in *version_info*) echo 3.12.1;; *ensurepip*) exit 0;; '
        '"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python";; '
        f'"-m pip "*) echo "$*" >> {calls};; *) exit 0;; esac'
    )
    python = stub_python(checkout, script)

    def editable_installs() -> list[str]:
        return [line.split()[-1] for line in calls.read_text(encoding="utf-8").splitlines() if "--editable" in line]

    assert set_up(checkout, "dev", PYTHON=python).returncode == 0
    assert set_up(checkout, PYTHON=python).returncode == 0
    assert set_up(checkout, "dev", PYTHON=python).returncode == 0
    assert editable_installs() == [".[dev]"]
    assert set_up(checkout, "plot", PYTHON=python).returncode == 0
    assert editable_installs() == [".[dev]", ".[dev,plot]"]
    with (checkout / "constraints.txt").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert set_up(checkout, PYTHON=python).returncode == 0
    assert editable_installs() == [".[dev]", ".[dev,plot]", ".[dev,plot]"]
