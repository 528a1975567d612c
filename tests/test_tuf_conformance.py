"""The tuf-conformance suite, from the checkout that KHUB_TUF_CONFORMANCE names, against our client.

It is on no package index: clone github.com/theupdateframework/tuf-conformance, and have `faketime` on the path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from khub_process import ROOT


@pytest.mark.heavy
@pytest.mark.skipif("KHUB_TUF_CONFORMANCE" not in os.environ, reason="names no checkout of tuf-conformance")
def test_tuf_conformance_suite_when_run_against_our_client_then_every_case_passes(tmp_path: Path) -> None:
    assert shutil.which("faketime"), "the suite needs faketime: apt install faketime"
    checkout = Path(os.environ["KHUB_TUF_CONFORMANCE"])
    client = tmp_path / "client"
    script = ROOT / "tests" / "tuf_conformance_client.py"
    client.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    client.chmod(0o755)
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
            client,
        ],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(checkout)])},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None and int(found[1]) >= 113
