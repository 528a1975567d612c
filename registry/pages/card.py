"""A repository's card: Markdown to HTML that can be shown beside our own. Pure.

Raw HTML in the Markdown is text, and what comes out is cleaned once more against a list of what may stay:
neither layer trusts the other. Pictures become links, so no page makes a reader's browser ask another host.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from functools import lru_cache
from html import escape
from typing import Any
from urllib.parse import quote, urlsplit

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token

_TAGS = {
    *("h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "ul", "ol", "li", "blockquote", "pre", "code", "em"),
    *("strong", "s", "a", "table", "thead", "tbody", "tr", "th", "td", "div"),
}
_ATTRIBUTES = {
    "a": {"href", "title"},
    "ol": {"start"},
    "div": {"class", "tabindex", "role", "aria-label"},
    "pre": {"tabindex"},
    "th": {"scope", "class"},
    "td": {"class"},
}
_SCHEMES = {"http", "https", "mailto"}
# Some texts take time in the square of their length: longer ones are shown as they are.
MAX_RENDERED = 64 << 10
_WRAP = '<div class="scroll" tabindex="0" role="group" aria-label="Table">'


@lru_cache(maxsize=128)
def render_card(markdown: str, base: str, title: str) -> str:
    """HTML of a card. Relative links go below `base`, the address of the files' folder, with a final slash.

    The highest headings become h2, since the page has a title of its own; a first one that says `title` is left out.
    """
    if len(markdown) > MAX_RENDERED:
        return f'<pre tabindex="0">{escape(markdown)}</pre>'
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    tokens = _without_title(parser.parse(markdown), title)
    down = 2 - min((int(token.tag[1]) for token in tokens if token.type == "heading_open"), default=2)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + down, 6)}"
        _rewrite(token, base)
    html = str(parser.renderer.render(tokens, parser.options, {}))
    html = html.replace("<table>", f"{_WRAP}<table>").replace("</table>", "</table></div>")
    html = re.sub(r'<(t[hd]) style="text-align:(left|right|center)">', r'<\1 class="\2">', html)
    html = re.sub(r"<th(?=[ >])", '<th scope="col"', html)
    html = html.replace("<pre>", '<pre tabindex="0">')
    return nh3.clean(
        html,
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        url_schemes=_SCHEMES,
        link_rel="nofollow noopener noreferrer ugc",
    )


def _without_title(tokens: Sequence[Token], title: str) -> list[Token]:
    first = [token.type for token in tokens[:3]]
    if first == ["heading_open", "inline", "heading_close"] and tokens[1].content.strip() == title:
        return list(tokens[3:])
    return list(tokens)


def _rewrite(token: Token, base: str) -> None:
    """Point links to where they lead from here, and make links of pictures."""
    children: list[Token] = []
    for child in token.children or ():
        if child.type == "link_open":
            _set(child.attrs, "href", _address(str(child.attrs.get("href", "")), base))
            children.append(child)
        elif child.type == "image":
            href = _address(str(child.attrs.get("src", "")), base)
            text = Token("text", "", 0, content=child.content or href)
            children += [Token("link_open", "a", 1, attrs={"href": href}), text, Token("link_close", "a", -1)]
        else:
            children.append(child)
    token.children = children if token.children is not None else None


def _set(attributes: MutableMapping[str, Any], name: str, value: str) -> None:
    attributes[name] = value


def _address(href: str, base: str) -> str:
    """`href` as it is if it names a host or a place on the page, below `base` if it is relative."""
    try:
        parts = urlsplit(href)
    except ValueError:
        return "#"
    if parts.scheme or parts.netloc or href.startswith("#"):
        return href
    inside = [part for part in parts.path.split("/") if part not in ("", ".", "..")]
    return base + quote("/".join(inside), safe="/%")
