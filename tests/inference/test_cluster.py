"""A cohort on a Dask cluster of real processes gives what one process gives, also where a worker is killed."""

from __future__ import annotations

import os
import signal
import sys

import nibabel as nib
import numpy as np
import pytest

from maediff.calibration import Calibration
from maediff.data.cases import Case, find_cases
from maediff.errors import ConfigError, ModelError
from maediff.files import read_json
from maediff.inference.cluster import ScanTask, connect
from maediff.inference.load import load_model
from maediff.jobs.infer import infer
from maediff.model_folder import update_calibration
from maediff.tables import read_table

AFFINE = np.array([[8.0, 0, 0, -64], [0, 8, 0, -76], [0, 0, 10, -55], [0, 0, 0, 1]])
CALIBRATION = Calibration(0.5, 0.01, 3, 300, {}, (0.2,), "a test").to_dict()
SCANS = 12


@pytest.fixture
def model(make_model, tiny, tmp_path):
    return make_model(tmp_path / "model", tiny("partition.stride=16"), CALIBRATION)


@pytest.fixture
def scans(make_scan, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(SCANS):
        nib.save(make_scan(AFFINE, (17, 20, 12), seed=number), folder / f"s{number:02}.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"this is no scan")
    return folder


def kill_one_worker():
    from distributed import default_client

    pids = default_client().run(os.getpid)
    os.kill(next(iter(pids.values())), signal.SIGKILL)
    return set(pids.values())


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_doubles_nothing(model, scans, tmp_path):
    pytest.importorskip("distributed")
    serial = infer(model, scans, tmp_path / "serial", device="cpu")
    seen = []

    def on_case(outcome):
        seen.append(outcome.case)
        if len(seen) == 3:
            kill_one_worker()

    shared = infer(model, scans, tmp_path / "dask", device="cpu", workers=2, preview=True, on_case=on_case)
    assert (shared.done, shared.skipped, shared.failed) == (SCANS, 0, 1)
    assert sorted(seen) == sorted(outcome.case for outcome in serial.cases)  # each once
    assert [outcome.case for outcome in shared.cases] == [outcome.case for outcome in serial.cases]
    tables = [read_table(tmp_path / name / "cases.tsv").rows for name in ("serial", "dask")]
    for ours, theirs in zip(*tables, strict=True):
        assert {**ours, "seconds": 0, "message": 0} == {**theirs, "seconds": 0, "message": 0}
    for path in (tmp_path / "serial").glob("*.nii.gz"):
        assert path.read_bytes() == (tmp_path / "dask" / path.name).read_bytes(), path.name
    assert len(list((tmp_path / "dask").glob("*_preview.png"))) == SCANS
    assert read_json(tmp_path / "dask" / "run.json")["device"] == "cpu on Dask workers"
    again = infer(model, scans, tmp_path / "dask", device="cpu", workers=1)
    assert (again.done, again.skipped, again.failed) == (0, SCANS, 1)


def test_what_dead_workers_left_of_an_abandoned_scan_is_removed(tmp_path):
    half_written = tmp_path / ".s1_anomaly.0123abcd.nii.gz"
    others = tmp_path / ".s2_anomaly.0123abcd.nii.gz"
    for path in (half_written, others, tmp_path / "s1_reconstruction.nii.gz"):
        path.write_bytes(b"half")
    case = Case("s1", tmp_path / "s1.nii.gz", None, None, "s1", None, None, "s1")
    ScanTask("model", "cpu", (), tmp_path, 0, False, 0, None).abandon(case)
    assert list(tmp_path.iterdir()) == [others]  # another worker may be writing it


def test_a_model_that_changed_since_the_run_began_is_not_used(model, scans, tmp_path):
    """Workers of a scheduler outlive a run, and keep the model that they loaded."""

    def score(**changes):
        task = ScanTask(str(model), "cpu", (), tmp_path / "out", 0, True, 0, None, **changes)
        return task(next(case for case in find_cases(scans) if case.id == "s00"))

    before = load_model(model, "cpu").model_hash
    assert score(model_hash=before).status == "done"
    update_calibration(model, {**CALIBRATION, "threshold": 0.7})
    with pytest.raises(ModelError, match="has changed since the run began"):
        score(model_hash="0" * 64)
    assert score(model_hash=load_model(model, "cpu").model_hash).status == "done"
    assert read_json(tmp_path / "out" / "s00_anomaly.json")["threshold"] == 0.7


def test_without_dask_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'distributed"), connect(None, 2):
        pass


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://x"])
def test_a_scheduler_that_does_not_answer_is_named(address, monkeypatch):
    distributed = pytest.importorskip("distributed")

    def refuse(*_arguments, **_options):
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(ConfigError, match="no Dask scheduler answers"), connect(address, None):
        pass
