"""What a browser gets over the wire: pages, their headers, and errors; and that clients still get theirs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from khub_process import ROOT, Hub, khub
from seeded_hub import SEEDS, Seed, files_of, upload

from hub_loader.manifest import Index
from registry.pages.matrix import MAX_PLATFORMS, MAX_TOOLKITS, MAX_VARIANTS

HTML = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
ENVIRONMENT = {
    "python": "cp312",
    "arch": "x86_64",
    "os": "linux",
    "glibc": [2, 31],
    "torch": {"version": [2, 13], "release": "2.13.0+cu130", "cuda": [13, 0], "cxx11_abi": True},
    "compute_capabilities": [[9, 0]],
}
# Text that a page may show and must never obey, in every field that somebody else writes.
SCRIPT = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}{%x%}"


@pytest.fixture(scope="module")
def web(hub: Hub) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=hub.url, headers=HTML) as client:
        yield client


@pytest.fixture(scope="module")
def kernel(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A kernel with two versions, of which the second has a signature and a benchmark."""
    token = hub.token("pages")
    for version, seed in ((1, SEEDS[0]), (2, SEEDS[1])):
        own = Seed("pages/paged-attention", version, seed.face, seed.variants)
        upload(
            hub,
            token,
            own.repo,
            f"v{version}",
            files_of(own, tmp_path_factory.mktemp("kernel")),
            f"Version {version}",
        )
    return "/kernels/pages/paged-attention"


@pytest.fixture(scope="module")
def hostile(hub: Hub) -> str:
    """A repository whose every field is an attack on the page that shows it."""
    index = json.loads(Index("evil", 1, {}).to_json()) | {"name": "evil"}
    index["variants"] = {
        "torch-cpu": {
            "id": "_evil_cpu_1",
            "backend": {"type": SCRIPT, "archs": [SCRIPT]},
            "metadata": {"sha256": "0" * 64, "size": 3},
            "files": {f"{SCRIPT.replace('/', '')}.py": {"sha256": "1" * 64, "size": 10**400}},
        }
    }
    metadata = {
        "id": "_evil_cpu_1",
        "name": "evil",
        "version": 1,
        "license": SCRIPT,
        "backend": {"type": SCRIPT},
        "python-depends": [SCRIPT],
    }
    statement = {
        "subject": [{"name": SCRIPT, "digest": {"sha256": SCRIPT}}],
        "predicate": {
            "buildDefinition": {
                "buildType": SCRIPT,
                "resolvedDependencies": [{"name": SCRIPT, "digest": {SCRIPT: SCRIPT}}],
            },
            "runDetails": {"builder": {"id": SCRIPT, "version": {SCRIPT: SCRIPT}}},
        },
    }
    result = {
        "schema": 1,
        "title": SCRIPT,
        "unit": SCRIPT,
        "series": [SCRIPT, "b"],
        "environment": {SCRIPT: SCRIPT},
        "results": [{"case": SCRIPT, "values": {SCRIPT: 1, "b": 2}}],
    }
    files = {
        "README.md": f"{SCRIPT}\n\n# {SCRIPT}\n\n[x](javascript:alert(1)) ![x](http://127.0.0.1:9/x.png)\n".encode(),
        "index.json": json.dumps(index).encode(),
        "build/torch-cpu/metadata.json": json.dumps(metadata).encode(),
        "build/torch-cpu/__init__.py": f"'''{SCRIPT}'''\n__all__ = ['ok', {SCRIPT!r}]\n".encode(),
        "benchmarks/a.json": json.dumps(result).encode(),
        "benchmarks/b.json": json.dumps({"schema": SCRIPT}).encode(),
        "provenance.intoto.json": json.dumps(statement).encode(),
        f"{SCRIPT.replace('/', '')}.txt": b"x",
    }
    upload(hub, hub.token("hostile"), "hostile/evil", "v1", files, SCRIPT)
    upload(hub, hub.token("hostile"), "hostile/evil", "a-<b>-'c'", {"x": b"x"}, "A branch")
    return "/kernels/hostile/evil"


def pages_of(base: str) -> list[str]:
    tabs = ("", "/compatibility", "/tree/v1", "/versions", "/provenance", "/benchmarks")
    return [base + tab for tab in tabs]


def test_each_page_of_a_kernel_is_html_that_no_site_may_frame_and_no_script_may_enter(
    web: httpx.Client, kernel: str
) -> None:
    for path in ("/", "/kernels", "/pages", *pages_of(kernel)):
        got = web.get(path)
        assert got.status_code == 200, path
        assert got.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(
            part.strip().split(" ", 1) for part in got.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert got.headers["x-frame-options"] == "DENY"
        assert got.headers["x-content-type-options"] == "nosniff"
        assert "style=" not in got.text
        assert "<script>" not in got.text


def test_page_that_the_browser_has_is_answered_with_304_until_a_commit_changes_it(
    hub: Hub, web: httpx.Client
) -> None:
    token = hub.token("cached")
    upload(hub, token, "cached/one", "v1", {"README.md": b"before"}, "one")
    first = web.get("/kernels/cached/one")
    again = {"If-None-Match": first.headers["etag"]}
    same = web.get("/kernels/cached/one", headers=again)
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["content-security-policy"] == first.headers["content-security-policy"]
    upload(hub, token, "cached/one", "v1", {"README.md": b"after"}, "two")
    changed = web.get("/kernels/cached/one", headers=again)
    assert changed.status_code == 200
    assert "after" in changed.text


def test_style_sheet_is_named_by_its_content_and_kept_for_good(web: httpx.Client) -> None:
    address = web.get("/").text.partition('rel="stylesheet" href="')[2].partition('"')[0]
    got = web.get(address)
    assert got.headers["content-type"].startswith("text/css")
    assert "immutable" in got.headers["cache-control"]
    assert web.get("/-/static/khub.css").headers["cache-control"] == "no-cache"
    assert web.get(address, headers={"If-None-Match": got.headers["etag"]}).status_code == 304
    for name in ("nothing.css", "..%2frender.py", "%2e%2e%2f%2e%2e%2fauth.py"):
        assert web.get(f"/-/static/{name}").status_code == 404


def test_search_finds_a_kernel_by_name_by_operator_and_by_organization(
    web: httpx.Client, kernel: str
) -> None:
    for query in ("paged attention", "reshape_and_cache", "reshape-and-cache-flash", "pages"):
        assert f'href="{kernel}"' in web.get("/kernels", params={"q": query}).text
    missed = web.get("/kernels", params={"q": "no-such-operator"})
    assert kernel not in missed.text
    assert "0 kernels" in missed.text


def test_list_of_kernels_is_cut_into_pages_and_sorted(hub: Hub, web: httpx.Client) -> None:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.url, token=hub.token("many"))
    for number in range(26):
        api.create_repo(f"many/k{number:02}", repo_type="kernel")
    first, second = (web.get("/many", params={"sort": "name", "page": page}).text for page in (1, 2))
    assert first.count('href="/kernels/many/') == 24
    assert "many/k25" not in first.replace("</span><wbr>", "")
    assert second.count('href="/kernels/many/') == 2
    for strange in ("0", "-1", "x", "99", "٣", "9" * 5000):
        assert web.get("/many", params={"page": strange, "sort": strange}).status_code == 200


def test_short_address_leads_to_the_kernel_and_nowhere_else(web: httpx.Client, kernel: str) -> None:
    got = web.get("/pages/paged-attention")
    assert (got.status_code, got.headers["location"]) == (307, kernel)
    for path in (
        "//evil.example",
        "//evil.example/x",
        "/%2F%2Fevil.example/x",
        "/\\evil.example/x",
    ):
        answer = web.get(httpx.URL(str(web.base_url).rstrip("/") + path))
        assert answer.status_code == 404
        assert "location" not in answer.headers


def test_address_that_clients_print_after_a_commit_leads_to_its_files(
    hub: Hub, web: httpx.Client, kernel: str
) -> None:
    commit = web.get("/api" + kernel + "/revision/v1").json()["sha"]
    for address in (f"{kernel}/commit/{commit}", f"/pages/paged-attention/commit/{commit}"):
        got = web.get(address, follow_redirects=True)
        assert got.url.path == f"{kernel}/tree/{commit}"
        assert "index.json" in got.text


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/kernels/pages/nothing", 404, "RepoNotFound"),
        ("/nobody", 404, None),
        ("/nobody/nothing", 404, "RepoNotFound"),
        ("/kernels/pages/paged-attention?revision=v99", 404, "RevisionNotFound"),
        ("/kernels/pages/paged-attention/resolve/v1/nothing", 404, "EntryNotFound"),
        ("/kernels/pages/paged-attention/nothing/here", 404, None),
        ("/kernels/%ff/x", 400, "BadRequest"),
    ],
)
def test_error_is_a_page_for_a_browser_and_json_for_a_client_with_the_same_status(
    web: httpx.Client, kernel: str, path: str, status: int, code: str | None
) -> None:
    shown, plain = web.get(path), web.get(path, headers={"Accept": "*/*"})
    assert shown.status_code == plain.status_code == status
    assert shown.headers["content-type"].startswith("text/html")
    assert plain.headers["content-type"] == "application/json"
    assert shown.headers.get("x-error-code") == plain.headers.get("x-error-code") == code
    assert "content-security-policy" in shown.headers
    assert plain.json()["error"]


def test_api_answers_json_whatever_is_accepted(web: httpx.Client, kernel: str) -> None:
    for path in (f"/api{kernel}", f"/api{kernel}/refs", "/api/nothing", "/api/kernels/no/thing"):
        assert web.get(path).headers["content-type"] == "application/json"


def test_environment_that_is_pasted_gets_the_variant_that_the_command_chooses(
    hub: Hub, web: httpx.Client, kernel: str, tmp_path: Path
) -> None:
    text = json.dumps(ENVIRONMENT)
    got = web.post(f"{kernel}/compatibility", data={"environment": text})
    assert got.status_code == 200
    assert "It would get <code>torch-stable-abi210-cu130-x86_64-linux</code>" in got.text
    for variant in SEEDS[1].variants:
        assert variant in got.text
    there = tmp_path / "there.json"
    there.write_text(text)
    index = web.get(f"{kernel}/resolve/v2/index.json").content
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "index.json").write_bytes(index)
    explained = json.loads(khub("explain", tmp_path / "package", "--env", there, "--json").stdout)
    assert explained["chosen"] == "torch-stable-abi210-cu130-x86_64-linux"
    shown = Rows(got.text).rows
    assert [row[1] for row in shown] == [decision["variant"] for decision in explained["decisions"]]
    assert [row[2] for row in shown] == [decision["reason"] for decision in explained["decisions"]]


class Rows(HTMLParser):
    """Verdict, variant and reason of each item below `id="result"`."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(html.partition('id="result"')[2].partition("<ol")[2].partition("</ol>")[0])

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "li":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self.rows and data.strip():
            self.rows[-1].append(data.strip())


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", 422),
        ("not json", 422),
        ("[]", 422),
        (SCRIPT, 422),
        (json.dumps(ENVIRONMENT | {"compute_capabilities": [[9, 0]] * 65}), 422),
        (json.dumps(ENVIRONMENT | {"glibc": [2, -1]}), 422),
        ("1" * 5000, 422),
        ("[" * 20_000, 422),
        ("x" * 70_000, 413),
        (json.dumps(ENVIRONMENT | {"arch": SCRIPT}), 200),
    ],
)
def test_what_is_pasted_and_is_no_environment_is_refused_on_the_page(
    web: httpx.Client, kernel: str, text: str, status: int
) -> None:
    got = web.post(f"{kernel}/compatibility", data={"environment": text})
    assert got.status_code == status
    assert got.headers["content-type"].startswith("text/html")
    check_no_script(got.text)


def test_environment_described_in_fields_gets_its_variant_or_a_sentence(
    web: httpx.Client, kernel: str
) -> None:
    fields = {
        "torch": "2.9.1",
        "cuda": "12.8",
        "python": "3.12",
        "arch": "x86_64",
        "sm": "9.0",
        "glibc": "2.31",
    }
    assert "It would get <code>torch29-cxx11-cu128" in web.get(f"{kernel}/compatibility", params=fields).text
    cpu = fields | {"cuda": "", "sm": ""}
    assert "It would get <code>torch29-cxx11-cpu" in web.get(f"{kernel}/compatibility", params=cpu).text
    nothing = fields | {"sm": "7.5"}
    assert "Nothing fits" in web.get(f"{kernel}/compatibility", params=nothing).text
    wrong = web.get(f"{kernel}/compatibility", params=fields | {"torch": SCRIPT})
    assert wrong.status_code == 422
    check_no_script(wrong.text)


def test_form_that_another_site_sends_is_refused(web: httpx.Client, kernel: str) -> None:
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        got = web.post(f"{kernel}/compatibility", data={"environment": "{}"}, headers=headers)
        assert got.status_code == 403


class Found(HTMLParser):
    """Tags and attributes that would run, load or send something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.scripts += tag == "script"
        if tag in ("iframe", "object", "embed", "style", "base"):
            self.found.append(tag)
        for name, value in values.items():
            text = (value or "").strip().lower()
            if (
                name.startswith("on")
                or name == "style"
                or text.startswith(("javascript:", "data:", "vbscript:"))
            ):
                self.found.append(f"{tag} {name}={value}")
        if tag in ("script", "img", "link") and not (
            values.get("src") or values.get("href") or ""
        ).startswith("/-/"):
            self.found.append(f"{tag} from elsewhere: {values}")


def check_no_script(html: str) -> None:
    found = Found(html)
    assert found.found == []
    assert found.scripts == 1


def test_page_of_a_hostile_repository_shows_what_is_in_it_and_runs_nothing(
    web: httpx.Client, hostile: str
) -> None:
    paths = [*pages_of(hostile), "/hostile", "/kernels?q=" + SCRIPT.replace("%", "%25"), "/"]
    for path in paths:
        got = web.get(path)
        assert got.status_code == 200, path
        check_no_script(got.text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;{{7*7}}{%x%}" in (
        web.get(f"{hostile}/benchmarks").text
    )
    assert "&lt;script&gt;" in web.get(f"{hostile}/versions").text
    strange = web.get(hostile, params={"revision": "a-<b>-'c'"})
    assert strange.status_code == 200
    check_no_script(strange.text)


def test_repository_with_a_broken_index_has_a_page_that_says_so(hub: Hub, web: httpx.Client) -> None:
    upload(
        hub,
        hub.token("broken"),
        "broken/one",
        "v1",
        {"index.json": b'{"schema": 99}', "README.md": b"hello"},
        "x",
    )
    for path in pages_of("/kernels/broken/one"):
        got = web.get(path)
        assert got.status_code == 200
        assert "schema 99 is not supported" in got.text
    assert "hello" in web.get("/kernels/broken/one").text


def test_repository_without_an_index_shows_the_variants_of_its_tree(hub: Hub, web: httpx.Client) -> None:
    metadata = {"id": "_old_cpu_1", "name": "old", "version": 1, "license": "MIT", "backend": {"type": "cpu"}}
    files = {
        "build/torch28-cxx11-cpu-x86_64-linux/metadata.json": json.dumps(metadata).encode(),
        "build/torch28-cxx11-cpu-x86_64-linux/__init__.py": b"__all__ = ['relu']\n",
        "build/not-a-variant/x": b"",
    }
    upload(hub, hub.token("plain"), "plain/old", "main", files, "as the public Hub has it")
    shown = web.get("/kernels/plain/old/compatibility").text
    assert "torch 2.8 · cpu" in shown
    assert "relu" in web.get("/kernels/plain/old").text


def test_pages_of_an_empty_repository_say_that_it_is(hub: Hub, web: httpx.Client) -> None:
    from huggingface_hub import HfApi

    HfApi(endpoint=hub.url, token=hub.token("empty")).create_repo("empty/one", repo_type="kernel")
    for tab in ("", "/compatibility", "/tree/main", "/versions", "/provenance", "/benchmarks"):
        assert web.get(f"/kernels/empty/one{tab}").status_code == 200
    assert "no README.md" in web.get("/kernels/empty/one").text


def test_benchmark_of_the_documentation_is_uploaded_as_it_says_and_shown(
    hub: Hub, web: httpx.Client, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "pages.md").read_text()
    result, code = (page.partition(f"```{kind}\n")[2].partition("```")[0] for kind in ("json", "python"))
    (tmp_path / "result.json").write_text(result)
    token = hub.token("my-org")
    upload(hub, token, "my-org/paged-attention", "v1", {"README.md": b"x"}, "x")
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": token}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=60)
    shown = web.get("/kernels/my-org/paged-attention/benchmarks").text
    assert "Decode attention on a CPU" in shown
    assert "2.78×" in shown


def test_documentation_of_the_pages_says_the_limits_that_hold() -> None:
    page = " ".join((ROOT / "docs" / "pages.md").read_text().split())
    assert f"at most {MAX_VARIANTS} variants, {MAX_PLATFORMS} platforms and {MAX_TOOLKITS} toolkits" in page
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (ROOT / "docs" / link).exists(), link
