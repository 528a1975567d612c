"""A model by its name: what the engine reads is fetched from the hub that HF_ENDPOINT names, then works offline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_models import MakeModel
from huggingface_hub import HfApi
from khub_process import Hub

from engine import LLM, SamplingParams
from engine.model_source import find_model
from hub_loader.errors import (
    AuthenticationError,
    DownloadError,
    KernelHubError,
    ModelError,
    OfflineError,
    RepositoryNotFoundError,
    UsageError,
    VersionNotFoundError,
)

Upload = Callable[[Path, str], None]
PARAMS = SamplingParams(max_tokens=4)


@pytest.fixture
def at_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))  # read when it was imported
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return hub


@pytest.fixture
def upload(at_hub: Hub) -> Upload:
    """Upload a folder as a model with the stock client."""

    def run(folder: Path, name: str) -> None:
        api = HfApi(endpoint=at_hub.url, token=at_hub.token("llms"))
        api.create_repo(name, repo_type="model", exist_ok=True)
        api.upload_folder(repo_id=name, repo_type="model", folder_path=folder)

    return run


@pytest.mark.slow
def test_model_by_name_is_fetched_once_without_what_is_not_read_and_runs_offline(
    upload: Upload, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(make_model("sharded", shards="300KB"), tmp_path / "source")
    assert len(list(source.glob("*.safetensors"))) > 1
    (source / "pytorch_model.bin").write_bytes(b"not read")
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    upload(source, "llms/sharded")
    expected = [c.tokens for c in LLM(source).generate([[1, 2, 3]], PARAMS)]
    llm = LLM("llms/sharded")
    assert [c.tokens for c in llm.generate([[1, 2, 3]], PARAMS)] == expected
    kept = {file.name for file in llm.folder.iterdir()}
    assert kept == {file.name for file in source.iterdir()} - {"pytorch_model.bin", "README.md"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert [c.tokens for c in LLM("llms/sharded").generate([[1, 2, 3]], PARAMS)] == expected


@pytest.mark.slow
def test_repository_that_lacks_a_shard_or_all_weights_or_its_revision_is_refused(
    upload: Upload, make_model: MakeModel, tmp_path: Path
) -> None:
    source = shutil.copytree(make_model("sharded", shards="300KB"), tmp_path / "source")
    lost = sorted(source.glob("*.safetensors"))[-1]
    lost.unlink()
    upload(source, "llms/incomplete")
    with pytest.raises(ModelError, match=f"{lost.name} is missing"):
        LLM("llms/incomplete")
    with pytest.raises(VersionNotFoundError, match="no revision 'v9'"):
        find_model("llms/incomplete", "v9")
    with pytest.raises(ModelError, match=r"has no file small.gguf"):
        find_model("llms/incomplete/small.gguf")
    (bare := tmp_path / "bare").mkdir()
    (bare / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    upload(bare, "llms/bare")
    with pytest.raises(ModelError, match=r"has no model.safetensors"):
        find_model("llms/bare")


def test_name_that_is_not_on_the_hub_is_refused(at_hub: Hub) -> None:
    with pytest.raises((RepositoryNotFoundError, AuthenticationError), match="llms/nowhere"):
        find_model("llms/nowhere")


@pytest.mark.parametrize(
    ("offline", "kind", "words"),
    [
        ("", DownloadError, "could not be fetched from http://127.0.0.1:9"),
        ("1", OfflineError, "not in the cache"),
    ],
)
def test_model_when_nobody_answers_or_nobody_may_be_asked_then_that_is_said(
    at_hub: Hub, monkeypatch: pytest.MonkeyPatch, offline: str, kind: type[KernelHubError], words: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    with pytest.raises(kind, match=words) as refused:
        find_model("llms/elsewhere")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "a/b/c", "../x/y", "a b/c"])
def test_what_is_neither_a_folder_nor_a_name_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="name a model folder in Hugging Face format, or org/name"):
        find_model(name)


def test_revision_of_a_folder_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(UsageError, match="leave the revision out"):
        find_model(make_model(), "main")
