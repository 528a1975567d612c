"""Pin a request to a commit, and know the variants of that commit, with as few questions as possible.

A branch or tag means the commit that it meant last for `Config.refresh` seconds; then the hub is asked. One
request answers for a version: the index at the branch, with the commit in a header. Without a version the
branches come first. A hub that cannot be reached is replaced by what it said last, with a warning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from .cache_folder import read
from .config import Config, load_config
from .errors import DownloadError, IntegrityError, InvalidKernelError, OfflineError, VersionNotFoundError
from .hub import COMMIT, Hub, IndexAnswer, check_repo_id
from .listing import STATUS_NAME, ListedVariant, Listing, parse_listing, parse_status, read_tree, status_entry
from .manifest import INDEX_NAME, IndexedVariant, parse_index
from .record import Record
from .request import Request, pick_ref, versions
from .store import LISTING_NAME, KnownRef, Store
from .trust.dsse import ENVELOPE_NAME
from .trust.tuf_client import namespace
from .trust.tuf_names import target_of

_MAX_MOVES = 3

logger = logging.getLogger("hub_loader")


class Version(Record):
    """A commit and its variants; `repo_id` is the repository that has it, after every redirect.

    `ref` is the branch or tag that it was found at, None for a commit asked for by its hash; `newest` says that the
    newest version was asked for, whichever that is.
    `index` holds the bytes of index.json, `envelope` those of what signs it; None where there is none.
    """

    repo_id: str
    commit: str
    variants: Mapping[str, IndexedVariant | ListedVariant]
    ref: str | None = None
    newest: bool = False
    index: bytes | None = None
    envelope: bytes | None = None


def open_version(config: Config, request: Request, *, fresh: bool = False, moves: int = 0) -> Version:
    """The version that a request means; `fresh` asks the hub even where the cache knows.

    Raises:
        VersionNotFoundError: the repository has no such version or revision.
        OfflineError: offline, and it is not in the cache.
        InvalidKernelError: it has no variants, or a manifest is malformed.
        RepositoryNotFoundError, AuthenticationError, DownloadError, CacheError
    """
    listed = listed_commit(config, request, fresh=fresh)
    known = _known(config, request, any_age=False) if not fresh or _is_commit(request) else None
    try:
        if listed is not None:
            name, commit = listed
            found = _named(version_at(config, request, request.repo_id, commit), request, name)
        elif known is not None:
            found = _named(version_at(config, request, known.repo_id, known.commit), request, known.name)
        else:
            require_online(config, request, "it")
            found = _ask_once(config, request, fresh)
    except (DownloadError, OfflineError) as error:
        found = _last_known(config, request, error)
    if isinstance(found, Version):
        return found
    destination, revision = found
    check_repo_id(destination)
    if moves == _MAX_MOVES:
        raise InvalidKernelError(
            f"{request.repo_id} has moved more than {_MAX_MOVES} times: ask its publisher"
        )
    logger.warning("%s has moved to %s: load it from there", request.repo_id, destination)
    return open_version(config, Request(destination, None, revision), fresh=fresh, moves=moves + 1)


def listed_commit(config: Config, request: Request, *, fresh: bool) -> tuple[str, str] | None:
    """The branch of a version and the commit that the hub's TUF metadata names, which is what it means there.

    A branch may be ahead of it: its publisher uploads first and lists then. None where the user gave no root for the
    hub, where the request is not for a version, and for what is not listed. Raises as `tuf_client.namespace`.
    """
    known = namespace(config, request.repo_id.partition("/")[0], fresh=fresh)
    if known is None:
        return None
    numbers = known.versions(request.repo_id)[-1:] if request.ref is None else versions([request.ref])
    if not numbers:
        return None
    found, name = known.targets.get(str(target_of(request.repo_id, numbers[0]))), f"v{numbers[0]}"
    if found is None or found.commit is None:
        return None
    if request.ref is None:
        _say_newest(request, name)
    return name, found.commit


def version_at(
    config: Config, request: Request, repo_id: str, commit: str, label: str | None = None
) -> Version | tuple[str, str]:
    """The variants of a commit, or where the repository has moved: from the cache, else from the hub.

    `label` is where the cache keeps it; None: under the hub's address.
    """
    cached = cached_version(config, repo_id, commit, label)
    if cached is not None:
        return cached
    require_online(config, request, f"its index at {commit[:12]}")
    with Store(config.cache).lock(
        f"{config.endpoint}/{repo_id}/{commit}"
    ):  # one process asks, the others wait
        cached = cached_version(config, repo_id, commit, label)
        return cached if cached is not None else _ask_at(config, request, repo_id, commit, label)


def _ask_at(
    config: Config, request: Request, repo_id: str, commit: str, label: str | None
) -> Version | tuple[str, str]:
    answer = Hub(config).index(repo_id, commit)
    if answer.commit not in (None, commit):
        raise IntegrityError(f"{repo_id}: the hub was asked for {commit} and answered {answer.commit}")
    if answer.repo_id != request.repo_id and _is_commit(request):
        store = Store(config.cache)
        store.remember_ref(config.endpoint, request.repo_id, commit, commit, answer.repo_id)
    return _remember(config, answer, commit, label)


def is_new_here(config: Config, request: Request) -> bool:
    """Whether the hub has to be asked, for the cache knows nothing of the repository, or nothing of the commit."""
    store = Store(config.cache)
    if config.offline or store.refs(config.endpoint, request.repo_id).refs:
        return False
    if request.revision is None or not _is_commit(request):
        return True
    index = store.index_path(config.endpoint, request.repo_id, request.revision)
    return not index.exists() and not index.with_name(LISTING_NAME).exists()


def cached_version(
    config: Config, repo_id: str, commit: str, label: str | None = None
) -> Version | tuple[str, str] | None:
    """What the cache knows of a commit; None for nothing. Sends no request."""
    store = Store(config.cache)
    path = store.index_path(label or config.endpoint, repo_id, commit)
    if (data := read(path)) is not None:
        variants = parse_index(data, origin=str(path)).variants
        return Version(repo_id, commit, variants, index=data, envelope=read(path.with_name(ENVELOPE_NAME)))
    path = path.with_name(LISTING_NAME)
    if (data := read(path)) is not None:
        listing = parse_listing(data, origin=str(path))
        return listing.moved_to or Version(repo_id, commit, listing.variants)
    return None


def remember_published(repo_id: str, branch: str, commit: str) -> None:
    """What this machine has just published is what it loads next. Raises CacheError, UsageError."""
    config = load_config()
    Store(config.cache).remember_ref(config.endpoint, repo_id, branch, commit, repo_id)


def require_online(config: Config, request: Request, what: str) -> None:
    """Raise OfflineError, saying that `what` is missing, when no request may be sent."""
    if config.offline:
        version = "" if request.version is None else f" --version {request.version}"
        raise OfflineError(
            f"{request}: {what} is not in the cache {config.cache} for {config.endpoint}, and HF_HUB_OFFLINE "
            f"is set: unset it, or run `khub get {request.repo_id}{version}` while online"
        )


def _ask_once(config: Config, request: Request, fresh: bool) -> Version | tuple[str, str]:
    """`_ask`, unless another process has asked while this one waited for its turn."""
    with Store(config.cache).lock(f"{config.endpoint}/{request.repo_id}"):
        known = None if fresh else _known(config, request, any_age=False)
        if known is not None:
            return _named(version_at(config, request, known.repo_id, known.commit), request, known.name)
        return _ask(config, request)


def _ask(config: Config, request: Request) -> Version | tuple[str, str]:
    hub, store = Hub(config), Store(config.cache)
    if request.ref is not None:
        try:
            answer = hub.index(request.repo_id, request.ref)
        except VersionNotFoundError:
            answer = None  # the refs tell which versions there are
        if answer is not None and answer.commit is not None:
            version = _remember(config, answer, answer.commit, None)
            # Last: who finds the ref here takes the commit's index or listing to be here, too.
            store.remember_ref(config.endpoint, request.repo_id, request.ref, answer.commit, answer.repo_id)
            return _named(version, request, request.ref)
    refs = hub.refs(request.repo_id)
    name = pick_ref(request, refs.commits)
    if request.ref is None:
        _say_newest(request, name)
    version = version_at(config, request, refs.repo_id, refs.commits[name])
    store.remember_refs(config.endpoint, request.repo_id, refs.commits, refs.repo_id)
    return _named(version, request, name)


def _remember(
    config: Config, answer: IndexAnswer, commit: str, label: str | None
) -> Version | tuple[str, str]:
    """Parse what the hub has at a commit and keep it; without an index the tree is asked for."""
    store, where, repo_id, index = Store(config.cache), label or config.endpoint, answer.repo_id, answer.data
    if index is not None:
        parsed = parse_index(index, origin=f"{INDEX_NAME} of {repo_id} at {commit[:12]}")
        if answer.envelope is not None:  # before the index, beside which it is looked for
            store.remember_index(where, repo_id, commit, answer.envelope, ENVELOPE_NAME)
        store.remember_index(where, repo_id, commit, index)
        return Version(repo_id, commit, parsed.variants, index=index, envelope=answer.envelope)
    hub, origin = Hub(config), f"the tree of {repo_id} at {commit[:12]}"
    entries = hub.tree(repo_id, commit)
    listing = Listing(read_tree(entries, origin=origin))
    if (status := status_entry(entries)) is not None:
        data = hub.file(repo_id, commit, STATUS_NAME, status)
        listing = Listing(listing.variants, parse_status(data, origin=f"{STATUS_NAME} of {repo_id}"))
    elif not listing.variants:
        raise InvalidKernelError(
            f"{repo_id} has no {INDEX_NAME} at this revision and no build/<variant>/metadata.json: "
            "ask the publisher to upload it with `khub publish`"
        )
    store.remember_index(where, repo_id, commit, listing.to_json(), LISTING_NAME)
    return listing.moved_to or Version(repo_id, commit, listing.variants)


def _known(config: Config, request: Request, *, any_age: bool) -> KnownRef | None:
    """What the cache says a request means, as long as that holds."""
    remembered = Store(config.cache).refs(config.endpoint, request.repo_id)
    if request.revision is not None and _is_commit(request):
        return remembered.refs.get(request.revision, KnownRef(request.revision, 0.0, request.repo_id))

    def holds(seen: float) -> bool:
        return any_age or 0 <= time.time() - seen < config.refresh  # a clock set back asks again

    if request.ref is None and not holds(remembered.listed):
        return None
    try:
        name = pick_ref(request, remembered.refs.keys())
    except VersionNotFoundError:
        return None
    known = remembered.refs[name]
    if request.ref is not None and not holds(known.seen):
        return None
    if request.ref is None:
        _say_newest(request, name)
    return replace(known, name=name)


def _last_known(
    config: Config, request: Request, error: DownloadError | OfflineError
) -> Version | tuple[str, str]:
    known = _known(config, request, any_age=True)
    found = None if known is None else cached_version(config, known.repo_id, known.commit)
    if found is None:
        raise error from None  # the hub may have it by now, so "not found" would be a guess
    if isinstance(error, DownloadError):
        logger.warning("%s; using what it said last", error)
    return found if known is None else _named(found, request, known.name)


def _named(found: Version | tuple[str, str], request: Request, name: str) -> Version | tuple[str, str]:
    """With the name of the branch or tag at which a request was found, if that is not its commit."""
    if not isinstance(found, Version) or _is_commit(request):
        return found
    return replace(found, ref=name, newest=request.ref is None)


def _is_commit(request: Request) -> bool:
    return request.revision is not None and COMMIT.fullmatch(request.revision) is not None


def _say_newest(request: Request, name: str) -> None:
    is_version = name.startswith("v")
    logger.info(
        "%s: %s is %s and stays so in this process; pass %s to choose it always",
        request.repo_id,
        name,
        "the newest version" if is_version else "taken, for there is no version yet,",
        f"version={name[1:]}" if is_version else f"revision={name!r}",
    )
