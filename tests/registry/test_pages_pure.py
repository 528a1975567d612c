"""The pages' pure parts: cards, benchmark results, provenance, charts, search, and what a browser may be told."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from hub_loader.manifest import Index
from hub_loader.trust.keys import generate
from hub_loader.trust.sign import sign_index
from registry.names import RepoName
from registry.pages.benchmarks import parse_benchmark
from registry.pages.card import MAX_RENDERED, render_card
from registry.pages.catalog import Listed, search, sort, version_of
from registry.pages.charts import BAR_SPAN, DAYS, HEIGHT, benchmark_bars, downloads_chart, figure
from registry.pages.negotiate import local_path, same_origin, wants_html
from registry.pages.package import first_paragraph, public_names
from registry.pages.provenance import read_provenance
from registry.pages.render import size

BASE = "/kernels/org/name/resolve/" + "0" * 40 + "/"

# What has to come out harmless, whoever writes it into a card.
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "![x](javascript:alert(1))",
    "![x](https://tracker.example/pixel.png)",
    '[x](https://a.example "onmouseover=alert(1)")',
    "<a href='javascript:alert(1)'>x</a>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<style>body{display:none}</style>",
    "<form action=https://evil.example><input name=token></form>",
    "```html\n<script>alert(1)</script>\n```",
    "`</code><script>alert(1)</script>`",
    "<svg onload=alert(1)>",
    "# <script>alert(1)</script>",
    "| a |\n|---|\n| <script>alert(1)</script> |",
    "[x](//evil.example/a)",
    "<javascript:alert(1)>",
    "[x]: javascript:alert(1)\n\n[x]",
    "\x00<scr\x00ipt>alert(1)</scr\x00ipt>",
)
_ALLOWED = {
    *("h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "ul", "ol", "li", "blockquote", "pre", "code", "em"),
    *("strong", "s", "a", "table", "thead", "tbody", "tr", "th", "td", "div"),
}


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def check_harmless(html: str) -> None:
    for tag, attributes in Tags(html).found:
        assert tag in _ALLOWED
        assert not any(
            name.startswith("on") or name in ("style", "src", "srcdoc", "action") for name in attributes
        )
        if tag == "a":
            assert urlsplit(attributes.get("href") or "").scheme in ("", "http", "https", "mailto")
            assert {"noopener", "nofollow"} <= set((attributes["rel"] or "").split())


@pytest.mark.parametrize("markdown", HOSTILE)
def test_card_with_hostile_markdown_holds_only_harmless_tags(markdown: str) -> None:
    check_harmless(render_card(markdown, BASE, "name"))


@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20)), max_size=6).map("".join))
def test_card_of_any_text_holds_only_harmless_tags(markdown: str) -> None:
    check_harmless(render_card(markdown, BASE, "name"))


def test_card_that_is_very_long_is_shown_as_it_is() -> None:
    html = render_card("[" * MAX_RENDERED + "<script>", BASE, "name")
    check_harmless(html)
    assert html.startswith('<pre tabindex="0">[[[')
    assert "&lt;script&gt;" in html


def test_card_shows_raw_html_as_text() -> None:
    assert "&lt;script&gt;" in render_card("<script>x</script>", BASE, "name")


def test_card_leaves_out_a_title_that_repeats_the_name_and_begins_at_the_second_level() -> None:
    html = render_card("# name\n\n## Use\n\ntext\n\n### More", BASE, "name")
    assert html.startswith("<h2>Use</h2>")
    assert "<h3>More</h3>" in html
    assert "<h2>other</h2>" in render_card("# other", BASE, "name")


def test_card_points_relative_links_and_pictures_to_the_files_of_its_commit() -> None:
    html = render_card("[a](docs/a.md?x=1) [b](../../../api) ![plot](/plot.png) [c](#use)", BASE, "name")
    links = [attributes["href"] for tag, attributes in Tags(html).found if tag == "a"]
    assert links == [f"{BASE}docs/a.md", f"{BASE}api", f"{BASE}plot.png", "#use"]
    assert "<img" not in html


def test_card_makes_tables_that_scroll_and_whose_headers_have_a_scope() -> None:
    html = render_card("| a | b |\n|---|--:|\n| 1 | 2 |", BASE, "name")
    found = Tags(html).found
    assert ("th", {"scope": "col"}) in found
    assert ("td", {"class": "right"}) in found
    assert found[0][1]["tabindex"] == "0"


def document(**changes: object) -> bytes:
    plain = {
        "schema": 1,
        "title": "t",
        "unit": "µs",
        "series": ["a", "b"],
        "results": [{"case": "x", "values": {"a": 1, "b": 4}}, {"case": "y", "values": {"a": 3}}],
    }
    return json.dumps({**plain, **changes}).encode()


def test_benchmark_is_parsed_and_drawn_to_a_scale_of_each_case() -> None:
    result = parse_benchmark(document())
    assert [row.values for row in result.rows] == [(1.0, 4.0), (3.0, None)]
    assert [result.ratio(row) for row in result.rows] == [4.0, None]
    first, second = benchmark_bars(result)
    assert first.bars == ((0, BAR_SPAN / 4, "1.00"), (1, BAR_SPAN, "4.00"))
    assert second.bars == ((0, BAR_SPAN, "3.00"),)
    higher = parse_benchmark(document(lower_is_better=False))
    assert higher.ratio(higher.rows[0]) == 0.25


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        document(schema=2),
        document(schema="<script>" * 1000),
        document(series=[]),
        document(series=["a", "a"]),
        document(series=["a"] * 9),
        document(results=[]),
        document(results=[{"case": "x", "values": {"a": 1}}] * 999),
        document(results=[{"case": "x", "values": {"a": True}}]),
        document(results=[{"case": "x", "values": {"a": -1}}]),
        document(results=[{"case": "x", "values": {"a": float("nan")}}]),
        document(results=[{"case": "x", "values": {"a": 10**400}}]),
        document(results=[{"case": "x" * 999, "values": {"a": 1}}]),
        document(title=""),
        document(title=None),
        document(environment=[]),
    ],
)
def test_benchmark_that_is_malformed_or_too_large_is_refused_with_a_reason(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_benchmark(data)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [0.0, 1e-300, 0.004, 3.14159, 42.0, 1627.4, 9e307])
def test_figure_of_any_number_is_short(value: float) -> None:
    assert len(figure(value)) <= 9


INDEX = Index("name", 1, {})
KEY = generate()


def envelope(index: Index = INDEX, repo: str = "org/name", **options: str) -> bytes:
    return sign_index(index.to_json(), repo, KEY, signed=1_780_000_000, **options)  # type: ignore[arg-type]


def forged(**changes: object) -> bytes:
    return json.dumps({**json.loads(envelope()), **changes}).encode()


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({}, "unsigned"),
        ({"provenance.intoto.json": b'{"predicate": {}}'}, "unsigned"),
        ({"provenance.intoto.json": b"[]"}, "unsigned"),
        ({"index.json.dsse": envelope()}, "signed"),
        ({"index.json.dsse": envelope(yanked="wrong sums")}, "yanked"),
        ({"index.json.dsse": envelope(Index("name", 2, {}))}, "broken"),
        ({"index.json.dsse": envelope(repo="org/another")}, "broken"),
        ({"index.json.dsse": forged(signatures=[])}, "broken"),
        ({"index.json.dsse": forged(signatures=[{"keyid": "k", "sig": "A" * 86 + "=="}])}, "broken"),
        ({"index.json.dsse": forged(payloadType="text/html")}, "broken"),
        ({"index.json.dsse": forged(payload="<script>")}, "broken"),
        ({"index.json.dsse": b"{}"}, "broken"),
        ({"index.json.dsse": b"[" * 100_000}, "broken"),
        ({"index.json.dsse": b"\xff"}, "broken"),
    ],
)
def test_provenance_of_a_commit_is_what_the_loader_says_of_its_signature(
    files: dict[str, bytes], state: str
) -> None:
    found = read_provenance(files.get, "org/name", INDEX, INDEX.to_json())
    assert found.state == state
    assert "wrong sums" in found.explanation or state != "yanked"
    assert read_provenance(files.get, "org/name", None, None).state in ("unsigned", "broken")


@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
        max_leaves=9,
    )
)
def test_provenance_of_any_json_is_an_answer(value: object) -> None:
    for name, state in (("provenance.intoto.json", "unsigned"), ("index.json.dsse", "broken")):
        files = {name: json.dumps(value).encode()}
        assert read_provenance(files.get, "org/name", INDEX, INDEX.to_json()).state == state


def test_downloads_chart_has_a_bar_for_each_day_and_a_row_for_each_week() -> None:
    today = date(2026, 3, 20)
    chart = downloads_chart({today: 8, today - timedelta(days=3): 2, today - timedelta(days=99): 50}, today)
    assert (len(chart.bars), chart.total, chart.most) == (DAYS, 10, 8)
    assert chart.bars[-1].height == HEIGHT
    assert sum(count for _, count in chart.weeks) == 10
    assert downloads_chart({}, today).total == 0


def listed(
    repo: str, downloads: int = 0, day: int = 1, operators: tuple[str, ...] = (), summary: str = ""
) -> Listed:
    org, _, name = repo.partition("/")
    return Listed(
        RepoName(org, name), 1, "", datetime(2026, 1, day), downloads, summary, operators, ("cpu",), 1
    )


def test_search_finds_by_name_organization_and_operator_and_puts_names_first() -> None:
    items = [
        listed("a/gather", operators=("paged_attention_v1",)),
        listed("attention-lab/rope"),
        listed("b/flash-attention"),
        listed("c/norm", summary="Nothing of the kind"),
    ]
    names = [str(item.repo) for item in search(items, "attention")]
    assert names == ["attention-lab/rope", "b/flash-attention", "a/gather"]
    assert [str(i.repo) for i in search(items, "paged-attention")] == ["a/gather"]
    assert [str(i.repo) for i in search(items, "b/flash")] == ["b/flash-attention"]
    assert search(items, "%") == []
    assert len(search(items, "")) == 4


def test_sort_orders_by_downloads_date_or_name() -> None:
    items = [listed("x/b", 1, 3), listed("x/a", 5, 1), listed("x/c", 1, 2)]
    assert [i.repo.name for i in sort(items, "downloads")] == ["a", "b", "c"]
    assert [i.repo.name for i in sort(items, "updated")] == ["b", "c", "a"]
    assert [i.repo.name for i in sort(items, "name")] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("branch", "version"), [("v1", 1), ("v12", 12), ("main", None), ("v", None), ("v1.2", None), ("v٣", None)]
)
def test_version_is_read_off_a_branch(branch: str, version: int | None) -> None:
    assert version_of(branch) == version


@pytest.mark.parametrize("source", ["", "x = (", "__all__ = f()", "__all__ = ['a-b', 1]", "\x00", "(" * 5000])
def test_public_names_of_what_has_none_are_none(source: str) -> None:
    assert public_names(source) == ()


def test_first_paragraph_is_the_first_that_is_text() -> None:
    assert first_paragraph("# t\n\n| a |\n\nOne `two`\n[three](x).\n\nFour") == "One two three."
    assert len(first_paragraph("word " * 500)) <= 300


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (10**400, "4294967296 GiB")],
)
def test_size_is_written_for_people(count: int, text: str) -> None:
    assert size(count) == text


def request(path: str = "/", **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request(
        {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": b"",
            "headers": raw,
            "server": ("h", 80),
        }
    )


def test_html_is_for_who_names_it_and_never_for_the_api() -> None:
    browser = "text/html,application/xhtml+xml,*/*;q=0.8"
    assert wants_html(request(accept=browser))
    assert not wants_html(request(accept="*/*"))
    assert not wants_html(request())
    assert not wants_html(request("/api/kernels/a/b", accept=browser))


def test_form_of_another_site_is_not_of_this_one() -> None:
    assert same_origin(request(sec_fetch_site="same-origin"))
    assert not same_origin(request(sec_fetch_site="cross-site", origin="http://h", host="h"))
    assert same_origin(request(origin="http://h:8000", host="h:8000"))
    assert not same_origin(request(origin="http://evil", host="h"))
    assert not same_origin(request(origin="null", host="h"))


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "\\/evil",
        "",
        "evil",
        "/a\r\nX: y",
        "/\t/evil",
        "/é",
    ],
)
def test_local_path_of_anything_else_is_the_front_page(target: str) -> None:
    assert local_path(target) == "/"


def test_local_path_keeps_a_path_of_this_server() -> None:
    assert local_path("/-/admin?page=2") == "/-/admin?page=2"
