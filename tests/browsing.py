"""Chromium for tests, and the pictures that they keep in docs/screenshots (`make screenshots`)."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from khub_process import ROOT
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

SCREENSHOTS = ROOT / "docs" / "screenshots"
WRITE = os.environ.get("KHUB_WRITE_SCREENSHOTS", "") not in ("", "0")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser: that of $CHROMIUM, or the first one there is."""
    names = (os.environ.get("CHROMIUM", "chromium"), "chromium", "chromium-browser", "google-chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    assert found, "there is no Chromium here: run `make chromium`"
    with sync_playwright() as playwright:
        # As root Chromium has no sandbox to offer; the pages are the tests' own.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


def picture(page: Page) -> Image.Image:
    """What the page's window shows."""
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def keep(shown: Image.Image, path: Path) -> None:
    """Write the picture, in few colours, where `make screenshots` asked for it."""
    if WRITE:
        path.parent.mkdir(parents=True, exist_ok=True)
        shown.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
