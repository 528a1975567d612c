"""One scenario, two clients: this loader, which must do right, and stock `kernels`, which must show its defect."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from khub_process import ROOT, Hub
from relay import Relay

_MODULES = {"ours": "hub_loader", "peer": "kernels"}
# What a scenario prints: its own lines, or the class and the first line of what it raised.
_SCENARIO = """
import sys
from pathlib import Path
import {module} as client
try:
{body}
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}".splitlines()[0])
"""


@dataclass(frozen=True)
class Client:
    """A client with a cache of its own; `kind` is "ours" or "peer", `python` has it installed."""

    kind: str
    python: Path
    folder: Path
    url: str

    @property
    def cache(self) -> Path:
        """KERNELS_CACHE."""
        return self.folder / "cache"

    def scenario(self, code: str, *arguments: str | Path, **environment: str) -> str:
        """What `code` prints in a new process, where `client` is the module and sys.argv[1:] the arguments.

        `environment` are variables; `site` is a folder to import from.
        """
        body = "\n".join(f"    {line}" for line in code.strip().splitlines())
        program = _SCENARIO.format(module=_MODULES[self.kind], body=body)
        done = self._run("-c", program, *map(str, arguments), **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def command(self, *arguments: str) -> None:
        """Run the client's own command, `khub` or `kernels`, in `folder`."""
        main = "from kernels.cli import main" if self.kind == "peer" else "from hub_loader.cli import main"
        done = self._run("-c", f"import sys; {main}; sys.exit(main())", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def expect(self, said: str, *, ours: str, peer: str) -> None:
        """Assert that what this client said is what the pattern for it describes: right, or the known defect."""
        wanted = ours if self.kind == "ours" else peer
        assert re.fullmatch(wanted, said), f"{self.kind} said {said!r}, not {wanted!r}"

    def _run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "KERNELS_", "PYTHON"))}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.folder / "home")}
        # Bytecode that a scenario leaves hides a change of the same size in the same second.
        own |= {"KERNELS_CACHE": str(self.cache), "PYTHONDONTWRITEBYTECODE": "1"}
        paths = [str(ROOT)] * (self.kind == "ours") + [environment.pop("site", "")]
        own["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return subprocess.run(
            [self.python, *arguments],
            env=kept | own | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )


@dataclass(frozen=True)
class Shelf:
    """Repositories on a real registry, seen through a relay. Each has the files at its root that the Hub adds."""

    hub: Hub
    relay: Relay

    def put(self, repo_id: str, folder: Path) -> str:
        """Upload a package with the stock uploader to branch v1; returns the commit."""
        from huggingface_hub import HfApi

        (folder / ".gitattributes").write_text("*.so filter=lfs diff=lfs merge=lfs -text\n")
        (folder / "README.md").write_text("# A kernel\n")
        api = HfApi(endpoint=self.hub.url, token=self.hub.token(repo_id.partition("/")[0]))
        api.create_repo(repo_id, repo_type="kernel", exist_ok=True)
        api.create_branch(repo_id, branch="v1", repo_type="kernel", exist_ok=True)
        done = api.upload_folder(repo_id=repo_id, repo_type="kernel", folder_path=folder, revision="v1")
        return str(done.oid)
