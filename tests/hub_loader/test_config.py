"""Settings come from the environment of the call; a value that means nothing is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub_loader import UsageError
from hub_loader.config import load_config


def test_load_config_when_nothing_is_set_then_takes_the_public_hub_and_the_home_folder() -> None:
    config = load_config({})
    assert config.endpoint == "https://huggingface.co"
    assert config.cache == Path("~/.cache/huggingface/kernel-hub").expanduser()
    assert not config.offline


@pytest.mark.parametrize(
    ("environ", "cache"),
    [
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/kernel-hub"),
        ({"XDG_CACHE_HOME": "/x", "HF_HOME": "/h"}, "/h/kernel-hub"),
        ({"HF_HOME": "/h", "KERNELS_CACHE": "/k"}, "/k/kernel-hub"),
    ],
)
def test_load_config_then_the_nearest_folder_wins(environ: dict[str, str], cache: str) -> None:
    assert load_config(environ).cache == Path(cache)


def test_load_config_when_a_token_is_set_or_saved_then_reads_it_and_never_shows_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_saved\n")
    assert load_config({"HF_HOME": str(tmp_path)}).token == "hf_saved"
    config = load_config({"HF_HOME": str(tmp_path), "HF_TOKEN": "hf_given"})
    assert config.token == "hf_given"
    assert "hf_given" not in repr(config)


@pytest.mark.parametrize(
    ("value", "offline"), [("1", True), ("ON", True), ("", False), ("0", False), ("no", False)]
)
def test_load_config_then_reads_offline_as_the_hub_client_does(value: str, offline: bool) -> None:
    assert load_config({"HF_HUB_OFFLINE": value}).offline is offline


def test_load_config_when_the_endpoint_ends_with_a_slash_then_drops_it() -> None:
    assert load_config({"HF_ENDPOINT": "http://127.0.0.1:8000/"}).endpoint == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_ENDPOINT", "127.0.0.1:8000"),
        ("HF_ENDPOINT", "http://host:port"),
        ("HF_ENDPOINT", "ftp://host"),
        ("HF_ENDPOINT", "http://[::1"),
        ("HF_ENDPOINT", "http://host?x=1"),
        ("HF_HUB_OFFLINE", "maybe"),
        ("KERNELS_CACHE", __file__),
        ("HF_TOKEN", "hf_a b"),
    ],
)
def test_load_config_when_a_value_means_nothing_then_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        load_config({name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "public"),
    [
        ("", True),
        ("https://huggingface.co/", True),
        ("http://HuggingFace.co.:443", True),
        ("https://hub-ci.huggingface.co", True),
        ("https://hf.co", True),
        ("https://hf-mirror.com", True),
        ("https://hub.example.org", False),
        ("https://nothuggingface.co", False),
        ("https://huggingface.co.example.org", False),
        ("http://127.0.0.1:8000", False),
    ],
)
def test_is_public_of_each_name_of_the_public_hub_and_of_no_other(endpoint: str, public: bool) -> None:
    assert load_config({"HF_ENDPOINT": endpoint}).is_public is public


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_refresh_that_is_no_number_of_seconds_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="KHUB_REFRESH"):
        load_config({"KHUB_REFRESH": value})
    assert load_config({"KHUB_REFRESH": "0.5"}).refresh == 0.5
    assert load_config({}).refresh == 3600
