"""BIDS data sets in and derivatives out, held against bidsschematools (names) and the official validator (all)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from maediff.cli import app

from maediff.calibration import Calibration
from maediff.data.bids import SPACE, BidsName
from maediff.data.cases import find_cases, search_cases
from maediff.errors import InputError
from maediff.evaluation.outputs import read_outputs
from maediff.evaluation.reference import Reference
from maediff.files import read_json
from maediff.inference.cohort import Outputs
from maediff.jobs.infer import infer, plan_inference
from maediff.rawhead import PrepareSettings, prepare_cohort, restore_cohort
from maediff.report import write_report

AFFINE = np.array([[8.0, 0, 0, -64], [0, 8, 0, -76], [0, 0, 10, -55], [0, 0, 0, 1]])
SHAPE = (17, 20, 12)
CALIBRATION = Calibration(0.5, 0.01, 3, 300, {}, (0.2,), "a test").to_dict()
VALIDATOR = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent)) or shutil.which(
    "bids-validator-deno"
)
NAMES = (
    "sub-01/anat/sub-01_T1w",
    "sub-01/anat/sub-01_FLAIR",
    "sub-02/ses-a/anat/sub-02_ses-a_acq-3d_run-1_T2w",
    "sub-02/ses-a/anat/sub-02_ses-a_acq-3d_part-phase_T2w",
)


@pytest.fixture
def raw(tmp_path, make_scan):
    """A raw data set of three scans and a phase image."""
    root = tmp_path / "raw"
    for name in NAMES:
        path = root / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(make_scan(AFFINE, SHAPE), path)
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(
            '{"Units": "rad"}' if "phase" in name else "{}"
        )
    description = {"Name": "x", "BIDSVersion": "1.9.0", "DatasetType": "raw"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "README").write_text("A data set of a test, with phantoms of ellipsoids alone, and no people in it.")
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t40\nsub-02\t60\n")
    return root


@pytest.fixture
def unread(monkeypatch):
    """Fail whoever reads participants.tsv."""

    def refuse(folder):
        raise AssertionError(f"{folder}/participants.tsv is read")

    for module in ("maediff.data.cases", "maediff.evaluation.reference"):
        monkeypatch.setattr(f"{module}.read_participants", refuse)


def test_participants_are_read_only_to_choose_among_them(raw, unread, make_model, tiny, tmp_path):
    model = make_model(tmp_path / "model", tiny(), CALIBRATION)
    assert len(plan_inference(model, raw, tmp_path / "out")) == 3
    for asked in ({"split": "train"}, {}):  # a training leaves out the scans of a test split
        with pytest.raises(AssertionError, match=r"participants.tsv is read"):
            search_cases(raw, **asked)
    table = raw / "reference.csv"
    table.write_text("image,label\nsub-01/anat/sub-01_T1w.nii.gz,\n")
    Reference(table)
    with pytest.raises(AssertionError, match=r"participants.tsv is read"):
        Reference(table, people=True)


@pytest.fixture
def derived(raw, make_model, tiny, tmp_path):
    """What infer makes of it, with previews and a report beside the maps."""
    model = make_model(tmp_path / "model", tiny("partition.stride=16", "infer.draws=2"), CALIBRATION)
    assert infer(model, raw, tmp_path / "out", device="cpu", preview=True).done == 3
    (tmp_path / "out" / "report.html").write_text("a report")
    return tmp_path / "out"


def errors(root):
    """Errors that the validator has with a data set and the derivatives inside it."""
    done = subprocess.run([VALIDATOR, str(root), "--json", "-r"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    parts = [found, *found.get("derivativesSummary", {}).values()]
    issues = [issue for part in parts for issue in part["issues"]["issues"] if issue["severity"] == "error"]
    return [(issue["code"], issue.get("subCode"), issue.get("location")) for issue in issues]


@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is not installed")
class TestValidator:
    def test_it_finds_errors_at_all(self, raw):
        assert errors(raw) == []
        (raw / "sub-01" / "anat" / "sub-01_anomaly.nii.gz").write_bytes(b"")
        assert [location for _, _, location in errors(raw)]

    def test_the_derivatives_pass(self, derived):
        assert errors(derived) == []


def schema_names():
    """Regular expressions of all names that imaging derivatives may have."""
    rules = pytest.importorskip("bidsschematools.rules")
    schema = pytest.importorskip("bidsschematools.schema").load_schema()
    return rules.regexify_filename_rules(schema.rules.files.deriv.imaging, schema, level=1)


def test_names_are_those_of_the_schema(raw):
    known = schema_names()
    for case in find_cases(raw):
        outputs = asdict(Outputs.of(case, Path()))
        for kind in ("anomaly", "reconstruction", "uncertainty", "mask", "sidecar"):
            assert any(re.fullmatch(rule["regex"], str(outputs[kind])) for rule in known), outputs[kind]


def test_contrasts_of_one_session_do_not_overwrite_each_other(derived):
    masks = sorted(str(path.relative_to(derived)) for path in derived.rglob("*_mask.nii.gz"))
    assert masks == [
        "sub-01/anat/sub-01_label-anomaly_desc-FLAIR_mask.nii.gz",
        "sub-01/anat/sub-01_label-anomaly_desc-T1w_mask.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_acq-3d_run-1_label-anomaly_mask.nii.gz",
    ]
    cases = {case.case: case.files["mask"] for case in read_outputs(derived)}
    assert len(set(cases.values())) == 3


def test_the_name_of_a_mask_does_not_depend_on_the_selection(raw):
    (case,) = find_cases(raw, channel="flair")
    assert not case.bids.alone


def test_what_is_derived_is_told(derived):
    description = read_json(derived / "dataset_description.json")
    assert (description["DatasetType"], description["GeneratedBy"][0]["Name"]) == ("derivative", "maediff")
    assert read_json(derived / "FLAIR.json")["SkullStripped"] is True
    assert "Research use only" in (derived / "README.md").read_text()


class TestPrepared:
    @pytest.fixture
    def native(self, raw, make_model, tiny, tmp_path):
        """Raw scans, prepared, inferred, and their maps brought back: two folders of derivatives."""
        model = make_model(tmp_path / "model", tiny("partition.stride=16"), CALIBRATION)
        settings = PrepareSettings(bias="none", register="none", spacing_mm=7.0)
        assert prepare_cohort(raw, tmp_path / "prepared", settings, channel="flair").count("done") == 1
        infer(model, tmp_path / "prepared", tmp_path / "out", device="cpu")
        restore_cohort(tmp_path / "out", tmp_path / "prepared", tmp_path / "native")
        return tmp_path / "native"

    def test_maps_of_prepared_scans_are_derivatives_too(self, native, tmp_path):
        stem = "sub-01/anat/sub-01"
        for folder in (tmp_path / "out", native):
            assert (folder / f"{stem}_desc-anomaly_FLAIR.nii.gz").is_file()
            assert (folder / f"{stem}_label-anomaly_desc-FLAIR_mask.nii.gz").is_file()
            assert VALIDATOR is None or errors(folder) == []

    def test_what_is_restored_is_an_output_folder_on_the_raw_voxels(self, raw, native, tmp_path):
        (before,), (after,) = read_outputs(tmp_path / "out"), read_outputs(native)
        assert after.image == raw / "sub-01/anat/sub-01_FLAIR.nii.gz"
        assert nib.load(after.files["anomaly"]).shape == nib.load(after.image).shape
        assert (after.score, after.threshold) == (before.score, before.threshold)
        mask = nib.load(after.files["mask"])
        volume_ml = np.count_nonzero(mask.dataobj) * np.prod(mask.header.get_zooms()) / 1000
        assert after.volume_ml == pytest.approx(volume_ml, rel=1e-5)
        assert "FLAIR" in write_report(native, tmp_path / "report.html").read_text()

    def test_a_template_is_named(self, raw):
        known = schema_names()
        for case in find_cases(raw):
            moved = replace(case, bids=case.bids.in_space(SPACE))
            name = str(Outputs.of(moved, Path()).anomaly)
            assert f"_space-{SPACE}_" in name
            assert any(re.fullmatch(rule["regex"], name) for rule in known)
            assert BidsName.parse(moved.bids.scan) == replace(moved.bids, alone=False)

    @pytest.mark.parametrize("text", ["sub-01/anat/../../x_T1w", "/sub-01/anat/sub-01_T1w", "sub-01/func/sub-01_bold"])
    def test_a_name_that_leads_elsewhere_is_refused(self, text):
        with pytest.raises(InputError, match="not the BIDS path of a scan"):
            BidsName.parse(text)


class TestApp:
    """``maediff bids`` as job scripts call it."""

    @pytest.fixture
    def start(self, raw, make_model, tiny, tmp_path):
        model = make_model(tmp_path / "model", tiny("partition.stride=16"), CALIBRATION)
        runner = CliRunner()

        def run(*arguments):
            words = ["bids", str(raw), str(tmp_path / "out"), *arguments, "-m", str(model), "-d", "cpu"]
            return runner.invoke(app, words, prog_name="maediff")

        return run

    def test_one_participant_per_job_then_the_group(self, start, tmp_path):
        for label in ("02", "sub-01"):
            assert start("participant", "--participant-label", label).exit_code == 0
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names >= {"cases-sub-01.tsv", "cases-sub-02.tsv", "dataset_description.json", "run.json"}
        assert {case.case for case in read_outputs(tmp_path / "out")} == {
            "sub-01_T1w",
            "sub-01_FLAIR",
            "sub-02_ses-a_acq-3d_run-1_T2w",
        }
        again = start("participant", "--participant-label", "01", "02")
        assert "0 done, 3 skipped, 0 failed" in again.stderr
        group = start("group")
        assert group.exit_code == 0, group.stderr
        assert "sub-01_FLAIR" in (tmp_path / "out" / "report.html").read_text()

    def test_sessions_and_unknown_labels(self, start, tmp_path):
        wrong = start("participant", "--participant_label", "03")
        assert wrong.exit_code == 1
        assert "sub-03" in wrong.stderr
        assert "sub-01, sub-02" in wrong.stderr
        assert start("participant", "--session-id", "a").exit_code == 0
        assert [case.case for case in read_outputs(tmp_path / "out")] == ["sub-02_ses-a_acq-3d_run-1_T2w"]
