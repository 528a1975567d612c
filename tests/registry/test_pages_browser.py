"""The pages in Chromium: wide and narrow, light and dark, by keyboard, without JavaScript, and for screen readers.

With KHUB_WRITE_SCREENSHOTS set (`make screenshots`) docs/screenshots is written anew.
"""

from __future__ import annotations

import json

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import SCREENSHOTS, WRITE, keep, picture
from khub_process import Hub, StartHub, khub
from playwright.sync_api import Browser, Page
from seeded_hub import seed, upload

pytestmark = pytest.mark.slow

KERNEL = "/kernels/kernel-hub/paged-attention"
ANSWER = f"{KERNEL}/compatibility?torch=2.9.1&cuda=12.8&python=3.12&arch=x86_64&sm=9.0&glibc=2.31"
PAGES = {
    "front": "/",
    "search": "/kernels?q=attention",
    "organization": "/vision-lab",
    "kernel": KERNEL,
    "compatibility": f"{KERNEL}/compatibility",
    "pythons": "/kernels/kernel-hub/batch-planner/compatibility",
    "answer": ANSWER,
    "files": f"{KERNEL}/tree/v2",
    "versions": f"{KERNEL}/versions",
    "provenance": "/kernels/kernel-hub/rmsnorm-rotary/provenance",
    "benchmarks": f"{KERNEL}/benchmarks",
    "no-benchmarks": "/kernels/vision-lab/triton-norm/benchmarks",
    "error": "/kernels/nobody/nothing",
    "login": "/-/login",
    "settings": "/-/settings",
    "admin": "/-/admin",
    "admin-org": "/-/admin/orgs/kernel-hub",
}
SHOWN = ("front", "kernel", "compatibility", "answer", "benchmarks", "provenance", "admin-org")
SIZES = {1280: 900, 390: 844}
Cookie = dict[str, str]
FOCUSABLE = "a[href], button, input:not([type=hidden]), textarea, select, summary, [tabindex='0']"


@pytest.fixture(scope="module")
def seeded(start_hub: StartHub, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """A registry of its own with several organizations, kernels and versions."""
    hub = start_hub(tmp_path_factory.mktemp("seeded") / "data")
    seed(hub, tmp_path_factory.mktemp("packages"))
    for arguments in (
        ("user", "add", "ada", "--operator", "--full-name", "Ada L."),
        ("user", "add", "bob"),
        ("member", "add", "--org", "kernel-hub", "--user", "bob", "--role", "writer"),
    ):
        done = khub("registry", *arguments, "--data", hub.data)
        assert done.returncode == 0, done.stderr
    return hub


@pytest.fixture(scope="module")
def login(seeded: Hub) -> Cookie:
    """The cookie of an operator who is signed in."""
    made = khub("registry", "token", "create", "--data", seeded.data, "--user", "ada", "--scope", "admin")
    answer = httpx.post(f"{seeded.url}/-/login", data={"token": made.stdout.splitlines()[-1]})
    return {"name": "khub_login", "value": answer.cookies["khub_login"], "url": seeded.url}


def open_page(
    browser: Browser,
    hub: Hub,
    path: str = "",
    *,
    width: int = 1280,
    scheme: str = "light",
    scripts: bool = True,
    login: Cookie | None = None,
) -> tuple[Page, list[str]]:
    """The page, and what it complained about: console errors, exceptions, requests to other hosts."""
    context = browser.new_context(
        viewport={"width": width, "height": SIZES[width]},
        color_scheme="dark" if scheme == "dark" else "light",
        java_script_enabled=scripts,
        base_url=hub.url,
        reduced_motion="reduce",
    )
    if login is not None:
        context.add_cookies([login])  # type: ignore[list-item]
    page, complaints = context.new_page(), list[str]()
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
    page.on("request", lambda r: None if r.url.startswith(hub.url) else complaints.append(r.url))
    if path:
        page.goto(path)
    return page, complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_page_fits_its_window_and_complains_of_nothing(
    browser: Browser, seeded: Hub, login: Cookie, width: int, scheme: str
) -> None:
    page, complaints = open_page(browser, seeded, width=width, scheme=scheme, login=login)
    too_wide = []
    for name, path in PAGES.items():
        page.goto(path)
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        if page.evaluate("document.documentElement.scrollWidth") > width:
            too_wide.append(name)
    assert too_wide == []
    assert [text for text in complaints if "status of 404" not in text] == []
    page.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_page_passes_the_accessibility_scan(
    browser: Browser, seeded: Hub, login: Cookie, width: int, scheme: str
) -> None:
    page, _ = open_page(browser, seeded, width=width, scheme=scheme, login=login)
    axe, problems = Axe(), []
    for name in PAGES if scheme == "light" else SHOWN:
        page.goto(PAGES[name])
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        problems += [
            f"{name} {found['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
            for found in axe.run(page).response["violations"]
            for node in found["nodes"][:2]
        ]
    assert problems == []
    page.context.close()


@pytest.mark.parametrize("width", SIZES)
def test_screenshots_of_pages_are_pictures_of_that_width_light_and_dark(
    browser: Browser, seeded: Hub, login: Cookie, width: int
) -> None:
    names = SHOWN if WRITE else SHOWN[:1]
    for scheme in ("light", "dark"):
        for name in names:
            signed_in = login if name.startswith("admin") else None
            page, _ = open_page(browser, seeded, width=width, scheme=scheme, login=signed_in)
            page.goto(PAGES[name])
            shown = picture(page)
            assert shown.size == (width, SIZES[width])
            corner = shown.convert("L").getpixel((width - 3, SIZES[width] - 3))
            assert isinstance(corner, int)
            assert (corner < 128) == (scheme == "dark")
            keep(shown, SCREENSHOTS / f"{name}-{width}-{scheme}.png")
            page.context.close()


def test_each_page_has_its_screenshots_and_none_is_left_over() -> None:
    names = {
        f"{name}-{width}-{scheme}.png" for name in SHOWN for width in SIZES for scheme in ("light", "dark")
    }
    kept = [path for path in SCREENSHOTS.iterdir() if path.is_file()]
    assert {path.name for path in kept} == names
    assert all(path.stat().st_size < 170_000 for path in kept)


@pytest.mark.parametrize("name", ["front", "kernel", "answer", "pythons", "admin-org"])
def test_tab_key_reaches_everything_in_the_order_of_the_page_and_shows_where_it_is(
    browser: Browser, seeded: Hub, login: Cookie, name: str
) -> None:
    page, _ = open_page(browser, seeded, PAGES[name], login=login)
    expected = page.evaluate(
        """selector => [...document.querySelectorAll(selector)]
           .filter(e => e.checkVisibility({visibilityProperty: true}))
           .map((e, i) => (e.dataset.order = i, i))""",
        FOCUSABLE,
    )
    reached = []
    for _ in expected:
        page.keyboard.press("Tab")
        order, outline, top = page.evaluate(
            """() => { const e = document.activeElement; const s = getComputedStyle(e);
               return [e.dataset.order, s.outlineStyle + " " + s.outlineWidth, e.getBoundingClientRect().top]; }"""
        )
        reached.append(order)
        assert outline == "solid 2px", f"nothing shows the focus on {order} of {name}"
        assert top > -1
    assert reached == [str(number) for number in expected]
    page.context.close()


def test_first_tab_offers_to_skip_to_the_content(browser: Browser, seeded: Hub) -> None:
    page, _ = open_page(browser, seeded, KERNEL)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    assert page.locator(".skip").bounding_box()["y"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    for landmark in ("header", "main", "footer", "nav[aria-label=Site]", "form[role=search]"):
        assert page.locator(landmark).count() == 1, landmark
    assert page.locator("h1").count() == 1
    page.context.close()


def test_environment_is_pasted_and_answered_without_javascript(browser: Browser, seeded: Hub) -> None:
    environment = {
        "python": "cp312",
        "arch": "aarch64",
        "os": "linux",
        "glibc": [2, 31],
        "torch": {"version": [2, 13], "release": "2.13.0+cpu", "cuda": None, "cxx11_abi": True},
    }
    page, complaints = open_page(browser, seeded, f"{KERNEL}/compatibility", width=390, scripts=False)
    page.get_by_label("The output of khub env --json").fill(json.dumps(environment))
    page.get_by_role("button", name="What would I get?").click()
    answer = page.locator("#result")
    assert "torch-stable-abi210-cpu-aarch64-linux" in answer.locator("h2").inner_text()
    assert answer.locator("li").count() == 9
    page.get_by_role("textbox", name="Python").fill("3.14t")
    page.get_by_role("button", name="What would it get?").click()
    assert page.locator("#result h2").inner_text() == "Nothing fits"
    assert complaints == []
    page.context.close()


def test_search_leads_from_the_front_page_to_a_kernel_without_javascript(
    browser: Browser, seeded: Hub
) -> None:
    page, complaints = open_page(browser, seeded, "/", width=390, scripts=False)
    page.get_by_role("searchbox").fill("batch planner")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="kernel-hub/batch-planner").click()
    assert page.url.endswith("/kernels/kernel-hub/batch-planner")
    page.get_by_role("link", name="Compatibility", exact=True).click()
    page.get_by_text("Python 3.12: 11 cells of 66").first.click()
    assert page.get_by_text("cp312 · no torch · cpu").first.is_visible()
    assert complaints == []
    page.context.close()


def test_copy_button_copies_the_code_beside_it(browser: Browser, seeded: Hub) -> None:
    page, _ = open_page(browser, seeded, KERNEL)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy: Python", exact=True).click()
    assert page.locator(".copy").first.inner_text() == "Copied"
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == (
        "from hub_loader import get_kernel\n\n"
        'paged_attention = get_kernel(\n    "kernel-hub/paged-attention",\n    version=2,\n)'
    )
    page.context.close()


def test_card_of_an_attacker_runs_nothing_and_asks_no_other_host(browser: Browser, seeded: Hub) -> None:
    attack = (
        "<script>window.pwned = 1</script><img src=http://127.0.0.1:9/x onerror='window.pwned=1'>\n\n"
        "![x](http://127.0.0.1:9/pixel.png) [click](javascript:window.pwned=1)\n\n"
        "<svg/onload=window.pwned=1> <iframe srcdoc='<script>parent.pwned=1</script>'></iframe>\n"
    )
    upload(seeded, seeded.token("evil"), "evil/card", "v1", {"README.md": attack.encode()}, attack)
    for path in (
        "/kernels/evil/card",
        "/kernels/evil/card/versions",
        "/evil",
        "/kernels?q=<script>pwned=1</script>",
    ):
        page, complaints = open_page(browser, seeded, path)
        assert page.evaluate("window.pwned") is None
        assert complaints == []
        page.context.close()
