"""Who sends the requests: what a user has set for it holds, and it costs only what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packages import python_package
from signing import trust_key
from static_hub import StaticHub

LOAD = "from hub_loader import get_kernel; print(get_kernel('org/demo', version=1).value()); "
# What a client factory of the user's own sends with each request.
FACTORY = (
    "import huggingface_hub as h; from huggingface_hub.utils._http import default_client_factory as make\n"
    "def factory():\n    client = make(); client.headers['x-mine'] = '1'; return client\n"
    "h.set_client_factory(factory); "
)


def in_new_process(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    proxies = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir")
    kept = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | environ, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 that nobody knows, and its key."""
    path = tmp_path / "hub.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2 -subj /CN=hub"
    )
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", tmp_path / "chain.pem"]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    with path.open("ab") as file:
        file.write((tmp_path / "chain.pem").read_bytes())
    return path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return python_package(tmp_path / "source", value=7).folder


def test_cold_load_then_huggingface_hub_is_not_imported_and_no_certificate_is_read(
    hub: StaticHub, package: Path, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", package)
    told = "import sys; print('huggingface_hub' in sys.modules)"
    done = in_new_process(LOAD + told, SSL_CERT_FILE=str(tmp_path / "no certificates"))
    assert done.stdout == "7\nFalse\n", done.stderr


def test_huggingface_hub_1_then_the_client_is_that_of_httpx(hub: StaticHub, package: Path) -> None:
    """1.x requires httpx and 2.x httpx2; here are both, so the newer one is hidden."""
    hub.publish("org/demo", "v1", package)
    told = "from hub_loader.session import session; print(type(session()).__module__)"
    hidden = "import sys; sys.modules['httpx2'] = None; "
    done = in_new_process(hidden + LOAD + told)
    assert done.stdout == "7\nhttpx\n", done.stderr
    gone = in_new_process(
        hidden + LOAD, HF_ENDPOINT="http://127.0.0.1:9", KERNELS_CACHE=str(package / "cache")
    )
    assert "cannot reach http://127.0.0.1:9" in gone.stderr


def test_client_factory_that_the_user_has_set_then_makes_the_client(hub: StaticHub, package: Path) -> None:
    hub.publish("org/demo", "v1", package)
    told = "from hub_loader.session import session; print(session().headers['x-mine'], session() is h.get_session())"
    done = in_new_process(FACTORY + LOAD + told)
    assert done.stdout == "7\n1 True\n", done.stderr


def test_offline_when_huggingface_hub_was_imported_so_then_says_it(hub: StaticHub, package: Path) -> None:
    hub.publish("org/demo", "v1", package)
    code = "import huggingface_hub.constants, huggingface_hub.utils, os; os.environ['HF_HUB_OFFLINE'] = '0'; "
    done = in_new_process(code + LOAD, HF_HUB_OFFLINE="1")
    assert "huggingface_hub was imported with HF_HUB_OFFLINE=1: unset it and start again" in done.stderr
    assert hub.requests == []


def test_redirect_to_another_host_then_the_token_stays_behind(hub: StaticHub, package: Path) -> None:
    with StaticHub() as storage:
        for one in (hub, storage):
            one.publish("org/demo", "v1", package)
        hub.elsewhere["table.txt"] = storage.endpoint
        done = in_new_process(LOAD, HF_TOKEN="hf_secret")
        assert done.stdout == "7\n", done.stderr
        assert set(hub.tokens) == {"Bearer hf_secret"}
        assert storage.tokens == [None]


def test_proxy_of_the_environment_then_it_is_asked_instead_of_the_hub(hub: StaticHub, package: Path) -> None:
    hub.publish("org/demo", "v1", package)
    trust_key("http://hub.invalid", "org")
    done = in_new_process(LOAD, HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=hub.endpoint)
    assert done.stdout == "7\n", done.stderr
    assert "http://hub.invalid/kernels/org/demo/resolve/v1/index.json" in hub.requests[:2]


def test_no_proxy_that_names_the_hub_then_it_is_asked_directly(hub: StaticHub, package: Path) -> None:
    hub.publish("org/demo", "v1", package)
    done = in_new_process(LOAD, HTTP_PROXY="http://127.0.0.1:9", NO_PROXY="127.0.0.1")
    assert done.stdout == "7\n", done.stderr


def test_https_then_only_a_certificate_that_is_trusted_will_do(
    hub: StaticHub, package: Path, certificate: Path
) -> None:
    with StaticHub(certificate=certificate) as secure:
        secure.publish("org/demo", "v1", package)
        refused = in_new_process(LOAD, HF_ENDPOINT=secure.endpoint)
        assert f"cannot reach {secure.endpoint}" in refused.stderr
        assert "certificate verify failed" in refused.stderr
        assert secure.requests == []
        done = in_new_process(LOAD, HF_ENDPOINT=secure.endpoint, SSL_CERT_FILE=str(certificate))
        assert done.stdout == "7\n", done.stderr


def test_redirect_from_http_to_https_then_the_certificate_is_checked_as_well(
    hub: StaticHub, package: Path, certificate: Path
) -> None:
    with StaticHub(certificate=certificate) as storage:
        for one in (hub, storage):
            one.publish("org/demo", "v1", package)
        hub.elsewhere["table.txt"] = storage.endpoint
        assert "certificate verify failed" in in_new_process(LOAD).stderr
        done = in_new_process(LOAD, SSL_CERT_FILE=str(certificate))
        assert done.stdout == "7\n", done.stderr


def test_process_that_forks_then_the_child_has_connections_of_its_own(hub: StaticHub, package: Path) -> None:
    hub.publish("org/demo", "v1", package)
    code = (
        "import os; from hub_loader.session import session; mine = session(); child = os.fork()\n"
        "if child == 0: os._exit(0 if session() is not mine else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), session() is mine)"
    )
    assert in_new_process(LOAD + code).stdout == "7\n0 True\n"
