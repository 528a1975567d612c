"""docs/publish-a-kernel.md: from `khub init` to a signed package on a hub, by hand and by the steps of its workflow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from clean_install import clean_environment, run_script, scripts
from khub_process import ROOT, StartHub
from oidc_issuer import JOB_SECRET, REPOSITORY, running_issuer
from registry_command import registry

PAGE = "publish-a-kernel.md"


def steps() -> str:
    """The commands of the page's workflow, for the one variant that this machine builds in a moment."""
    (workflow,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / PAGE).read_text(), re.DOTALL)
    commands = re.findall(r"^ *- run: (.*)$", workflow, re.MULTILINE)
    assert len(commands) == 4
    everything = commands.index("khub build .")
    commands[everything] += " --select 'torch-stable-*-cpu-x86_64*'"
    return "\n".join(commands)


@pytest.mark.slow
def test_road_of_an_author_from_init_to_a_signed_kernel_runs_as_written_and_in_ci(
    start_hub: StartHub, wheel: Path, tmp_path: Path
) -> None:
    hub = start_hub(tmp_path / "data")
    variables = clean_environment(tmp_path, wheel, torch=True)
    write, publish = scripts(PAGE, "tests/registry/test_road_publish.py")
    written = run_script(write, tmp_path, variables)
    assert "5 passed" in written and "keeps its promises" in written

    project = tmp_path / "fused-thing"
    publish = publish.replace("https://hub.example.com", hub.url)
    published = run_script(publish.replace("khub_from_the_operator", hub.token("org")), project, variables)
    assert "tensor([4., 4.])" in published
    assert "Example Org" in published

    with running_issuer() as issuer:
        registry(hub.data, "settings", "--public-url", hub.url)
        registry(
            hub.data, "publisher", "add", "--org", "org", "--issuer", issuer.url, "--repository", REPOSITORY
        )
        job = variables | {
            "HF_ENDPOINT": hub.url,
            "KHUB_SIGNING_KEY": (project / "release.key").read_text(),
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{issuer.url}/job?api-version=2",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": JOB_SECRET,
        }
        assert "org/fused-thing" in run_script(steps(), project, job)
