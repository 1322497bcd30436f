"""Warm scripts start, run and end like those of a real Python."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support_processes import PATIENCE_SECONDS, child
from tests.warm.start import wait_for_scripts, warm_environment, warm_python

PROGRAMS = {
    "words, folder and variables": "import os, sys; print(sys.argv, os.getcwd(), os.environ['WORD'], sys.path[0])",
    "streams": "import sys; print(sys.stdin.read()); print('ä', file=sys.stderr)",
    "a status": "raise SystemExit(7)",
    "a message": "raise SystemExit('a message')",
    "a signal": "import os; os.kill(os.getpid(), 9)",
    "at the end": "import atexit, os; atexit.register(print, 'ended'); os.mkdir('folder')",
    "a process of its own": "import subprocess, sys; print(subprocess.run([sys.executable, 'other.py']).returncode)",
    "workers": "import multiprocessing as m; print(m.get_context('fork').Pool(2).map(abs, [-1, 2]))",
    "module": "import other",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_a_script_does_what_it_does_in_a_real_python(program: str, tmp_path: Path) -> None:
    ended = []
    for number, python in enumerate((sys.executable, warm_python())):
        folder = tmp_path / str(number) / "a folder"
        folder.mkdir(parents=True)
        (folder / "a program.py").write_text(f"{program}\n")
        (folder / "other.py").write_text("import sys; print(sys.argv); sys.exit(3)")
        done = subprocess.run(
            [python, "a program.py", "a b", "--flag", ""], cwd=folder, env={**os.environ, "WORD": "one two"},
            input="ü", capture_output=True, text=True, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        ended.append((done.returncode, done.stdout.replace(str(folder), ""), done.stderr, sorted(os.listdir(folder))))
    assert ended[0] == ended[1]


def test_another_use_of_python_is_real(tmp_path: Path) -> None:
    for words in (["-c", "import sys; print('torch' in sys.modules)"], ["-m", "this"], ["--version"]):
        done = subprocess.run([warm_python(), *words], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        real = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert (done.returncode, done.stdout) == (0, real.stdout)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_script_ends_with_its_client(number: signal.Signals, tmp_path: Path) -> None:
    program = tmp_path / "sleeps.py"
    program.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(1000)")
    with child([warm_python(), str(program)], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        script = psutil.Process(int(client.stdout.readline()))
        client.send_signal(number)
        assert client.wait(PATIENCE_SECONDS) == -number
        deadline = time.monotonic() + PATIENCE_SECONDS
        while script.is_running() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not script.is_running()


@pytest.mark.parametrize("sent", ["nothing", "streams", "half a request", "a request"])
def test_a_client_that_is_killed_early_ends_its_script_only(sent: str, tmp_path: Path) -> None:
    program = tmp_path / "sleeps.py"
    program.write_text("import time; time.sleep(1000)")
    request = {
        "words": [str(program)], "unbuffered": False, "folder": str(tmp_path), "environment": dict(os.environ),
        "executable": sys.executable,
    }  # fmt: skip
    text = json.dumps(request) + "\n"
    with socket.socket(socket.AF_UNIX) as client, open(os.devnull, "r+b") as nowhere:
        client.connect(f"{warm_environment()}/server")
        if sent != "nothing":
            socket.send_fds(client, [b"+"], [nowhere.fileno()] * 3)
        if sent.endswith("request"):
            client.sendall(text[: len(text) // 2 if sent.startswith("half") else None].encode())
    (tmp_path / "ends.py").write_text("print('ended')")
    done = subprocess.run([warm_python(), "ends.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "ended\n"
    wait_for_scripts()
