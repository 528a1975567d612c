"""docs/layers.md: its code runs, against a hub that has the kernel it names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from khub_process import Hub, khub_command, khub_environment
from signing import sign_package, trust_key

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "layers.md").read_text()


def code() -> str:
    marker = "<!-- executed by tests/test_layers_page.py -->"
    blocks = re.findall(rf"{marker}\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == PAGE.count("```python") == 2
    return "\n".join(blocks)


def test_links_of_layers_page_point_to_files_that_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGE) if "://" not in link]
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_layers_page_lists_the_modes_in_the_order_they_serve() -> None:
    from hub_loader.layers.modes import SERVING

    rows = {
        str(mode).replace("|", r"\|").removeprefix("Mode."): ", ".join(
            f"`{str(serving).removeprefix('Mode.')}`".replace("|", r"\|") for serving in modes
        )
        for mode, modes in SERVING.items()
    }
    for mode, modes in rows.items():
        assert f"| `{mode}` | {modes} |" in PAGE


@pytest.mark.slow
def test_code_of_layers_page_runs_against_a_hub(hub: Hub, tmp_path: Path) -> None:
    if given := os.environ.get("KHUB_KERNEL_BUILD"):
        package = Path(given) / "rmsnorm-rotary"
    else:
        package = tmp_path / "rmsnorm-rotary"
        select = ["--select", "torch-stable-abi*-cpu-x86_64-*", "--out", package]
        run(khub_command("build", ROOT / "kernels_src" / "rmsnorm-rotary", *select), khub_environment())
    client = {k: v for k, v in khub_environment().items() if not k.startswith(("HF_", "KERNELS_"))}
    client |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": hub.token("org")}
    sign_package(package, "org/rmsnorm-rotary")
    trust_key(hub.url, "org")
    run(khub_command("publish", package, "org/rmsnorm-rotary"), client)
    printed = run([sys.executable, "-c", code()], client)
    assert "model.layers.0.self_attn.apply_rotary_pos_emb: `org/rmsnorm-rotary` (version 1)" in printed
    assert printed.count("layer `RMSNorm`") == 5


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
