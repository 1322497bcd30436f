"""The server of warm scripts: imports everything once, then forks a process for every client.

python -m tests.warm.server ADDRESS        prints "ready"; ends, and kills its scripts, at the end of its input
"""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Any

from tools.torture.warm import import_everything

_STATUS: list[int] = []
"""The exit status of a script that has ended."""


def serve(address: str) -> dict[str, Any]:
    """Serve clients until the input ends. Returns, in each forked process, the request of its client."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    woken, wakes = socket.socketpair()
    for end in (woken, wakes):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno())
    selector = selectors.DefaultSelector()
    for source in (sys.stdin.fileno(), listener, woken):
        selector.register(source, selectors.EVENT_READ)
    print("ready", flush=True)
    clients: dict[int, socket.socket] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                client, _ = listener.accept()
                forked = _fork(client)
                if forked is None:
                    client.close()
                    continue
                pid, request = forked
                if pid == 0:
                    for open_socket in (listener, woken, wakes, client, *clients.values()):
                        open_socket.close()
                    selector.close()
                    return request
                clients[pid] = client
                selector.register(client, selectors.EVENT_READ, pid)
            elif key.fileobj is woken:
                woken.recv(4096)
                for pid, status in _ended():
                    client = clients.pop(pid)
                    selector.unregister(client)
                    with suppress(BrokenPipeError), client:
                        client.sendall(f"{status}\n".encode())
            elif key.data in clients:  # the client was killed
                os.killpg(key.data, signal.SIGKILL)
            elif key.data is None:
                for pid in clients:
                    os.killpg(pid, signal.SIGKILL)
                sys.exit()


def _fork(client: socket.socket) -> tuple[int, dict[str, Any]] | None:
    """Read a request and fork; the new process has the client's streams as its own, and leads a session.

    None if the client has been killed before it had asked.
    """
    _, streams, _, _ = socket.recv_fds(client, 1, 3)
    with client.makefile("r", encoding="utf-8") as lines:
        line = lines.readline()
    if not line.endswith("\n"):
        for descriptor in streams:
            os.close(descriptor)
        return None
    request: dict[str, Any] = json.loads(line)
    inside, outside = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
    for descriptor in (*streams, outside):
        os.close(descriptor)
    if pid:
        os.read(inside, 1)  # until the new process leads its session
        with suppress(BrokenPipeError):  # a client that is gone is noticed by ``serve``
            client.sendall(f"{pid}\n".encode())
    os.close(inside)
    return pid, request


def _ended() -> list[tuple[int, int]]:
    """The processes that have ended since the last call, with their exit status or negative signal."""
    ended = []
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append((found[0], os.waitstatus_to_exitcode(found[1])))
    return ended


def run(request: dict[str, Any]) -> None:
    """Run the script in this process as a new Python would."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        text = io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(number, "w", closefd=False)), encoding="utf-8", errors=errors,
            line_buffering=number == 2 or os.isatty(number), write_through=request["unbuffered"],
        )  # fmt: skip
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    sys.executable, sys.argv = request["executable"], request["words"]
    own = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:] = [os.path.dirname(os.path.abspath(sys.argv[0])), *own, *sys.path[1:]]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        _STATUS.append(0)
    except SystemExit as end:
        _STATUS.append(end.code if isinstance(end.code, int) else int(end.code is not None))
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        _STATUS.append(1)
        traceback.print_exc()


def _leave() -> None:
    """End this process, at the very end: to destroy all that is imported would take seconds."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(_STATUS[0] if _STATUS else 0)


if __name__ == "__main__":
    atexit.register(_leave)  # before any other, so that it is called last
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_everything()
    gc.freeze()  # what is imported stays shared with the forked processes, and a collection does not walk it
    run(serve(sys.argv[1]))
