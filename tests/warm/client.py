"""Stands in for ``python``: asks the server to run a script, and ends as the script ends. It imports little.

    python -IS client.py REAL_PYTHON ADDRESS OWN_NAME [-u] SCRIPT WORDS...

Signals are forwarded. If the client is killed, the server kills the script. Anything but a script with its words, such
as ``-c`` or ``-m``, goes to the real Python.
"""

import json
import os
import signal
import socket
import sys

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def main() -> None:
    real, address, own_name, *words = sys.argv[1:]
    script = words[words[:1] == ["-u"] :]
    if not script or script[0].startswith("-"):
        os.execv(real, [real, *words])
    request = {
        "words": script, "unbuffered": words != script, "folder": os.getcwd(), "environment": dict(os.environ),
        "executable": own_name,
    }  # fmt: skip
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [b"+"], [0, 1, 2])
        answers = server.makefile("rw", encoding="utf-8")
        answers.write(json.dumps(request) + "\n")
        answers.flush()
        pid = int(answers.readline())
        for number in FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: os.kill(pid, number))
        status = int(answers.readline())
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
