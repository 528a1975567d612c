"""Weights are mapped, not read, until they are used; loading shows on a terminal how far it is."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import torch
from engine_models import SHIPPED
from safetensors.torch import save_file

from engine.weights import Weights


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_checkpoint_is_mapped_and_takes_memory_only_where_it_is_read(tmp_path: Path) -> None:
    rows, columns = 16, 1 << 20  # 64 MiB
    save_file({"weight": torch.zeros(rows, columns)}, tmp_path / "model.safetensors")
    before = resident_bytes()
    tensor = Weights(tmp_path).get("weight", (rows, columns))
    assert resident_bytes() - before < 8 << 20
    tensor[:8].sum()
    assert 24 << 20 < resident_bytes() - before < 48 << 20


def test_loading_shows_its_progress_on_a_terminal_and_not_elsewhere() -> None:
    code = f"from engine import LLM; LLM({str(SHIPPED)!r})"
    terminal, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    subprocess.run(
        [sys.executable, "-c", code], stderr=child, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    os.close(child)
    shown = os.read(terminal, 65536).decode()
    os.close(terminal)
    assert "weights: " in shown
    assert "layers" in shown
    quiet = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "weights" not in quiet.stderr
