"""Cohorts on disk: names, sidecars, failures, skipping and the command line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from maediff.cli import app

from maediff.calibration import Calibration
from maediff.errors import ConfigError, InputError, OutputError
from maediff.files import read_json
from maediff.inference.cohort import _one_line
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.jobs.infer import infer, plan_inference
from maediff.model_folder import update_calibration
from maediff.notes import read_notes, warnings_of
from maediff.report import write_report
from maediff.volume import write_like

AFFINE = np.array([[8.0, 0, 0, -64], [0, 8, 0, -76], [0, 0, 10, -55], [0, 0, 0, 1]])
SHAPE = (17, 20, 12)
CALIBRATION = Calibration(0.5, 0.01, 3, 300, {}, (0.2,), "a test").to_dict()


@pytest.fixture
def model(make_model, tiny, tmp_path):
    return make_model(tmp_path / "model", tiny("partition.stride=16"), CALIBRATION)


@pytest.fixture
def scans(make_scan, tmp_path):
    """A folder of two good scans and one that is not NIfTI."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, name in enumerate(("a", "c")):
        nib.save(make_scan(AFFINE, SHAPE, seed=number), folder / f"{name}.nii.gz")
    (folder / "b.nii.gz").write_bytes(b"this is no scan")
    return folder


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_one_bad_scan_fails_with_its_reason_and_the_others_are_done(model, scans, tmp_path):
    seen = []
    summary = infer(model, scans, tmp_path / "out", device="cpu", preview=True, on_case=seen.append)
    assert (summary.done, summary.skipped, summary.failed) == (2, 0, 1)
    assert [outcome.case for outcome in seen] == ["a", "b", "c"]
    table = rows(tmp_path / "out" / "cases.tsv")
    assert list(table[0]) == ["case", "status", "score", "anomalous_volume_ml", "seconds", "message", "warnings"]
    assert [row["status"] for row in table] == ["done", "failed", "done"]
    assert "b.nii.gz" in table[1]["message"]
    assert float(table[0]["score"]) > 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    maps = ("anomaly.nii.gz", "reconstruction.nii.gz", "anomaly-mask.nii.gz")
    kinds = (*maps, "anomaly.json", "preview.png", "components.tsv")
    assert names == {f"{stem}_{kind}" for stem in "ac" for kind in kinds} | {"cases.tsv", "run.json"}
    sidecar = read_json(tmp_path / "out" / "a_anomaly.json")
    assert (sidecar["threshold"], sidecar["seed"], sidecar["case"]) == (0.5, 0, "a")
    assert set(sidecar["outputs"]) == {"anomaly", "reconstruction", "mask"}
    run = read_json(tmp_path / "out" / "run.json")
    assert "infer" in json.dumps(run)
    assert sidecar["model_hash"] in json.dumps(run)


def test_finished_scans_are_skipped_until_something_changes(model, scans, make_scan, tmp_path):
    (scans / "b.nii.gz").unlink()
    out = tmp_path / "out"

    def again(**options):
        summary = infer(model, scans, out, device="cpu", **options)
        return summary.done, summary.skipped, summary.failed

    assert again() == (2, 0, 0)
    first = rows(out / "cases.tsv")
    assert again() == (0, 2, 0)
    assert [row["score"] for row in rows(out / "cases.tsv")] == [row["score"] for row in first]
    assert [case.action for case in plan_inference(model, scans, out)] == ["skip", "skip"]
    assert again(overwrite=True) == (2, 0, 0)
    assert again(seed=1) == (2, 0, 0)
    assert again(seed=1) == (0, 2, 0)
    assert again(seed=1, accept=("ct",)) == (2, 0, 0)  # what is accepted may change what is computed
    assert [case.action for case in plan_inference(model, scans, out, seed=1, accept=("ct",))] == ["skip", "skip"]
    assert again(seed=1) == (2, 0, 0)
    (out / "a_reconstruction.nii.gz").unlink()
    assert again(seed=1) == (1, 1, 0)
    nib.save(make_scan(AFFINE, SHAPE, seed=9), scans / "c.nii.gz")  # another scan under the same name
    assert again(seed=1) == (1, 1, 0)
    update_calibration(model, {**CALIBRATION, "threshold": 0.7})  # another model
    assert [case.action for case in plan_inference(model, scans, out, seed=1)] == ["infer", "infer"]
    assert again(seed=1) == (2, 0, 0)
    assert read_json(out / "a_anomaly.json")["threshold"] == 0.7
    assert again(seed=1, overrides=["infer.batch_size=2"]) == (2, 0, 0)  # another configuration


def test_a_given_threshold_makes_the_mask_and_is_part_of_what_was_asked_for(model, scans, tmp_path):
    out = tmp_path / "out"
    (scans / "b.nii.gz").unlink()
    assert infer(model, scans, out, device="cpu", threshold=0.1).done == 2
    sidecar, anomaly = read_json(out / "a_anomaly.json"), nib.load(out / "a_anomaly.nii.gz").get_fdata()
    assert (sidecar["threshold"], sidecar["threshold_given"]) == (0.1, 0.1)
    assert "given as 0.1" in sidecar["threshold_origin"]
    assert (nib.load(out / "a_anomaly-mask.nii.gz").get_fdata() == (anomaly > 0.1)).all()
    assert infer(model, scans, out, device="cpu", threshold=0.1).skipped == 2
    assert [case.action for case in plan_inference(model, scans, out, threshold=0.1)] == ["skip", "skip"]
    assert [case.action for case in plan_inference(model, scans, out)] == ["infer", "infer"]
    update_calibration(model, {**CALIBRATION, "quantiles": {"0.001": 0.2}})
    assert infer(model, scans, out, device="cpu", rate=0.001).done == 2
    assert read_json(out / "a_anomaly.json")["threshold"] == 0.2
    with pytest.raises(ConfigError, match=r"recorded: 0\.001"):
        infer(model, scans, out, device="cpu", rate=0.05)


def test_another_threshold_or_smallest_finding_keeps_the_maps(model, scans, tmp_path, monkeypatch):
    scan, again, fresh = scans / "a.nii.gz", tmp_path / "again", tmp_path / "fresh"
    wanted = {"device": "cpu", "threshold": 0.15, "overrides": ("score.min_size_mm3=2000",)}
    infer(model, scan, fresh, **wanted)
    infer(model, scan, again, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "_maps", None)  # nothing may be computed again
        assert infer(model, scan, again, **wanted).done == 1
        assert infer(model, scan, again, **wanted).skipped == 1
    for path in fresh.glob("a_*"):
        if path.suffix != ".json":
            assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    one, other = (read_json(folder / "a_anomaly.json") for folder in (fresh, again))
    for sidecar in (one, other):
        del sidecar["seconds"], sidecar["written_in"], sidecar["image"]
    assert one == other
    assert infer(model, scan, again, device="cpu", seed=1).done == 1  # another seed, other maps
    assert (again / "a_anomaly.nii.gz").read_bytes() != (fresh / "a_anomaly.nii.gz").read_bytes()


def test_a_run_with_nothing_to_do_loads_no_network(model, scans, tmp_path):
    out = tmp_path / "out"
    infer(model, scans / "a.nii.gz", out, device="cpu")
    before = (out / "run.json").read_bytes()
    arguments = ["infer", "-m", str(model), "-i", str(scans / "a.nii.gz"), "-o", str(out), "--json"]
    code = (
        f"import sys\nfrom maediff.cli import app\ntry:\n    app({arguments!r})\nexcept SystemExit as end:\n"
        "    print('MODULES', end.code, *sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    printed, modules = result.stdout.split("MODULES")
    assert json.loads(printed)["skipped"] == 1
    assert modules.split()[0] == "0"
    assert {"torch", "monai", "sklearn", "accelerate"}.isdisjoint(modules.split())
    assert [row["status"] for row in rows(out / "cases.tsv")] == ["skipped"]
    assert (out / "run.json").read_bytes() == before


def test_progress_within_a_scan(model, scans, tmp_path):
    seen = []
    infer(model, scans / "a.nii.gz", tmp_path / "out", device="cpu", on_batch=lambda *told: seen.append(told))
    assert {case for case, _, _ in seen} == {"a"}
    (total,) = {windows for _, _, windows in seen}
    done = [count for _, count, _ in seen]
    assert done == sorted(done)
    assert done[-1] == total > 0


def test_a_model_without_calibration_writes_no_mask_and_leaves_no_old_one(model, make_model, tiny, scans, tmp_path):
    out = tmp_path / "out"
    infer(model, scans / "a.nii.gz", out, device="cpu")
    assert (out / "a_anomaly-mask.nii.gz").is_file()
    plain = make_model(tmp_path / "plain", tiny("partition.stride=16"))
    (outcome,) = infer(plain, scans / "a.nii.gz", out, device="cpu").cases
    assert outcome.anomalous_volume_ml is None
    assert not (out / "a_anomaly-mask.nii.gz").exists()
    assert read_json(out / "a_anomaly.json")["threshold"] is None
    assert rows(out / "cases.tsv")[0]["anomalous_volume_ml"] == "n/a"


def test_a_scan_that_fails_leaves_no_map_of_an_earlier_run(model, scans, tmp_path):
    out = tmp_path / "out"
    infer(model, scans / "a.nii.gz", out, device="cpu")
    (scans / "a.nii.gz").write_bytes(b"broken by now")
    assert infer(model, scans / "a.nii.gz", out, device="cpu").failed == 1
    assert {path.name for path in out.iterdir()} == {"cases.tsv", "run.json"}


def test_an_output_folder_that_cannot_be_written_stops_the_run(model, scans, tmp_path):
    (tmp_path / "out").write_text("a file is in the way")
    with pytest.raises(OutputError, match="cannot write"):
        infer(model, scans, tmp_path / "out", device="cpu")


def test_shards_have_their_own_tables(model, scans, tmp_path):
    for k in (1, 2):
        infer(model, scans, tmp_path / "out", device="cpu", shard=(k, 2))
    first, second = ({row["case"] for row in rows(tmp_path / "out" / f"cases-{k}-of-2.tsv")} for k in (1, 2))
    assert first | second == {"a", "b", "c"}
    assert not first & second


def test_bids_scans_get_derivative_names(model, make_scan, tmp_path):
    root, out = tmp_path / "bids", tmp_path / "out"
    (root / "sub-01" / "ses-2" / "anat").mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    nib.save(make_scan(AFFINE, SHAPE), root / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_T2w.nii.gz")
    assert infer(model, root, out, device="cpu").done == 1
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    stem = "sub-01/ses-2/anat/sub-01_ses-2"
    assert files == {
        f"{stem}_desc-anomaly_T2w.nii.gz",
        f"{stem}_desc-anomaly_T2w.json",
        f"{stem}_desc-reconstruction_T2w.nii.gz",
        f"{stem}_label-anomaly_mask.nii.gz",
        f"{stem}_desc-components_T2w.tsv",
        "cases.tsv",
        "run.json",
        "dataset_description.json",
        ".bidsignore",
        "README.md",
        "T2w.json",
        "mask.json",
    }
    assert read_json(out / "dataset_description.json")["DatasetType"] == "derivative"
    assert infer(model, root, out, device="cpu").skipped == 1


def test_the_command_line_writes_what_the_api_returns(model, scans, tmp_path):
    out = tmp_path / "out"
    arguments = ["infer", "-m", model, "-i", scans / "a.nii.gz", "-o", out, "--device", "cpu", "--seed", 3]
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert outcome.exit_code == 0, outcome.output
    result = load_model(model, "cpu").predict(scans / "a.nii.gz", seed=3)
    maps = {"anomaly": result.anomaly, "reconstruction": result.reconstruction}
    for name, data in maps.items():
        path = write_like(tmp_path / f"{name}.nii.gz", data, result.volume)
        assert path.read_bytes() == (out / f"a_{name}.nii.gz").read_bytes()
    mask = write_like(tmp_path / "mask.nii.gz", result.anomaly_mask, result.volume, np.uint8)
    assert mask.read_bytes() == (out / "a_anomaly-mask.nii.gz").read_bytes()
    sidecar = read_json(out / "a_anomaly.json")
    assert sidecar["score"] == result.score
    assert sidecar["model"] == {"trained_on": "not stated", "finds": "not stated", "misses": "not stated"}
    assert result.standing.endswith("of 1 healthy scan")
    assert f"score {result.score:.3f}, {result.standing}, " in outcome.output
    first = result.components().iloc[0]
    place = " ".join(str(round(first[f"centre_{axis}_mm"])) for axis in "xyz")
    assert f"the largest finding {first['volume_ml']:.1f} ml" in outcome.output
    assert f"at RAS {place} mm" in outcome.output


def test_a_suspended_calibration_is_called_suspended(model, scans, tmp_path):
    out = tmp_path / "out"
    overrides = ("score.median_mm=12",)
    (outcome,) = infer(model, scans / "a.nii.gz", out, device="cpu", overrides=overrides).cases
    assert outcome.standing == "calibration suspended"
    (again,) = infer(model, scans / "a.nii.gz", out, device="cpu", overrides=overrides).cases
    assert (again.status, again.standing) == ("skipped", "calibration suspended")
    assert "median_mm" in read_json(out / "a_anomaly.json")["calibration_suspended"]
    assert "median_mm" in read_json(out / "run.json")["calibration_suspended"]
    result = load_model(model, "cpu", overrides).predict(scans / "a.nii.gz")
    assert "calibration suspended" in repr(result)
    with pytest.raises(InputError, match="calibration is suspended"):
        result.image("anomaly_mask")
    text = write_report(out, tmp_path / "r.html").read_text()
    assert "calibration is suspended, so there are no anomaly masks" in text
    assert "The model has no threshold yet" not in text


def test_what_prepare_noted_reaches_sidecar_and_table(model, scans, tmp_path):
    (scans / "b.nii.gz").unlink()
    notes = ["the brain mask is approximate: look at it"]
    for name, affine in (("a", AFFINE), ("c", AFFINE + np.eye(4))):  # c: the record is that of another grid
        record = {"prepared_grid": {"affine": affine.tolist()}, "notes": notes}
        (scans / f"{name}_prepare.json").write_text(json.dumps(record))
    out = tmp_path / "out"
    infer(model, scans, out, device="cpu")
    assert notes[0] in read_json(out / "a_anomaly.json")["notes"]
    assert notes[0] not in read_json(out / "c_anomaly.json")["notes"]
    assert notes[0] in warnings_of(read_notes(read_json(out / "a_anomaly.json")))
    table = {row["case"]: row["message"] for row in rows(out / "cases.tsv")}
    assert notes[0] in table["a"]
    assert notes[0] not in table["c"]
    warned = {row["case"]: int(row["warnings"]) for row in rows(out / "cases.tsv")}
    assert warned == {name: len(warnings_of(read_notes(read_json(out / f"{name}_anomaly.json")))) for name in "ac"}
    assert warned["a"] > 0


def test_a_brain_mask_of_the_user_beside_the_scan_stays(model, make_scan, tmp_path):
    """Also where results go into the scan's own folder, from the command and from Python."""
    folder = tmp_path / "mine"
    folder.mkdir()
    scan = make_scan(AFFINE, SHAPE)
    nib.save(scan, folder / "a.nii.gz")
    mask = folder / "a_brainmask.nii.gz"
    nib.save(nib.Nifti1Image((scan.get_fdata() > 0).astype(np.uint8), scan.affine, scan.header), mask)
    before = mask.read_bytes()
    assert infer(model, folder / "a.nii.gz", folder, device="cpu").done == 1
    assert infer(model, folder / "a.nii.gz", folder, device="cpu", overwrite=True).done == 1
    load_model(model, "cpu").predict(folder / "a.nii.gz", mask).save(folder)
    assert mask.read_bytes() == before


def test_results_outlive_scans_that_are_away(model, scans, tmp_path):
    out = tmp_path / "out"
    (scans / "b.nii.gz").unlink()
    table = tmp_path / "cases.csv"
    table.write_text(f"image\n{scans / 'a.nii.gz'}\n{scans / 'c.nii.gz'}\n")
    assert infer(model, table, out, device="cpu").done == 2
    maps = {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}
    scans.rename(tmp_path / "unmounted")
    again = infer(model, table, out, device="cpu")
    assert again.failed == 2
    assert {path.name: path.read_bytes() for path in out.glob("*.nii.gz")} == maps
    (tmp_path / "unmounted").rename(scans)
    assert infer(model, table, out, device="cpu").skipped == 2


def test_another_scan_of_the_same_name_replaces_nothing_unasked(model, make_scan, tmp_path):
    out = tmp_path / "out"
    for number in (1, 2):
        (tmp_path / f"patient{number}").mkdir()
        nib.save(make_scan(AFFINE, SHAPE, seed=number), tmp_path / f"patient{number}" / "FLAIR.nii.gz")
    assert infer(model, tmp_path / "patient1" / "FLAIR.nii.gz", out, device="cpu").done == 1
    kept = (out / "FLAIR_anomaly.nii.gz").read_bytes()
    second = infer(model, tmp_path / "patient2" / "FLAIR.nii.gz", out, device="cpu")
    assert second.failed == 1
    assert "results of another scan of this name" in second.cases[0].message
    assert (out / "FLAIR_anomaly.nii.gz").read_bytes() == kept
    asked = infer(model, tmp_path / "patient2" / "FLAIR.nii.gz", out, device="cpu", overwrite=True)
    assert asked.done == 1
    assert (out / "FLAIR_anomaly.nii.gz").read_bytes() != kept


def test_moved_scans_are_not_scored_again_and_sidecars_learn_where_they_are(model, scans, tmp_path):
    out = tmp_path / "out"
    (scans / "b.nii.gz").unlink()
    infer(model, scans, out, device="cpu")
    moved = scans.rename(tmp_path / "archive")
    assert infer(model, moved, out, device="cpu").skipped == 2
    assert "archive" in read_json(out / "a_anomaly.json")["image"]


def test_results_do_not_go_into_the_bids_data_set_itself(model, tmp_path):
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids" / "dataset_description.json").write_text('{"Name": "mine", "BIDSVersion": "1.8.0"}')
    with pytest.raises(InputError, match="derivatives"):
        infer(model, tmp_path / "bids", tmp_path / "bids", device="cpu")
    assert "mine" in (tmp_path / "bids" / "dataset_description.json").read_text()


def test_a_long_reason_does_not_make_the_table_unreadable():
    assert len(_one_line(ValueError("x" * 9000))) < 1100
