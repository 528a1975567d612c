"""The page at `/` in Chromium: a conversation, its speed, the kernels, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import SCREENSHOTS, keep, picture
from engine_models import SHIPPED
from playwright.sync_api import Browser, Page, expect
from serving import NAME, Server, StartServer

pytestmark = pytest.mark.slow
PATIENCE = 60_000  # milliseconds, for a busy machine


def open_page(
    browser: Browser, server: Server, *, width: int = 1280, dark: bool = False
) -> tuple[Page, list[str]]:
    """The page, and what it complained about: exceptions, requests to other hosts, refused content."""
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme="dark" if dark else "light"
    )
    page, complaints = context.new_page(), list[str]()
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on(
        "request", lambda r: None if r.url.startswith((server.url, "data:")) else complaints.append(r.url)
    )
    page.goto(server.url)
    return page, complaints


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")


def test_page_answers_with_speed_and_shows_the_kernels(browser: Browser, server: Server) -> None:
    page, complaints = open_page(browser, server)
    expect(page.get_by_role("heading", level=1)).to_have_text(NAME, timeout=PATIENCE)
    slots = page.locator("#kernels tr td:first-child")
    assert "attention" in slots.all_text_contents()
    page.get_by_label("Tokens").fill("12")
    page.get_by_label("Temperature").fill("0")
    for count in (1, 2):
        ask(page, "def main():")
        expect(page.locator(".assistant")).to_have_count(count, timeout=PATIENCE)
        expect(page.get_by_role("status")).to_contain_text("tokens/s", timeout=PATIENCE)
    answer = server.openai().chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "def main():"}], max_tokens=12, temperature=0
    )
    keep(picture(page), SCREENSHOTS / "engine" / "chat.png")
    assert page.locator(".assistant").first.text_content() == answer.choices[0].message.content
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".turn")).to_have_count(0)
    assert complaints == []


def test_page_stops_an_answer_and_its_blocks_are_free(browser: Browser, server: Server) -> None:
    server.wait_until(server.idle, "idle before")
    page, _ = open_page(browser, server)
    page.get_by_label("Tokens").fill("900")
    ask(page, "class A:")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_have_text("Stopped.", timeout=PATIENCE)
    server.wait_until(server.idle, "its blocks are free")


def test_page_shows_what_the_server_refuses(browser: Browser, server: Server) -> None:
    page, _ = open_page(browser, server)
    page.get_by_label("Tokens").fill("5000")
    ask(page, "x")
    expect(page.locator(".error")).to_contain_text("longer than this server's limit", timeout=PATIENCE)


def test_page_continues_text_without_a_template_and_takes_a_key(
    browser: Browser, start_server: StartServer, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    server = start_server(SHIPPED, "--api-key-file", keys)
    page, _ = open_page(browser, server)
    expect(page.locator(".error")).to_contain_text("asks for an API key", timeout=PATIENCE)
    page.locator("#key").fill("secret")
    page.locator("#key").press("Tab")
    expect(page.locator("#about")).to_contain_text("your text is continued", timeout=PATIENCE)
    page.get_by_label("Tokens").fill("4")
    ask(page, "import ")
    expect(page.get_by_role("status")).to_contain_text("tokens/s", timeout=PATIENCE)
    server.stop()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_is_accessible_and_fits_its_window(
    browser: Browser, server: Server, width: int, dark: bool
) -> None:
    page, complaints = open_page(browser, server, width=width, dark=dark)
    expect(page.get_by_role("heading", level=1)).to_have_text(NAME, timeout=PATIENCE)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert complaints == []
