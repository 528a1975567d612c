"""docs/: what the pages tell a user to type runs, and points to what exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from khub_process import ROOT, Hub, StartHub, khub_command, khub_environment
from signing import private_pem, sign_package, trust_key

sys.path.insert(0, str(Path(__file__).parent / "hub_loader"))
from packages import python_package

PAGE = (ROOT / "docs" / "lock.md").read_text()


def test_commands_of_the_lock_page_run_in_order_and_load_from_what_was_synced(
    start_hub: StartHub, tmp_path: Path
) -> None:
    from huggingface_hub import HfApi

    hub = start_hub(tmp_path / "data")
    package = python_package(tmp_path / "source", name="paged-attention", kernel_id="_paged_attention_cpu_1")
    sign_package(package.folder, "org/paged-attention")
    trust_key(hub.url, "org")
    api = HfApi(endpoint=hub.url, token=hub.token("org"))
    api.create_repo("org/paged-attention", repo_type="kernel", exist_ok=True)
    api.create_branch("org/paged-attention", branch="v1", repo_type="kernel", exist_ok=True)
    api.upload_folder(
        repo_id="org/paged-attention", repo_type="kernel", folder_path=package.folder, revision="v1"
    )
    project, binaries = tmp_path / "project", tmp_path / "bin"
    for folder in (project, binaries):
        folder.mkdir()
    table = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    script = re.search(r"<!-- executed by tests/test_docs.py -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
    assert table is not None
    assert script is not None
    (project / "pyproject.toml").write_text(table[1])
    for name, arguments in (("python", ""), ("khub", "-m hub_loader ")):
        command = binaries / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments}"$@"\n')
        command.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "KERNELS_"))}
    environment |= {"PATH": f"{binaries}:{os.environ['PATH']}", "HF_HOME": str(tmp_path / "home")}
    environment |= {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url}
    done = subprocess.run(
        ["sh", "-ec", script[1]], cwd=project, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "['value']"
    assert re.search(r"^verified: org/paged-attention version 1 torch-cpu$", done.stdout, re.MULTILINE)


def test_commands_of_the_trust_page_run_in_order_and_show_the_signer(
    start_hub: StartHub, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "trust.md").read_text()
    script = re.search(r"<!-- executed by tests/test_docs.py -->\n```sh\n(.*?)```", page, re.DOTALL)
    yank = re.search(r"^    (khub yank .*)$", page, re.MULTILINE)
    assert script is not None
    assert yank is not None
    hub = start_hub(tmp_path / "data")
    folder = tmp_path / "dist" / "paged-attention"
    python_package(folder, name="paged-attention", kernel_id="_paged_attention_cpu_1")
    khub = tmp_path / "khub"
    khub.write_text(f'#!/bin/sh\nexec {sys.executable} -m hub_loader "$@"\n')
    khub.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "KERNELS_", "KHUB_"))}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HF_HOME": str(tmp_path / "home")}
    environment |= {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token("org")}
    environment |= {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    refused = "khub get org/paged-attention && exit 1 || test $? = 26"
    done = subprocess.run(
        ["sh", "-ec", f"{script[1]}\n{yank[1]}\n{refused}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r"^signed by the key [0-9a-f]{16} \(Example Org\) of .*trust\.json, on \d{4}-\d\d-\d\d$",
        done.stdout,
        re.MULTILINE,
    )
    assert "wrong for head sizes over 128" in done.stderr


@pytest.mark.slow
def test_code_of_the_resolver_page_times_the_kernel_against_torch(hub: Hub, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "resolver.md").read_text()
    (code,) = re.findall(r"<!-- executed by tests/test_docs.py -->\n```python\n(.*?)```", page, re.DOTALL)
    package = Path(os.environ.get("KHUB_KERNEL_BUILD", tmp_path)) / "rmsnorm-rotary"
    commands = [] if package.exists() else [["build", ROOT / "kernels_src" / "rmsnorm-rotary"]]
    for command in commands:
        command += ["--select", "torch-stable-abi*-cpu-x86_64-*", "--out", package]
    client = {k: v for k, v in khub_environment().items() if not k.startswith(("HF_", "KERNELS_"))}
    client |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": hub.token("org")}
    commands.append(["publish", package, "org/rmsnorm-rotary"])
    client["KHUB_SIGNING_KEY"] = private_pem()
    trust_key(hub.url, "org")
    for command in (*(khub_command(*command) for command in commands), [sys.executable, "-c", code]):
        done = subprocess.run(command, env=client, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(
        r"fastest on .*: (torch .* µs, torch-stable.* µs|torch-stable.* µs, torch .* µs)\n", done.stdout
    )


@pytest.mark.slow
def test_project_built_with_kernel_hub_carries_its_lock_file(tmp_path: Path) -> None:
    entry = re.search(r'^"kernels\.lock" = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert entry is not None
    info = tmp_path / "site" / "kernel_hub-0.dist-info"
    project = tmp_path / "project"
    for folder in (info, project / "user_package"):
        folder.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernel-hub\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[egg_info.writers]\nkernels.lock = {entry[1]}\n")
    (project / "user_package/__init__.py").write_text("")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "user-dist"\nversion = "1.0"\n[tool.kernels.dependencies]\n"org/name" = 1\n'
    )
    command = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-build-isolation", "--no-deps", "."]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(info.parent), str(ROOT)])}

    def build() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=120
        )

    refused = build()
    assert refused.returncode != 0
    assert "run `khub lock`" in refused.stdout + refused.stderr
    dependency = (
        '{"dependency": {"repo-id": "org/name", "version": 1}, "lock": {"commit": "' + "a" * 40 + '"}}'
    )
    (project / "kernels.lock").write_text(f"[{dependency}]")
    done = build()
    assert done.returncode == 0, done.stderr
    (wheel,) = project.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("user_dist-1.0.dist-info/kernels.lock").decode() == f"[{dependency}]"
