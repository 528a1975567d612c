"""What a package was made of, as an in-toto statement with SLSA provenance: one per version, unsigned.

Formats: https://in-toto.io/Statement/v1 and https://slsa.dev/provenance/v1. It says nothing of when and where,
so equal packages have equal statements.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hub_loader.manifest import INDEX_NAME, Index, sha256_hex
from hub_loader.trust.sign import STATEMENT_NAME as STATEMENT_NAME

_BUILD_TYPE = "urn:kernel-hub:build:v1"
_BUILDER = "urn:kernel-hub:khub"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def statement(index: Index, provenance: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The statement of a version. `provenance` is, by variant, what its metadata.json holds under that key.

    Its subjects are index.json and every native library; what they depend on is the kernel's sources, its commit
    and the parts of the toolchain, each with its digest.
    """
    libraries = {
        f"build/{variant}/{path}": entry.sha256
        for variant, indexed in index.variants.items()
        for path, entry in indexed.files.items()
        if path.endswith(".so")
    }
    subjects = {INDEX_NAME: sha256_hex(index.to_json()), **libraries}
    builders = {
        origin["kernel-builder"]["version"] for origin in provenance.values() if "kernel-builder" in origin
    }
    data = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": name, "digest": {"sha256": digest}} for name, digest in sorted(subjects.items())
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": {
                    "kernel": index.name,
                    "version": index.version,
                    "variants": {name: origin.get("kernel") for name, origin in sorted(provenance.items())},
                },
                "internalParameters": {
                    "commands": {
                        name: origin.get("commands", []) for name, origin in sorted(provenance.items())
                    }
                },
                "resolvedDependencies": _dependencies(index.name, provenance),
            },
            "runDetails": {
                "builder": {"id": _BUILDER, "version": {"kernel-hub": ", ".join(sorted(builders))}}
            },
        },
    }
    return (json.dumps(data, sort_keys=True, indent=2) + "\n").encode()


def _dependencies(name: str, provenance: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Commits and toolchain parts of all variants, each once."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for origin in provenance.values():
        if "kernel" in origin:
            commit = origin["kernel"]["commit"]
            found[name, commit] = {"name": name, "digest": {"gitCommit": commit}}
        if "sources" in origin:
            sources = f"{name} sources"
            found[sources, origin["sources"]["sha256"]] = {"name": sources, "digest": dict(origin["sources"])}
        for part, content in origin.get("toolchain", {}).items():
            said = (
                {"digest": {"sha256": content}}
                if _SHA256.fullmatch(content)
                else {"annotations": {"version": content}}
            )
            found[part, content] = {"name": part, **said}
    return [found[key] for key in sorted(found)]
