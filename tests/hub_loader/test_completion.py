"""`khub completion`: a real bash completes by the script; the other shells get one that names every command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hub_loader.cli import COMMANDS, main
from hub_loader.errors import MissingExtraError

pytest.importorskip("shtab", reason="pip install 'kernel-hub[completion]'")


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("khub ", set(COMMANDS)),
        ("khub ex", {"explain"}),
        ("khub cache ", {"ls", "list", "gc", "verify", "clear"}),
        ("khub explain --tor", {"--torch"}),
        ("khub get --backend c", {"cuda", "cpu", "cann"}),
        ("khub completion ", {"bash", "zsh", "fish"}),
        ("khub verify lo", {"locks"}),
    ],
)
def test_completion_in_bash_offers_what_can_come_next(
    line: str, expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "khub.bash").write_text(script("bash", capsys))
    (tmp_path / "locks").mkdir()
    code = """
        source khub.bash
        words=($1); [[ $1 == *" " ]] && words+=("")
        COMP_WORDS=("${words[@]}"); COMP_CWORD=$((${#words[@]} - 1)); COMP_LINE=$1; COMP_POINT=${#1}
        function=$(complete -p khub | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function khub "${words[-1]}" "${words[-2]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", code, "bash", line], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    offered = set(done.stdout.split())
    if line.endswith(" "):
        assert expected <= offered
        assert all(word.startswith("-") for word in offered - expected)
    else:
        assert offered == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_every_command_and_is_read_by_the_shell(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = script(shell, capsys)
    assert [name for name in COMMANDS if name not in text] == []
    if shutil.which(shell) is not None:
        (tmp_path / "script").write_text(text)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


def test_completion_without_shtab_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == MissingExtraError.exit_code
    assert "pip install 'kernel-hub[completion]'" in capsys.readouterr().err
