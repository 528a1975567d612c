"""Trust: whose code may run is decided here, for the repository that answers, also offline."""

from __future__ import annotations

from collections.abc import Callable

from clients import Client, Shelf
from packages import Package

Plain = Callable[..., Package]
GET = "print(client.get_kernel(sys.argv[1], version=1, trust_remote_code={trust}).value())"


def test_redirect_to_another_owner_is_judged_by_who_answers(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    shelf.put(f"{org}/demo", plain(value=66).folder)
    shelf.put(f"known-{org}/other", plain().folder)
    shelf.relay.trusted.add(f"known-{org}")
    shelf.relay.moved[f"known-{org}/demo"] = f"{org}/demo"
    said = client.scenario(GET.format(trust=False), f"known-{org}/demo")
    client.expect(said, ours=rf"PolicyError: {org}/demo: .*", peer="66")


def test_redirect_of_an_allowed_repository_is_judged_by_who_answers(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    shelf.put(f"{org}/demo", plain(value=66).folder)
    shelf.put(f"known-{org}/other", plain().folder)
    shelf.relay.moved[f"known-{org}/demo"] = f"{org}/demo"
    said = client.scenario(GET.format(trust="[sys.argv[1]]"), f"known-{org}/demo")
    client.expect(said, ours=rf"PolicyError: {org}/demo: .*", peer="66")


def test_publisher_that_nobody_vouched_for_is_refused_offline_too(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    commit = shelf.put(f"{org}/demo", plain(value=66).folder)
    # As a program that trusts everybody leaves the cache: what the peer looks for offline is all there.
    bring = "import huggingface_hub as h; h.snapshot_download(sys.argv[1], repo_type='kernel', revision=sys.argv[2],"
    bring += " cache_dir=sys.argv[3])"
    if client.kind == "peer":
        client.scenario(bring, f"{org}/demo", commit, client.cache)
    else:
        client.scenario(GET.format(trust=True), f"{org}/demo")
    code = "print(client.get_kernel(sys.argv[1], revision=sys.argv[2], trust_remote_code=False).value())"
    assert "rror: " in client.scenario(code, f"{org}/demo", commit)  # online, both refuse
    said = client.scenario(code, f"{org}/demo", commit, HF_HUB_OFFLINE="1")
    client.expect(said, ours=rf"PolicyError: {org}/demo: .*", peer="66")


def test_word_of_the_hub_alone_is_not_enough_to_run_code(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    shelf.put(f"{org}/demo", plain(value=66).folder)
    shelf.relay.trusted.add(org)
    said = client.scenario(GET.format(trust=False), f"{org}/demo")
    client.expect(said, ours=r"(PolicyError|IntegrityError): .*", peer="66")


def test_signature_that_signs_nothing_is_refused(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    package = plain(value=66)
    (package.variants["torch-universal"] / "metadata.json.sigstore").write_text("{}")
    shelf.put(f"{org}/demo", package.folder)
    shelf.relay.trusted.add(org)
    if client.kind == "peer":  # it has the check, and calls it in a command of its own alone
        code = "from kernels.verify import verify_variant; print(type(verify_variant(Path(sys.argv[1]))).__name__)"
        said = client.scenario(code, package.variants["torch-universal"])
        assert said == "SignatureBundleInvalid"
    said = client.scenario(GET.format(trust=False), f"{org}/demo")
    client.expect(said, ours=r"(PolicyError|IntegrityError): .*", peer="66")
