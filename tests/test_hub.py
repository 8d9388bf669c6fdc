"""Hugging Face Hub: with a stand-in for its client, since nothing here may reach the network."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from maediff.cli import app

from maediff import hub, model_folder, staging
from maediff.errors import ConfigError, InputError, ModelError, OutputError


class FakeHub:
    """A folder a repository; refuses what the real client would not be called with."""

    def __init__(self, root):
        self.root, self.calls = root, []

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create", repo_id, private))
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        self.calls.append(("upload", repo_id, commit_message))
        for name in allow_patterns:
            shutil.copyfile(Path(folder_path) / name, self.root / repo_id / name)

    def snapshot_download(self, repo_id, *, revision, local_dir, allow_patterns):
        self.calls.append(("download", repo_id, revision))
        if not (self.root / repo_id).is_dir():
            raise RuntimeError(f"404 Client Error:\n{repo_id}")
        Path(local_dir, ".cache").mkdir(parents=True)
        for path in (self.root / repo_id).iterdir():
            if path.name in allow_patterns:
                shutil.copyfile(path, Path(local_dir) / path.name)


@pytest.fixture
def api(tmp_path):
    return FakeHub(tmp_path / "hub")


@pytest.fixture
def folder(tiny, tmp_path):
    model_folder.save_model(tmp_path / "model", {}, tiny(), None, "# Card\n")
    (tmp_path / "model" / "patients.csv").write_text("not for others")
    return tmp_path / "model"


def test_what_is_pushed_comes_back_and_nothing_else(api, folder, tmp_path):
    sent = hub.push_model(folder, "me/model", api=api)
    assert api.calls[0] == ("create", "me/model", True)  # private unless asked
    got = hub.pull_model("me/model", tmp_path / "there", revision="v1", api=api)
    assert sent == got == model_folder.verify_model_folder(folder)
    assert api.calls[-1] == ("download", "me/model", "v1")
    assert {path.name for path in (tmp_path / "there").iterdir()} == {*staging.FILES, staging.CHECKSUMS}


def test_residuals_by_place_go_with_the_model(api, folder, tmp_path):
    model_folder.update_calibration(folder, {"threshold": 0.5}, locations=b"moments")
    assert hub.push_model(folder, "me/model", api=api) == hub.pull_model("me/model", tmp_path / "there", api=api)
    assert (tmp_path / "there" / staging.LOCATIONS).read_bytes() == b"moments"


def test_a_damaged_model_is_neither_sent_nor_kept(api, folder, tmp_path):
    hub.push_model(folder, "me/model", api=api)
    (tmp_path / "hub" / "me" / "model" / "config.yaml").write_text("method: ae\n")
    with pytest.raises(ModelError, match=r"me/model holds no sound MAEDiff model.*checksum"):
        hub.pull_model("me/model", tmp_path / "there", api=api)
    (folder / "config.yaml").write_text("method: ae\n")
    calls = len(api.calls)
    with pytest.raises(ModelError, match="checksum"):
        hub.push_model(folder, "me/model", api=api)
    assert len(api.calls) == calls
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "model"]


def test_what_the_hub_says_is_told_in_a_line(api, folder, tmp_path):
    with pytest.raises(InputError, match="cannot pull me/none: 404 Client Error: me/none; check"):
        hub.pull_model("me/none", tmp_path / "there", api=api)
    api.create_repo = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("401"))
    with pytest.raises(OutputError, match="cannot push to me/model: 401; check the name and `hf auth login`"):
        hub.push_model(folder, "me/model", api=api)
    assert not (tmp_path / "there").exists()


def test_an_earlier_folder_is_not_overwritten(api, folder):
    with pytest.raises(OutputError, match="already"):
        hub.pull_model("me/model", folder, api=api)
    assert api.calls == []


def test_without_the_client_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install .huggingface-hub"):
        hub.push_model(folder, "me/model")


def test_the_real_client_takes_these_arguments(api, folder, tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    for name in ("create_repo", "upload_folder", "snapshot_download"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", _checked(getattr(HfApi, name), getattr(api, name)))
    runner = CliRunner()
    pushed = runner.invoke(app, ["hub", "push", str(folder), "me/model", "--public"])
    pulled = runner.invoke(app, ["hub", "pull", "me/model", "-o", str(tmp_path / "there")])
    assert (pushed.exit_code, pulled.exit_code) == (0, 0), pushed.output + pulled.output
    assert api.calls[0] == ("create", "me/model", False)
    assert model_folder.verify_model_folder(tmp_path / "there") == model_folder.verify_model_folder(folder)


def _checked(real, stand_in):
    """Call a stand-in with arguments that fit the signature of the real method."""
    import inspect

    signature = inspect.signature(real)

    def call(self, *arguments, **named):
        signature.bind(self, *arguments, **named)
        return stand_in(*arguments, **named)

    return call


def test_a_training_is_pushed_only_if_asked_and_asked_before_it_starts(api, tiny, discs, tmp_path, monkeypatch):
    import huggingface_hub

    import maediff

    model_folder.save_model(tmp_path / "model", {}, tiny(), None, "# Card\n")
    trained = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: api)
    monkeypatch.setattr(maediff, "train", lambda *_, **__: trained.append(1) or tmp_path / "model")
    command = ["train", "-c", "tiny", "-i", str(tmp_path), "-o", str(tmp_path / "run")]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert api.calls == []
    pushed = CliRunner().invoke(app, [*command, "--push-to", "me/model"])
    assert pushed.exit_code == 0, pushed.output
    assert (tmp_path / "hub" / "me" / "model" / staging.CHECKSUMS).is_file()
    assert f"sent model {model_folder.verify_model_folder(tmp_path / 'model')} to me/model" in pushed.output
    refused = CliRunner().invoke(app, [*command, "--push-to", "model"])
    assert refused.exit_code == 2
    assert len(trained) == 2
    with pytest.raises(ConfigError, match="'model' is not the name of a repository; give OWNER/NAME"):
        hub.check_target("model")
