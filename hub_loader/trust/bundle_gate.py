"""The gate for variants with a sigstore bundle, where the user trusts identities: one variant at a time."""

from __future__ import annotations

from ..cache_folder import read
from ..config import Config
from ..errors import PolicyError
from ..fetch import read_metadata
from ..hub import Hub
from ..listing import SIGNATURE_NAME, ListedVariant
from ..manifest import sha256_hex
from ..pin import Version, require_online
from ..policy import Policy
from ..request import Request
from ..store import Store
from .bundles import verify_bundle
from .evidence import BundleProof
from .gate import admit
from .judge import allowing
from .seen import SeenRecord, read_record, record_path, remember
from .trusted import IdentityEntry, read_trust


def admit_late(config: Config, policy: Policy, version: Version, *, fresh: bool = False) -> bool:
    """`admit` the version, or return True: then it takes `admit_variant` for each variant that is to be fetched.

    That is so for a repository without index.json for whose organization the user trusts identities, if the caller does
    not allow it anyhow. The hub's word does not count there, as with keys.
    """
    if version.index is None and not policy.allows(version.repo_id) and _identities(config, version):
        return True
    admit(config, policy, version, fresh=fresh)
    return False


def admit_variant(config: Config, request: Request, version: Version, name: str) -> IdentityEntry:
    """The trusted identity that has signed a variant, of which no code has been fetched yet.

    Raises:
        PolicyError: it has no bundle, or one of somebody else.
        SignatureError, MissingExtraError, UsageError: as `verify_bundle`.
        KernelHubError: the hub failed, or offline.
    """
    origin = f"build/{name}/{SIGNATURE_NAME} of {version.repo_id} at {version.commit[:12]}"
    variant = version.variants[name]
    if not isinstance(variant, ListedVariant) or SIGNATURE_NAME not in variant.files:
        raise PolicyError(
            f"{origin} is not there, and you trust identities for this organization: read its code, then allow it "
            f"with {allowing(version.repo_id)}"
        )
    metadata = read_metadata(config, request, version, name)
    bundle = _read_bundle(config, request, version, name)
    path, digest = record_path(read_trust().path, config.endpoint, version.repo_id), sha256_hex(bundle)
    known, identities = read_record(path).bundles.get(digest), _identities(config, version)
    for entry in identities:
        if known == _proof(metadata, entry):
            return entry
    signer = verify_bundle(bundle, metadata, identities, origin=origin)
    remember(path, SeenRecord(bundles={digest: _proof(metadata, signer)}))
    return signer


def _identities(config: Config, version: Version) -> tuple[IdentityEntry, ...]:
    return read_trust().identities_for(config.endpoint, version.repo_id)


def _proof(metadata: bytes, entry: IdentityEntry) -> BundleProof:
    return BundleProof(sha256_hex(metadata), entry.identity, entry.issuer, entry.root)


def _read_bundle(config: Config, request: Request, version: Version, name: str) -> bytes:
    """The bundle as the tree lists it: of the variant in the cache, else one request."""
    variant = version.variants[name]
    entry = variant.files[SIGNATURE_NAME]
    data = read(Store(config.cache).variant(variant.key) / SIGNATURE_NAME)
    if data is not None:
        digest = entry.new_hash()
        digest.update(data)
        if digest.hexdigest() == entry.digest:
            return data
    require_online(config, request, f"{SIGNATURE_NAME} of its variant {name}")
    return Hub(config).file(version.repo_id, version.commit, f"build/{name}/{SIGNATURE_NAME}", entry)
