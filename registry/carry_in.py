"""Read an archive of `export.py` into a hub: all of it is checked before any of it can be seen.

First the whole archive: each member is where the manifest has it, with its size and SHA-256; each repository is
what git would say of it; each file's content has the file's id. Content goes into the blob store meanwhile, which
shows nobody anything. Then every reference is compared with what is here, and at last each repository is written
in one transaction that compares again, and after them publishers' lists are taken, if this hub is a TUF repository
that lets them publish. Doing it twice changes nothing; interrupted, it can be begun again.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from hub_loader.errors import IntegrityError, RegistryError, UsageError

from .blobs import BlobStore
from .carried import Carried, from_json
from .carry_archive import Archive
from .carry_in_copy import check_copy, write_copy
from .db import Database
from .export import Member
from .locks import insert_missing, insert_new, lock_ref
from .mirrored import refuse_change
from .models import Commit, Org, Ref, Repo, RepoMove, TreeEntry
from .names import RepoName, check_org
from .naming import ensure_org, require_free
from .store import find_repo, tree_row
from .tree import File, blob_hash, entries
from .tuf.carry import take_list
from .tuf.repository import TufRepository


@dataclass(frozen=True)
class Imported:
    """What an import changed: repositories it created, references it set or moved, and all it read.

    `manifest` is the SHA-256 of the archive's first member. `lists` says for each organization what became of its
    TUF list.
    """

    created: tuple[str, ...]
    moved: tuple[str, ...]
    repos: int
    blobs: int
    bytes: int
    manifest: str
    lists: Mapping[str, str] = field(default_factory=dict)


def carry_in(
    database: Database,
    blobs: BlobStore,
    file: Path,
    *,
    manifest: str | None = None,
    force: bool = False,
    tuf: TufRepository | None = None,
) -> Imported:
    """Import the archive `file`; with `manifest` only the one whose manifest has that SHA-256, lists into `tuf`.

    Raises UsageError if it cannot be read, IntegrityError if it is not what its manifest says, RegistryError if a
    branch here has commits that the archive lacks, or a tag is elsewhere; with `force` those are moved.
    """
    try:
        with file.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            source = Archive(archive, manifest)
            repos = [from_json(b"".join(source.take(member))) for member in source.of("repos/")]
            _check_names(repos, source.of("repos/"))
            lists = {_org(member): b"".join(source.take(member)) for member in source.of("tuf/")}
            size = _take_blobs(source, blobs, repos)
            source.end()
    except (tarfile.TarError, EOFError, ValueError) as error:  # the last for odd headers
        raise IntegrityError(f"{file} is no whole archive of `khub registry export`: {error}.") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error}.") from None
    blobs.sync()
    with database.read() as session:
        for carried in repos:
            _check_org(session, carried.repo.org)
            _check_moves(session, carried, force)
    created, moved = [], []
    for carried in repos:
        with database.write() as session:
            is_new, refs = _write(session, carried, force)
        created += [str(carried.repo)] if is_new else []
        moved += [f"{carried.repo} {ref}" for ref in refs]
    count, said = len(source.of("blobs/")), {org: take_list(tuf, org, data) for org, data in lists.items()}
    return Imported(tuple(created), tuple(moved), len(repos), count, size, source.digest, said)


def _org(member: Member) -> str:
    try:
        return check_org(member.name.removeprefix("tuf/").removesuffix(".json"))
    except RegistryError as error:
        raise IntegrityError(f"{member.name} in the archive is no organization's list: {error}.") from None


def _check_org(session: Session, name: str) -> None:
    """Raises RequestError 409 if the organization is new and its name is taken in another case or by a user."""
    if session.scalar(select(Org.id).where(Org.name == name)) is None:
        require_free(session, name)


def _check_names(repos: list[Carried], members: list[Member]) -> None:
    for carried, member in zip(repos, members, strict=True):
        if member.name != f"repos/{carried.repo}.json":
            raise IntegrityError(f"{member.name} in the archive describes {carried.repo}: export again.")


def _take_blobs(source: Archive, blobs: BlobStore, repos: list[Carried]) -> int:
    """Keep the content of the repositories' files, all of it and nothing else; returns its bytes."""
    files = {(file.sha256, file.size): set[str]() for each in repos for file in each.files()}
    for each in repos:
        for file in each.files():
            files[file.sha256, file.size] |= set() if file.lfs else {file.oid}
    members = source.of("blobs/")
    if {(member.sha256, member.size) for member in members} != set(files):
        raise IntegrityError("The archive's content is not that of its repositories' files: export again.")
    for member in members:
        chunks = _as_git(source.take(member), member, files[member.sha256, member.size])
        if blobs.keep(member.sha256) == member.size:
            for _ in chunks:
                pass
        else:
            blobs.put(chunks)
    return sum(member.size for member in members)


def _as_git(chunks: Iterator[bytes], member: Member, oids: set[str]) -> Iterator[bytes]:
    """The same pieces; raises IntegrityError if git has another id for them than the files have."""
    digest = blob_hash(member.size)
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if not oids <= {digest.hexdigest()}:
        raise IntegrityError(
            f"{member.name} in the archive is not the file that a commit names: export again."
        )


def _refs(session: Session, repo: RepoName) -> dict[str, str]:
    found = find_repo(session, repo)
    if found is None:
        return {}
    rows = session.execute(select(Ref.name, Ref.commit_oid).where(Ref.repo_id == found.repo_id))
    return dict(rows.all())


def _check_moves(session: Session, carried: Carried, force: bool) -> None:
    """Raises RegistryError if a branch would lose commits or a tag would move, or for a mirrored repository."""
    if carried.copied is not None:
        check_copy(session, carried, carried.copied, force)
        return
    refuse_change(session, carried.repo)
    here = _refs(session, carried.repo)
    for name, new in carried.refs.items():
        old = here.get(name, new)
        if force or old == new:
            continue
        if name.startswith("tags/") or not carried.follows(new, old):
            raise RegistryError(
                f"{carried.repo} has {name} at {old} here, and the archive's {new} was not made on top of it: "
                "nothing was imported. Take a newer archive, or --force to move it all the same."
            )


def _write(session: Session, carried: Carried, force: bool) -> tuple[bool, list[str]]:
    """Make the repository what the archive says; whether it is new, and the references set or moved."""
    for name in sorted(carried.refs):
        lock_ref(session, carried.repo, name)
    is_new = find_repo(session, carried.repo) is None and _create(session, carried)
    found = find_repo(session, carried.repo)
    assert found is not None
    if not is_new:
        _check_moves(session, carried, force)
    here = _refs(session, carried.repo)
    if carried.copied is not None:
        write_copy(session, found.repo_id, carried, carried.copied)
    for oid, files in sorted(carried.trees.items()):
        _write_tree(session, found.repo_id, oid, files)
    rows = [
        {
            "repo_id": found.repo_id,
            "oid": oid,
            "parent_oid": point.parent,
            "tree_oid": point.tree,
            "author": point.author,
            "message": point.message,
            "created_at": point.time,
        }
        for oid, point in sorted(carried.commits.items())
    ]
    insert_missing(session, Commit, rows)
    moved = [name for name, oid in sorted(carried.refs.items()) if here.get(name) != oid]
    session.execute(delete(Ref).where(Ref.repo_id == found.repo_id, Ref.name.in_(moved)))
    refs = [{"repo_id": found.repo_id, "name": name, "commit_oid": carried.refs[name]} for name in moved]
    insert_missing(session, Ref, refs)
    return is_new, moved


def _write_tree(session: Session, repo_id: int, oid: str, files: Mapping[str, File]) -> None:
    _, listed = entries(files)
    insert_missing(session, TreeEntry, [tree_row(repo_id, oid, entry) for entry in listed])


def _create(session: Session, carried: Carried) -> bool:
    repo = carried.repo
    session.execute(delete(RepoMove).where(RepoMove.org == repo.org, RepoMove.name == repo.name))
    row = {
        "org_id": ensure_org(session, repo.org),
        "name": repo.name,
        "created_at": carried.created_at,
        "private": carried.private,
        "gated": carried.gated,
    }
    return insert_new(session, Repo, row)
