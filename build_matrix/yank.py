"""`khub yank ORG/NAME vN --reason …`: take a published version back, by signing that."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from hub_loader.errors import SignatureError, UsageError
from hub_loader.hub import check_repo_id
from hub_loader.manifest import INDEX_NAME
from hub_loader.trust.dsse import parse_envelope
from hub_loader.trust.judge import prove
from hub_loader.trust.sign import KEY_VARIABLE, sign_index, signing_key
from hub_loader.trust.statement import built_statement

from .envelope import ENVELOPE_NAME, download, next_time, read_envelope
from .publish import hub_errors, publisher_for

if TYPE_CHECKING:
    from hub_loader.trust.keys import PrivateKey

_VERSION = re.compile(r"v(0|[1-9]\d*)", re.ASCII)


def add_yank(parser: argparse.ArgumentParser) -> None:
    """Arguments of `khub yank`."""
    parser.epilog = (
        "get_kernel refuses the version from then on and gives the reason; its files stay. Locked kernels of it still\n"
        "load, with a warning. --undo signs it as good again.\n\n"
        "example:\n  khub yank org/paged-attention v1 --reason 'wrong for head sizes over 128' --sign-key release.key"
    )
    parser.add_argument("repo_id", metavar="ORG/NAME", help="the kernel repository")
    parser.add_argument("version", metavar="vN", help="the version, a branch")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--reason", help="a sentence for those who used it")
    what.add_argument("--undo", action="store_true", help="it can be used again")
    parser.add_argument(
        "--sign-key",
        type=Path,
        metavar="FILE",
        help=f"the publisher's private key; {KEY_VARIABLE} when left out",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.set_defaults(run=_run)


def yank(repo_id: str, branch: str, key: PrivateKey, reason: str | None) -> str:
    """Sign the version at `branch` again, with `reason` as one that is taken back, with None as a good one.

    Returns the commit.

    Raises:
        SignatureError: it is not signed, so nothing of it can be taken back: publish it again with a key.
        UsageError: the reason is no line of text, or the branch no version.
        AuthenticationError, DownloadError: as `publish`.
    """
    check_repo_id(repo_id)
    if not _VERSION.fullmatch(branch):
        raise UsageError(f"{branch!r} is not a version: write it like v1")
    lister = publisher_for(repo_id, key)
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(library_name="kernel-hub")
    with hub_errors(repo_id, "yanking"):
        branches = api.list_repo_refs(repo_id, repo_type="kernel").branches
        head = next((ref.target_commit for ref in branches if ref.name == branch), None)
        if head is None:
            raise UsageError(f"{repo_id} has no {branch}: see `khub list {repo_id}`")
        tree = api.list_repo_tree(repo_id, repo_type="kernel", revision=head)
        old = read_envelope(
            api, repo_id, head, {file.path: file for file in tree if isinstance(file, RepoFile)}
        )
        if old is None:
            raise SignatureError(
                f"{repo_id} {branch} is not signed: publish it with --sign-key, or delete the branch"
            )
        before = prove(old, origin=f"{ENVELOPE_NAME} of {repo_id} {branch}")
        index = download(api, repo_id, head, INDEX_NAME)
        built = built_statement(parse_envelope(old, origin=ENVELOPE_NAME))
        data = sign_index(index, repo_id, key, signed=next_time(before), built=built, yanked=reason)
        title = f"Use {branch} again" if reason is None else f"Take {branch} back: {reason}"
        done = api.create_commit(
            repo_id,
            repo_type="kernel",
            revision=branch,
            parent_commit=head,
            operations=[CommitOperationAdd(ENVELOPE_NAME, data)],
            commit_message=title,
        )
    if lister is not None:
        lister.yank(repo_id, int(branch[1:]), str(done.oid), reason)
    return str(done.oid)


def _run(args: argparse.Namespace) -> int:
    key = signing_key(args.sign_key)
    if key is None:
        raise UsageError(f"there is no key to sign with: pass --sign-key FILE, or set {KEY_VARIABLE}")
    commit = yank(args.repo_id, args.version, key, args.reason)
    if args.json:
        print(
            json.dumps(
                {"repo_id": args.repo_id, "version": args.version, "commit": commit, "yanked": args.reason}
            )
        )
    else:
        what = "can be used again" if args.undo else f"is taken back: {args.reason}"
        print(f"{args.repo_id} {args.version} {what} (commit {commit[:12]})")
    return 0
