"""docs/defects.md names each of these tests, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from khub_process import ROOT


def test_page_names_each_test_of_a_defect_and_what_it_points_to_exists() -> None:
    page = (ROOT / "docs" / "defects.md").read_text()
    files = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    tests = {
        name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    gates = (ROOT / "tests/build_matrix/test_gates.py").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named - set(re.findall(r"^def (test_\w+)", gates, re.MULTILINE)) == tests
    assert all((ROOT / path).exists() for path in re.findall(r"`(tests/[\w/.]+)`", page))
