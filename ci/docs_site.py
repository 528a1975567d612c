"""MkDocs hooks: what the pages of docs/ link to outside of it is in the site, too.

A link such as `../engine/engine.py` works where the repository is browsed. The site has no repository behind it, so
each file that is linked to becomes a page that shows it, and a folder a page that lists its files.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)")
_LANGUAGES = {
    ".py": "python",
    ".json": "json",
    ".yml": "yaml",
    ".toml": "toml",
    ".md": "markdown",
    ".service": "ini",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file and folder that a page links to."""
    linked = {
        path for page in files.documentation_pages() for path in _outside(page.src_uri, page.content_string)
    }
    listed = {file for path in linked for file in _files(path)}
    for path in sorted(linked | listed):
        files.append(File.generated(config, _page(path), content=_shown(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that lead out of docs/ to those pages."""
    here = posixpath.dirname(page.file.src_uri)

    def inside(link: re.Match[str]) -> str:
        path = _resolved(page.file.src_uri, link[1])
        return link[0] if path is None else f"]({posixpath.relpath(_page(path), here or '.')}"

    return _LINK.sub(inside, markdown)


def _outside(page: str, markdown: str) -> set[str]:
    return {path for link in _LINK.findall(markdown) if (path := _resolved(page, link)) is not None}


def _resolved(page: str, link: str) -> str | None:
    """The path in the repository that a page's link names; None if MkDocs has to judge it: in docs/, or not there."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith(("docs/", "..")) or not (ROOT / path).exists() else path


def _files(path: str) -> list[str]:
    folder = ROOT / path
    return sorted(f"{path}/{file.name}" for file in folder.glob("*.py")) if folder.is_dir() else []


def _page(path: str) -> str:
    return f"source/{path.lstrip('.')}/index.md"


def _shown(path: str) -> str:
    head = f"---\ntitle: {path}\nsearch:\n  exclude: true\n---\n# {path}\n\n"
    if (ROOT / path).is_dir():
        return head + "".join(f"- [{Path(file).name}]({Path(file).name}/index.md)\n" for file in _files(path))
    language = _LANGUAGES.get(Path(path).suffix, "text")
    return f"{head}``````{language}\n{(ROOT / path).read_text(encoding='utf-8')}\n``````\n"
