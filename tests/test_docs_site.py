"""The site of docs/: it builds without a warning, and a page fetches nothing from elsewhere when it is read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browsing import SCREENSHOTS, keep, picture
from khub_process import ROOT
from playwright.sync_api import Browser


class Page(HTMLParser):
    """The addresses that a page loads, those that it links to, and the names of its places."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.places = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.places.add(given.get("id", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loads.append(given["href"])
        elif "src" in given:
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_site_fetches_nothing_from_elsewhere_and_every_link_within_it_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 40
    wrong = []
    for path, page in pages.items():
        for address in page.loads + page.links:
            there = urlsplit(address)
            if there.scheme or there.netloc:
                wrong += [f"{path}: loads {address}"] if address in page.loads else []
                continue
            target = (path.parent / unquote(there.path)).resolve() if there.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (
                target in pages and unquote(there.fragment) not in pages[target].places
            ):
                wrong.append(f"{path}: {address}")
    assert wrong == []


@pytest.mark.slow
def test_site_has_the_docstring_of_every_public_name_of_the_loader(site: Path) -> None:
    import hub_loader

    reference = (site / "reference" / "hub_loader" / "index.html").read_text()
    shown = set(re.findall(r'id="hub_loader\.(\w+)"', reference))
    assert set(hub_loader.__all__) - shown == set()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_site_fits_a_window_and_complains_of_nothing(browser: Browser, site: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844})
    complaints = list[str]()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    for name in ("", "use-a-kernel", "performance", "reference/hub_loader"):
        page.goto((site / name / "index.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        keep(picture(page), SCREENSHOTS / "site" / f"{name.partition('/')[0] or 'front'}-{width}.png")
    assert complaints == []
    page.close()
