"""The tuf-conformance suite, from the checkout that KHUB_TUF_CONFORMANCE names, against our client.

It is on no package index: clone github.com/theupdateframework/tuf-conformance, and have `faketime` on the path.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from khub_process import ROOT

TESTS = ROOT / "tests"


@pytest.mark.heavy
@pytest.mark.skipif("KHUB_TUF_CONFORMANCE" not in os.environ, reason="names no checkout of tuf-conformance")
def test_tuf_conformance_suite_when_run_against_our_client_then_every_case_passes(tmp_path: Path) -> None:
    assert shutil.which("faketime"), "the suite needs faketime: apt install faketime"
    checkout = Path(os.environ["KHUB_TUF_CONFORMANCE"])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS), str(checkout)])}
    with client(tmp_path, environment) as command:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "tuf_conformance",
                "--entrypoint",
                command,
            ],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None and int(found[1]) >= 113


@contextmanager
def client(folder: Path, environment: dict[str, str]) -> Iterator[Path]:
    """The suite's client: forked from one process, but where faketime has to be loaded at its start."""
    run, fork = (
        shlex.join([sys.executable, *options, str(TESTS / name)])
        for options, name in (([], "tuf_conformance_client.py"), (["-IS"], "tuf_conformance_fork.py"))
    )
    with tempfile.TemporaryDirectory(prefix="khub-") as short:  # an address of a socket is short
        path = Path(short) / "s"
        command = folder / "client"
        command.write_text(
            f'#!/bin/sh\n[ -z "$LD_PRELOAD" ] || exec {run} "$@"\nexec {fork} ask {path} "$@"\n'
        )
        command.chmod(0o755)
        server = subprocess.Popen(
            [sys.executable, TESTS / "tuf_conformance_fork.py", "serve", path], env=environment
        )
        try:
            while not path.exists():
                assert server.poll() is None, "the client does not start"
                time.sleep(0.1)
            yield command
        finally:
            server.kill()
            server.wait()
