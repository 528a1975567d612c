"""What a terminal shows of the commands that a newcomer tries first: no table that a window breaks, no traceback."""

from __future__ import annotations

import html
import json
import re

import pytest
from browsing import SCREENSHOTS, keep, picture
from khub_process import Hub, StartHub, khub
from playwright.sync_api import Browser
from seeded_hub import seed

pytestmark = pytest.mark.slow
COLUMNS = 130
KERNEL = "kernel-hub/paged-attention"
STYLE = "margin:16px;background:#14161b;color:#e6e6e6;font:15px/1.35 monospace;white-space:pre-wrap"


@pytest.fixture(scope="module")
def seeded(start_hub: StartHub, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    hub = start_hub(tmp_path_factory.mktemp("terminal") / "data")
    seed(hub, tmp_path_factory.mktemp("packages"))
    return hub


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("help", [["--help"]]),
        ("explain", [["list", KERNEL], ["explain", KERNEL, "--version", "2"]]),
        ("mistakes", [["get", "kernel-hub/paged-atention", "--version", "1"], ["get", KERNEL], ["lock"]]),
    ],
)
def test_output_fits_a_window(
    browser: Browser, seeded: Hub, monkeypatch: pytest.MonkeyPatch, name: str, lines: list[list[str]]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", seeded.url)
    monkeypatch.setenv("COLUMNS", "100")
    shown = ""
    for line in lines:
        done = khub(*line)
        assert (done.returncode == 0) == (name != "mistakes"), done.stderr
        assert "Traceback" not in done.stderr
        tables = [row for row in done.stdout.splitlines() if row.startswith("  ")]
        assert [row for row in tables if len(row) > COLUMNS] == []
        shown += f"$ khub {' '.join(line)}\n{done.stdout}{done.stderr}\n"
    assert re.search(r"\x1b", shown) is None  # nobody looks at colours in a pipe
    page = browser.new_page(viewport={"width": 1240, "height": 24 * len(shown.splitlines())})
    page.set_content(f"<body style={json.dumps(STYLE)}>{html.escape(shown)}</body>")
    keep(picture(page), SCREENSHOTS / "terminal" / f"{name}.png")
    page.close()
