"""Files are whole or absent; a model folder comes back as it was saved, or is refused with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maediff import files, model_folder, staging
from maediff.config import load_config
from maediff.errors import ModelError, OutputError
from maediff.low_rank import Adapter


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return {
        "layer.weight": torch.randn(4, 3, generator=generator),
        "layer.bias": torch.arange(4.0).to(torch.bfloat16),
        "turned": torch.randn(2, 5, generator=generator).T,
        "steps": torch.tensor(7),
    }


@pytest.fixture
def folder(tmp_path, weights):
    path = tmp_path / "model"
    model_folder.save_model(path, weights, load_config("tiny"), {"threshold": 0.25}, "# A card\n")
    return path


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Change a file and its checksum, as somebody would who means it."""
    (folder / name).write_bytes(data)
    lines = [line for line in (folder / "SHA256SUMS").read_text().splitlines() if not line.endswith("  " + name)]
    lines.append(f"{files.file_sha256(folder / name)}  {name}")
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")


class TestAtomicPath:
    def test_keeps_suffixes_and_folder(self, tmp_path):
        with files.atomic_path(tmp_path / "new" / "sub-01_T2w.nii.gz") as temporary:
            assert temporary.parent == tmp_path / "new"
            assert temporary.name.endswith(".nii.gz")
            temporary.write_bytes(b"x")
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["sub-01_T2w.nii.gz"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, ZeroDivisionError])
    def test_failed_write_leaves_the_earlier_file(self, tmp_path, error):
        target = tmp_path / "map.json"
        target.write_text("earlier")

        def write():
            with files.atomic_path(target) as temporary:
                temporary.write_text("half of it")
                raise error

        with pytest.raises(error):
            write()
        assert target.read_text() == "earlier"
        assert list(tmp_path.iterdir()) == [target]

    def test_killed_write_leaves_the_earlier_file(self, tmp_path):
        target = tmp_path / "map.json"
        target.write_text("earlier")
        code = (
            "import os, sys\nfrom maediff.files import atomic_path\n"
            "with atomic_path(sys.argv[1]) as path:\n    path.write_text('half of it'); os._exit(9)"
        )
        result = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
        assert result.returncode == 9
        assert target.read_text() == "earlier"

    def test_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(OutputError, match="cannot write"):
            files.write_text(tmp_path / "file" / "x.txt", "text")

    def test_nothing_written_is_an_error(self, tmp_path):
        with pytest.raises(OutputError, match="cannot write"), files.atomic_path(tmp_path / "x.txt"):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_respects_the_umask(self, tmp_path):
        files.write_text(tmp_path / "atomic", "x")
        (tmp_path / "plain").write_text("x")
        assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_json_has_no_nan(self, tmp_path):
        with pytest.raises(ValueError, match="JSON"):
            files.write_json(tmp_path / "x.json", {"score": float("nan")})
        assert list(tmp_path.iterdir()) == []


class TestModelFolder:
    def test_comes_back(self, folder, weights):
        model = model_folder.load_model_folder(folder)
        assert model.weights.keys() == weights.keys()
        for name, value in weights.items():
            assert model.weights[name].dtype == value.dtype
            assert torch.equal(model.weights[name], value)
        assert model.config == load_config("tiny")
        assert model.calibration == {"threshold": 0.25}
        assert model.card == "# A card\n"

    def test_only_the_documented_files(self, folder):
        names = {"model.safetensors", "config.yaml", "calibration.json", "README.md", "model.json", "SHA256SUMS"}
        assert {path.name for path in folder.iterdir()} == names
        assert [path.name for path in folder.parent.iterdir()] == ["model"]

    def test_hash_depends_on_content_alone(self, folder, tmp_path, weights):
        config = load_config("tiny")
        again = model_folder.save_model(
            tmp_path / "b", dict(reversed(weights.items())), config, {"threshold": 0.25}, "# A card\n"
        )
        other = model_folder.save_model(tmp_path / "c", weights, config, {"threshold": 0.26}, "# A card\n")
        assert model_folder.load_model_folder(folder).hash == again != other

    def test_tied_weights_can_be_saved(self, tmp_path):
        shared = torch.ones(3)
        model_folder.save_model(tmp_path / "m", {"a": shared, "b": shared}, load_config("tiny"), None, "")
        model = model_folder.load_model_folder(tmp_path / "m")
        assert torch.equal(model.weights["a"], model.weights["b"])
        assert model.calibration is None

    @pytest.mark.parametrize(
        "name", ["model.safetensors", "config.yaml", "calibration.json", "README.md", "model.json"]
    )
    def test_every_file_is_checked(self, folder, name):
        data = bytearray((folder / name).read_bytes())
        data[-2] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(ModelError, match=r"checksum|schema"):
            model_folder.load_model_folder(folder)

    @pytest.mark.parametrize("name", [*staging.FILES, "SHA256SUMS"])
    def test_missing_file(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(ModelError, match=name):
            model_folder.load_model_folder(folder)

    @pytest.mark.parametrize(
        ("schema", "message"),
        [(2, "upgrade MAEDiff"), (99, "upgrade"), (0, "from 1 to 1"), ("1", "schema '1'"), (None, "None")],
    )
    def test_other_schema(self, folder, schema, message):
        rewrite(folder, "model.json", json.dumps({"schema": schema}).encode())
        with pytest.raises(ModelError, match=message):
            model_folder.load_model_folder(folder)

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/model.safetensors", "..", ""])
    def test_checksums_stay_in_the_folder(self, folder, name):
        sums = folder / "SHA256SUMS"
        sums.write_text(sums.read_text() + f"{'0' * 64}  {name}\n")
        with pytest.raises(ModelError, match="lists"):
            model_folder.load_model_folder(folder)

    def test_no_file_may_go_unlisted(self, folder):
        sums = folder / "SHA256SUMS"
        sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "safetensors" not in line))
        with pytest.raises(ModelError, match=r"lists no model\.safetensors"):
            model_folder.load_model_folder(folder)

    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("model.safetensors", b"\x08\0\0\0\0\0\0\0not json"),
            ("model.safetensors", b""),
            ("config.yaml", b"train: {lrr: 1}"),
            ("config.yaml", b"\xff\xfe"),
            ("calibration.json", b"{"),
            ("calibration.json", b"[1]"),
            ("README.md", b"\xff"),
        ],
    )
    @pytest.mark.parametrize("read", [model_folder.load_model_folder, model_folder.describe_model])
    def test_nonsense_with_a_right_checksum(self, folder, name, data, read):
        rewrite(folder, name, data)
        with pytest.raises(ModelError):
            read(folder)

    def test_interrupted_save_leaves_the_earlier_model(self, folder, monkeypatch):
        earlier = model_folder.load_model_folder(folder).hash
        monkeypatch.setattr("maediff.config.dump_yaml", lambda _config: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model_folder.save_model(folder, {"a": torch.zeros(1)}, load_config("tiny"), None, "")
        assert model_folder.load_model_folder(folder).hash == earlier
        assert [path.name for path in folder.parent.iterdir()] == ["model"]

    def test_saving_again_replaces(self, folder):
        (folder / "notes.txt").write_text("mine")
        model_folder.save_model(folder, {"a": torch.zeros(1)}, load_config("tiny"), None, "")
        assert model_folder.load_model_folder(folder).weights.keys() == {"a"}
        assert (folder / "notes.txt").read_text() == "mine"

    def test_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(OutputError, match="cannot write"):
            model_folder.save_model(tmp_path / "file" / "model", {"a": torch.zeros(1)}, load_config("tiny"), None, "")
        with pytest.raises(OutputError, match="cannot write"):
            model_folder.save_model(tmp_path / "file", {"a": torch.zeros(1)}, load_config("tiny"), None, "")

    def test_weights_may_be_larger_than_text_whether_whole_or_an_adapter(self, folder, weights, tmp_path, monkeypatch):
        monkeypatch.setattr(staging, "_MAX_TEXT_BYTES", 2**16)
        large = torch.ones(2**16)
        adapter, config = Adapter({"side.weight": large}, {}), load_config("tiny")
        model_folder.save_adapted(tmp_path / "adapted", adapter, folder, config, "# Adapted\n")
        assert torch.equal(model_folder.load_model_folder(tmp_path / "adapted").weights["side.weight"], large)
        model_folder.save_model(folder, {"layer.weight": large}, config, None, "")
        assert torch.equal(model_folder.load_model_folder(folder).weights["layer.weight"], large)
        (folder / "README.md").write_text("long" * 2**16)
        with pytest.raises(ModelError, match="at most 65536 are read"):
            model_folder.load_model_folder(folder)

    def test_checksums_are_those_of_sha256sum(self, folder):
        result = subprocess.run(
            ["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout
        assert result.stdout.count(": OK") == len(staging.FILES)


class TestCalibrationUpdate:
    def test_changes_the_calibration_alone(self, folder):
        before = model_folder.load_model_folder(folder)
        new = model_folder.update_calibration(folder, {"threshold": 0.5})
        after = model_folder.load_model_folder(folder)
        assert after.hash == new != before.hash
        assert after.calibration == {"threshold": 0.5}
        assert torch.equal(after.weights["turned"], before.weights["turned"])

    def test_does_not_bless_damage(self, folder):
        (folder / "README.md").write_text("another card")
        with pytest.raises(ModelError, match="checksum"):
            model_folder.update_calibration(folder, {"threshold": 0.5})


class TestDescribe:
    def test_counts_parameters_from_the_header(self, folder, weights):
        facts = model_folder.describe_model(folder)
        assert facts["parameters"] == sum(value.numel() for value in weights.values())
        assert facts["hash"] == model_folder.load_model_folder(folder).hash
        assert facts["calibration"]["threshold"] == 0.25
        assert json.loads(json.dumps(facts)) == facts


class TestResolve:
    def test_folder_and_run(self, folder):
        assert model_folder.resolve_model(folder) == folder
        assert model_folder.resolve_model(str(folder.parent)) == folder

    def test_packaged(self, folder, monkeypatch):
        monkeypatch.setattr(model_folder, "PACKAGED", folder.parent)
        assert model_folder.packaged_models() == ("model",)
        assert model_folder.resolve_model("model") == folder

    @pytest.mark.parametrize("name", ["fantom", "no/such/model", ""])
    def test_unknown(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelError):
            model_folder.resolve_model(name)

    def test_folder_without_model(self, tmp_path):
        with pytest.raises(ModelError, match="holds no model"):
            model_folder.resolve_model(tmp_path)

    def test_every_packaged_model_is_sound(self):
        for name in model_folder.packaged_models():
            folder = model_folder.resolve_model(name)
            assert model_folder.verify_model_folder(folder)
            assert (folder / "model.safetensors").stat().st_size <= 10 * 1024**2


def test_an_adapter_never_goes_into_the_folder_of_its_base(make_model, tiny, tmp_path):
    base = make_model(tmp_path / "base", tiny())
    with pytest.raises(OutputError, match="choose another folder"):
        model_folder.check_beside(base, tmp_path / "else" / ".." / "base")
    model_folder.check_beside(base, tmp_path / "else")
