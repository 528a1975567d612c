"""Run the client of the tuf-conformance suite many times from one process that has imported everything already.

The suite starts its client well over a thousand times, and most of each start is imports. `serve` imports once and
forks a child for each command line that comes over a Unix socket, so every run is a process of its own with nothing in
memory from the one before. `ask` is what the suite starts: the command line there, the exit code back.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile


def ask(path: str, arguments: list[str]) -> int:
    """Have `arguments` run; returns the exit code."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        connection.sendall(json.dumps(arguments).encode())
        connection.shutdown(socket.SHUT_WR)
        answer = json.loads(_read(connection))
    sys.stderr.write(answer["stderr"])
    return int(answer["code"])


def serve(path: str) -> None:
    """Answer until the process is ended."""
    from tuf_conformance_client import main

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection, tempfile.TemporaryFile() as said:
                arguments = json.loads(_read(connection))
                child = os.fork()
                if child == 0:
                    listener.close()
                    os.dup2(said.fileno(), 2)
                    sys.argv[1:] = arguments
                    _run(main)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                said.seek(0)
                answer = {"code": code, "stderr": said.read().decode("utf-8", "replace")}
                connection.sendall(json.dumps(answer).encode())


def _run(main: object) -> None:
    """The child: nothing of it returns to the server's loop."""
    code = 70
    try:
        assert callable(main)
        code = main()
    except SystemExit as end:  # argparse's
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # what an interpreter of its own would print at its end
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def _read(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
