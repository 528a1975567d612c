"""docs/accounts.md: its commands run in order, its table is the decision's, its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from khub_process import ROOT, Hub, StartHub

from registry.accounts.identity import Identity, Kind, Role, Scope
from registry.accounts.may import Action, Allowed, RepoFacts, may

PAGE = (ROOT / "docs" / "accounts.md").read_text()


def environment(folder: Path, hub: Hub) -> dict[str, str]:
    binaries = folder / "bin"
    binaries.mkdir()
    hf = Path(sys.executable).with_name("hf")
    for name, command in (("khub", f"{sys.executable} -m hub_loader"), ("hf", str(hf))):
        (binaries / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (binaries / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "KHUB_"))}
    return kept | {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "home"),
        "NO_COLOR": "1",
    }


@pytest.mark.heavy
def test_commands_of_the_accounts_page_run_in_order(start_hub: StartHub, tmp_path: Path) -> None:
    hub = start_hub(tmp_path / "hub")
    script = "".join(
        re.findall(
            r"<!-- executed by tests/registry/test_accounts_page.py -->\n```sh\n(.*?)```", PAGE, re.DOTALL
        )
    )
    named_in_text = PAGE.count("`khub registry")
    assert script.count("khub registry") == PAGE.count("khub registry") - named_in_text >= 12
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=tmp_path,
        env=environment(tmp_path, hub),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "ada",
        "Token 2 is revoked",
        "is trusted",
        "org.quota",
        "acme/kernels workflow=publish.yml",
    ):
        assert words in done.stdout
    hub.stop()


COLUMNS = {
    "reader": Identity(Kind.USER, "u", roles={"acme": Role.READER}),
    "writer": Identity(Kind.USER, "u", roles={"acme": Role.WRITER}),
    "owner": Identity(Kind.USER, "u", roles={"acme": Role.OWNER}),
    "organization's token": Identity(Kind.ORG, "acme", roles={"acme": Role.OWNER}),
    "CI run's token": Identity(Kind.PUBLISHER, "acme", roles={"acme": Role.WRITER}),
    "operator": Identity(Kind.USER, "u", operator=True),
}
PRIVATE = RepoFacts("acme", "relu", private=True)
ROWS: dict[str, list[tuple[Action, RepoFacts | None]]] = {
    "read private": [(Action.READ, PRIVATE), (Action.READ, RepoFacts("acme", "relu", gated=True))],
    "upload": [(Action.WRITE, PRIVATE), (Action.CREATE, PRIVATE)],
    "delete": [(Action.MANAGE, PRIVATE)],
    "members": [(Action.MANAGE_ORG, RepoFacts("acme"))],
    "the whole": [(Action.MANAGE_HUB, None)],
}


def test_table_of_the_accounts_page_is_what_the_decision_says() -> None:
    lines = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("|")]
    names = [cell.strip() for cell in lines[0]][1:]
    assert names == list(COLUMNS)
    rows = [[cell.strip() for cell in line] for line in lines[2:]]
    assert len(rows) == len(ROWS)
    for (start, asked), (label, *cells) in zip(ROWS.items(), rows, strict=True):
        assert label.startswith(start)
        for name, cell in zip(names, cells, strict=True):
            for action, facts in asked:
                allowed = [
                    scope
                    for scope in Scope
                    if isinstance(may(replace(COLUMNS[name], scope=scope), action, facts), Allowed)
                ]
                expected = [scope for scope in Scope if cell and scope >= Scope[cell.upper()]]
                assert allowed == expected, (label, name, action)


def test_links_of_the_accounts_page_point_to_files_that_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in link]
    assert links and [link for link in links if not (ROOT / "docs" / link).exists()] == []
