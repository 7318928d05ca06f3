"""export --push: what the Hub is given, and that nothing exported is lost where it is not.

With a stand-in for the package huggingface_hub; with the real one, where it is installed, up to a local refusal.

Run: `make test ARGS=tests/unit/commands/test_push.py`
"""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest

import ali_dist
from ali_dist import export
from tests.unit.commands.conftest import refusal, succeed

TOKEN = "hf_0123456789"


class FakeHub:
    """What the Hub was asked for.

    Attributes:
        repositories: Whether each is private, by name.
        uploads: Arguments of every upload.
        token: What `get_token` gives.
        fault: Raised by an upload.
    """

    def __init__(self):
        self.repositories = {}
        self.uploads = []
        self.token = TOKEN
        self.fault = None

    def create_repo(self, name, *, private, exist_ok, repo_type):
        assert (exist_ok, repo_type) == (True, "model")
        self.repositories.setdefault(name, private)

    def upload_folder(self, **arguments):
        if self.fault is not None:
            raise self.fault
        self.uploads.append(arguments)
        return SimpleNamespace(commit_url="https://hub.example/me/digits/commit/1")


@pytest.fixture
def hub(monkeypatch):
    fake = FakeHub()
    module = ModuleType("huggingface_hub")
    module.HfApi = lambda library_name: fake
    module.get_token = lambda: fake.token
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return fake


def test_the_whole_export_and_nothing_else_is_uploaded(plain, tmp_path, hub, capsys):
    succeed(export, plain, tmp_path / "out", "--push", "me/digits")
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "https://hub.example/me/digits/commit/1"
    assert hub.repositories == {"me/digits": True}
    (upload,) = hub.uploads
    assert upload["repo_id"] == "me/digits"
    assert sorted(upload["allow_patterns"]) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "encoder.onnx" in upload["delete_patterns"]
    assert "images" in upload["commit_message"]
    assert "token" not in upload


def test_graphs_that_are_uploaded_are_not_deleted(plain, tmp_path, hub):
    succeed(export, plain, tmp_path / "out", "--push", "me/digits", "--format", "torch")
    (upload,) = hub.uploads
    assert "encoder.pt2" in upload["allow_patterns"]
    assert "encoder.pt2" not in upload["delete_patterns"]


def test_a_public_repository_is_asked_for(plain, tmp_path, hub, capsys):
    succeed(export, plain, tmp_path / "out", "--push", "me/digits", "--public")
    assert hub.repositories == {"me/digits": False}
    assert "give --push" in refusal(capsys, export, plain, tmp_path / "out", "--public")


@pytest.mark.parametrize(
    ("status", "code", "words"), [(403, 2, "refused"), (503, 1, "could not be uploaded"), (None, 1, "repeat")]
)
def test_what_was_exported_stays_where_the_upload_fails(plain, tmp_path, hub, capsys, status, code, words):
    hub.fault = OSError(f"no luck with {TOKEN} at https://me:word@hub.example")
    hub.fault.response = SimpleNamespace(status_code=status)
    assert export.main([str(plain), str(tmp_path / "out"), "--push", "me/digits"]) == code
    said = capsys.readouterr().err
    assert words in said
    assert TOKEN not in said
    assert "word@" not in said
    assert said.count("\n") == 1
    assert ali_dist.load(tmp_path / "out", device="cpu").sample(1).shape[0] == 1


@pytest.mark.parametrize("name", ["digits", "me/", "/digits", "me/digits/more", "https://x/y", "me/../you"])
def test_a_name_that_is_none_is_refused_before_anything_is_written(plain, tmp_path, hub, capsys, name):
    assert "OWNER/NAME" in refusal(capsys, export, plain, tmp_path / "out", "--push", name)
    assert not (tmp_path / "out").exists()


def test_a_missing_token_is_said_before_anything_is_written(plain, tmp_path, hub, capsys):
    hub.token = None
    assert "hf auth login" in refusal(capsys, export, plain, tmp_path / "out", "--push", "me/digits")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_said_with_its_extra(plain, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    assert "'ali-dist[hub]'" in refusal(capsys, export, plain, tmp_path / "out", "--push", "me/digits")
    assert not (tmp_path / "out").exists()


def test_the_real_library_is_refused_here_and_the_export_stays(plain, tmp_path, capsys, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert export.main([str(plain), str(tmp_path / "out"), "--push", "me/digits"]) == 1
    said = capsys.readouterr().err
    assert "could not be uploaded to me/digits" in said
    assert TOKEN not in said
    assert (tmp_path / "out" / "model.safetensors").exists()
