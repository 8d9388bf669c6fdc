"""Faults and hostile input: what a hospital's thousand scans, a full disk and a second run may do."""

from __future__ import annotations

import errno
import gzip
import json
import os
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from maediff import files, locking, model_folder, staging
from maediff.config import load_config, override
from maediff.data.cases import find_cases
from maediff.errors import ConfigError, InputError, MAEDiffError, ModelError, OutputError
from maediff.files import remove_leftovers
from maediff.inference.load import load_model
from maediff.jobs import infer as infer_job
from maediff.jobs.infer import infer
from maediff.locking import folder_lock
from maediff.model_folder import load_model_folder, update_calibration
from maediff.volume import checks, read_nifti

DATA = np.arange(1, 211, dtype=np.int16).reshape(7, 6, 5)


@pytest.fixture
def model(make_model, tiny, tmp_path):
    return make_model(tmp_path / "model", tiny("partition.stride=16"))


@pytest.fixture
def scan(make_scan, tmp_path):
    (tmp_path / "scans").mkdir()
    path = tmp_path / "scans" / "a.nii.gz"
    nib.save(make_scan(np.diag([8.0, 8, 10, 1]) - np.array([[0, 0, 0, 64], [0, 0, 0, 76], [0, 0, 0, 55], [0] * 4])
                       , (17, 20, 12)), path)  # fmt: skip
    return path


# Odd headers


def test_an_odd_header_is_told(tmp_path):
    affine = np.eye(4)
    image = nib.Nifti1Image(DATA, affine)
    image.set_qform(affine, 0)
    image.header["pixdim"][1:4] = [1, 1, 3]
    image.header["sform_code"] = 1
    nib.save(image, tmp_path / "spacing.nii")
    path = tmp_path / "spacing.nii"
    raw = bytearray(path.read_bytes())
    raw[88:92] = struct.pack("<f", 3.0)
    path.write_bytes(raw)
    assert any("pixdim says" in note for note in read_nifti(path).notes)
    affine[0, 1] = 0.3
    sheared = nib.Nifti1Image(DATA, affine)
    sheared.set_qform(None, 0)
    nib.save(sheared, tmp_path / "sheared.nii")
    assert any("sheared" in note and "73.3 degrees" in note for note in read_nifti(tmp_path / "sheared.nii").notes)


# Hostile scans


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "_MAX_EXTRA_BYTES", 2**20)
    nib.save(nib.Nifti1Image(DATA, np.eye(4)), tmp_path / "small.nii")
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb") as stream:
        stream.write((tmp_path / "small.nii").read_bytes())
        for _ in range(64):
            stream.write(bytes(2**20))
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    with pytest.raises(InputError, match=r"unpacks to more than .* bytes, but its header explains 420"):
        read_nifti(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20  # of the 64 that it unpacks to


def test_a_scan_that_memory_cannot_hold_is_refused(tmp_path, monkeypatch):
    nib.save(nib.Nifti1Image(DATA, np.eye(4)), tmp_path / "scan.nii")
    monkeypatch.setattr(checks, "memory_bytes", lambda: 14 * DATA.size - 1)
    with pytest.raises(InputError, match="GiB of memory, this machine has"):
        read_nifti(tmp_path / "scan.nii")
    monkeypatch.setattr(checks, "memory_bytes", lambda: 14 * DATA.size)
    assert read_nifti(tmp_path / "scan.nii").data.shape == DATA.shape


def test_a_header_of_a_trillion_voxels_is_refused(tmp_path):
    header = nib.Nifti2Header()
    header.set_data_shape((10_000, 10_000, 10_000))
    header["magic"], header["vox_offset"] = b"n+2", 544
    (tmp_path / "scan.nii").write_bytes(header.binaryblock + bytes(1000))
    with pytest.raises(InputError, match="10000 x 10000 x 10000 voxels; at most"):
        read_nifti(tmp_path / "scan.nii")


# Hostile configurations and model folders


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\ntrain: {lr: [*b, *b]}",
        "train: &t {lr: *t}",
        "train: {lr: 0x" + "f" * 6000 + "}",
        "x" * 100_000 + ": 1",
        "train: {" + "y" * 100_000 + ": 1}",
        "train: " + "[" * 5000,
        "train: !!python/object/apply:os.system [true]",
        "# " + "z" * 300_000,
    ],
    ids=["aliases", "loop", "digits", "key", "inner key", "nesting", "code", "size"],
)
def test_a_hostile_configuration_is_refused_in_few_words(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    assert len(str(caught.value)) < 2000


@settings(max_examples=150)
@given(text=st.text(max_size=60))
def test_any_text_is_a_configuration_or_an_error_of_ours(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (lambda: load_config(path), lambda: override(load_config("tiny"), [f"train.lr={text}"])):
        with suppress(MAEDiffError):
            read()


def test_a_pickle_for_weights_and_a_link_out_of_the_folder_are_refused(model, tmp_path):
    import pickle

    weights = model / staging.WEIGHTS
    weights.write_bytes(pickle.dumps(os.getcwd))
    sums = (model / staging.CHECKSUMS).read_text().splitlines()
    changed = [f"{files.file_sha256(weights)}  {staging.WEIGHTS}" if staging.WEIGHTS in line else line for line in sums]
    (model / staging.CHECKSUMS).write_text("\n".join(changed) + "\n")
    with pytest.raises(ModelError, match="cannot be read"):
        load_model_folder(model)
    weights.unlink()
    weights.symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="not a file"):
        load_model_folder(model)


# Faults


def test_a_calibration_cut_off_between_its_files_leaves_a_sound_model(model, monkeypatch):
    before = model_folder.verify_model_folder(model)
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(Path(target).name)
        if len(calls) == cut:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    hashes = []
    for number in (1, 2, 3, 4):
        cut = number
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            update_calibration(model, {"threshold": 0.5})
        hashes.append(model_folder.verify_model_folder(model))
    assert hashes[:3] == [before] * 3
    assert load_model_folder(model).calibration == {"threshold": 0.5}
    cut = 0
    assert update_calibration(model, {"threshold": 0.5}) == hashes[3] != before
    assert sorted(path.name for path in model.iterdir()) == sorted([*staging.FILES, staging.CHECKSUMS])


def test_weights_can_be_read_by_whom_the_umask_allows(model):
    assert {path.stat().st_mode for path in model.iterdir()} == {(model / staging.CONFIG).stat().st_mode}


@pytest.mark.parametrize(("code", "advice"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "can be written")])
def test_a_full_disk_and_a_read_only_folder_are_named(tmp_path, monkeypatch, code, advice):
    (tmp_path / "map.json").write_text("earlier")

    def fail(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "_flush", fail)
    with pytest.raises(OutputError, match=advice):
        files.write_text(tmp_path / "map.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["map.json"]
    assert (tmp_path / "map.json").read_text() == "earlier"


def test_leftovers_of_one_file_are_told_from_those_of_another(tmp_path):
    keep = [".a_map.nii.gz", ".b_map.0123abcd.nii.gz", ".a_map.0123abcd.nii", "a_map.nii.gz", ".a_map.0123abcg.nii.gz"]
    for name in [*keep, ".a_map.0123abcd.nii.gz"]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".model.0123abcd").mkdir()
    remove_leftovers(tmp_path / "a_map.nii.gz")
    remove_leftovers(tmp_path / "model")
    remove_leftovers(tmp_path / "none" / "x")
    assert {path.name for path in tmp_path.iterdir()} == set(keep)


def test_a_table_with_an_unknown_home_is_refused(tmp_path):
    (tmp_path / "cases.csv").write_text("image\n~no-such-user-here/a.nii\n")
    with pytest.raises(InputError, match="unknown user"):
        find_cases(tmp_path / "cases.csv")


# Two runs


def test_a_second_run_on_one_folder_is_refused_and_parts_of_one_are_not(model, scan, tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "WAIT_SECONDS", 0.05)
    out = tmp_path / "out"
    with folder_lock(out):
        with pytest.raises(OutputError, match="another maediff run is writing") as caught:
            infer(model, scan.parent, out, device="cpu")
        assert caught.value.exit_code == 1
        with pytest.raises(OutputError, match="another maediff run"):
            infer(model, scan.parent, out, device="cpu", shard=(1, 2))
    with folder_lock(out, (1, 2)), folder_lock(out, (2, 2)):
        for part in ((2, 2), (1, 3), (1, 1)):
            with pytest.raises(OutputError, match="the same N for all"), folder_lock(out, part):
                pass
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("error", [FileNotFoundError("label.nii.gz"), ConnectionResetError("worker"), ValueError("x")])
def test_an_error_of_the_run_itself_is_not_blamed_on_its_folder(tmp_path, error):
    with pytest.raises(type(error)) as caught, folder_lock(tmp_path):
        raise error
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_run_holds_nobody_up(model, scan, tmp_path):
    out = tmp_path / "out"
    if (child := os.fork()) == 0:
        FileLock(out.parent / ".maediff-1-of-1.lock").acquire()
        os._exit(9)
    os.waitpid(child, 0)
    (tmp_path / ".maediff-1-of-1.lock").touch()
    with folder_lock(tmp_path, (1, 2)):
        pass
    assert not list(tmp_path.glob(".maediff*"))


def test_the_record_of_a_run_is_written_while_its_folder_is_held(model, scan, tmp_path, monkeypatch):
    held = []
    real = infer_job.write_run
    monkeypatch.setattr(
        infer_job, "write_run", lambda out, record: held.append(list(out.glob(".maediff*"))) or real(out, record)
    )
    infer(model, scan, tmp_path / "out", device="cpu")
    assert [path.name for path in held[0]] == [".maediff-1-of-1.lock"]


# Cohorts


def test_a_name_too_long_and_an_unforeseen_error_fail_one_scan_only(model, scan, tmp_path, monkeypatch):
    scan.rename(scan.with_name("b.nii.gz"))
    (scan.parent / f"{'a' * 240}.nii.gz").write_bytes(b"")
    summary = infer(model, scan.parent, tmp_path / "out", device="cpu")
    assert [outcome.status for outcome in summary.cases] == ["failed", "done"]
    assert "rename the scan" in summary.cases[0].message


def test_what_a_killed_run_left_is_cleared(model, scan, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in (".a_anomaly.0123abcd.nii.gz", ".a_anomaly.0123abcd.json", ".cases.0123abcd.tsv", ".run.0123abcd.json"):
        (out / name).write_bytes(b"half")
    infer(model, scan, out, device="cpu")
    assert not list(out.glob(".*"))


def test_no_identifier_of_a_header_comes_out(model, scan, tmp_path, caplog):
    image = nib.load(scan)
    image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    for field in ("descrip", "db_name", "aux_file", "intent_name", "data_type"):
        image.header[field] = b"DOE^JANE"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE 1970-01-01"))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("dicom", b"DOE^JANE"))
    nib.save(image, scan)
    broken = scan.with_name("b.nii")
    raw = bytearray(gzip.decompress(scan.read_bytes()))
    broken.write_bytes(raw[: len(raw) // 2])
    caplog.set_level("DEBUG")
    summary = infer(model, scan.parent, tmp_path / "out", device="cpu", preview=True)
    assert [outcome.status for outcome in summary.cases] == ["done", "failed"]
    assert "DOE" not in caplog.text + json.dumps([outcome.message for outcome in summary.cases])
    for path in (tmp_path / "out").rglob("*"):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert b"DOE" not in content, path
        assert "DOE" not in path.name


def test_equal_runs_give_equal_bytes_and_batches_agree(model, scan):
    first, second = (load_model(model, "cpu").predict(scan) for _ in range(2))
    assert first.anomaly.tobytes() == second.anomaly.tobytes()
    small = load_model(model, "cpu", ("infer.batch_size=3",)).predict(scan)
    np.testing.assert_allclose(small.anomaly, first.anomaly, atol=1e-4)


def test_open_files_do_not_grow(model, scan, tmp_path):
    def count():
        return len(list(Path("/proc/self/fd").iterdir()))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("only Linux lists open files there")
    infer(model, scan, tmp_path / "out", device="cpu")
    before = count()
    for seed in (1, 2, 3):
        infer(model, scan, tmp_path / "out", device="cpu", seed=seed)
    assert count() == before
