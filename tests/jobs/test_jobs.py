"""Whole jobs on a small synthetic cohort: train, calibrate, infer, evaluate."""

from __future__ import annotations

import csv
import logging
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from maediff.config import load_config
from maediff.data.cases import find_cases
from maediff.data.slices import fit_size, healthy_slices
from maediff.data.synthesis import synthesise
from maediff.errors import ConfigError, InputError, ModelError, OutputError
from maediff.evaluation.evaluate import evaluate
from maediff.files import read_json
from maediff.inference.load import load_model
from maediff.jobs.calibrate import calibrate_model
from maediff.jobs.infer import infer
from maediff.jobs.train import split_cases, train
from maediff.locking import folder_lock
from maediff.model_folder import load_model_folder, resolve_model, update_card, verify_model_folder

QUICK = (
    "train.max_steps=2",
    "train.val_every=2",
    "partition.stride=24",
    "train.precision=fp32",
    "infer.precision=fp32",
)


@pytest.fixture(scope="module")
def config():
    return load_config("quick", QUICK)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return synthesise(tmp_path_factory.mktemp("cohort"), subjects=8, lesions=("tumour", "ms"), seed=5, spacing_mm=4.0)


@pytest.fixture(scope="module")
def run(config, table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(config, table, folder, device="cpu")
    return folder


def test_training_leaves_a_whole_run(run, config):
    assert {path.name for path in run.iterdir()} >= {"model", "log.csv", "checkpoints", "config.yaml", "run.json"}
    assert load_config(run / "config.yaml") == config
    stored = load_model_folder(run / "model")
    assert stored.config == config
    assert stored.calibration["n_scans"] == 1
    assert "1 held-out healthy scan of training" in stored.calibration["origin"]
    assert "of 4 subjects to learn from" in stored.card
    assert stored.hash in str(read_json(run / "run.json"))


def test_a_finished_run_resumes_to_the_same_model(run, config, table):
    before = load_model_folder(run / "model")
    train(config, table, run, device="cpu", resume=True)
    assert load_model_folder(run / "model").hash == before.hash


def test_infer_and_evaluate(run, table, tmp_path):
    summary = infer(run, table, tmp_path / "out", split="test", device="cpu")
    assert (summary.done, summary.failed) == (3, 0)
    found = evaluate(tmp_path / "out", table, tmp_path / "metrics", bootstrap=20)
    assert found
    text = (tmp_path / "metrics").glob("*")
    assert {path.suffix for path in text} >= {".csv", ".json"}
    with (tmp_path / "out" / "cases.tsv").open() as file:
        assert len(list(csv.DictReader(file, delimiter="\t"))) == 3


def test_calibration_is_stored_and_needs_healthy_scans(run, table, tmp_path):
    seen = []
    before = load_model_folder(run / "model").hash
    found = calibrate_model(run, table, split="val", device="cpu", on_case=seen.append)
    assert found.n_scans == len(seen) == 1
    predictor = load_model(run, "cpu")
    assert predictor.calibration == found
    assert predictor.model_hash != before
    (case,) = find_cases(table, split="val")
    result = predictor.predict(case.image, case.mask)
    assert np.mean(result.anomaly[result.brain_mask] > found.threshold) <= found.false_positive_rate + 1e-6
    strict = calibrate_model(run, table, split="val", device="cpu", rate=0.001)
    assert strict.false_positive_rate == 0.001
    assert strict.threshold == found.quantiles["0.001"]
    with pytest.raises(InputError, match="have a lesion label"):
        calibrate_model(run, table, split="test", device="cpu")


@pytest.fixture
def model(run, tmp_path):
    return shutil.copytree(run / "model", tmp_path / "model")


def test_a_calibration_does_not_depend_on_the_earlier_one(model, table):
    hashes = []
    for rate in (0.01, 0.3, 0.01):
        calibrate_model(model, table, split="val", device="cpu", rate=rate)
        hashes.append(verify_model_folder(model))
    assert hashes[0] == hashes[2] != hashes[1]


def test_scans_that_cannot_be_read_are_all_named_before_any_is_scored(model, table, tmp_path):
    (case,) = find_cases(table, split="val")
    scans, before = tmp_path / "scans", verify_model_folder(model)
    scans.mkdir()
    shutil.copy(case.image, scans / "a.nii.gz")
    (scans / "b.nii.gz").write_bytes(b"")
    (scans / "c.nii.gz").write_bytes(b"no scan")
    seen = []
    with pytest.raises(InputError, match=r"2 of 3 scans cannot be read, .* remove them from .*: b: .*; c: "):
        calibrate_model(model, scans, device="cpu", on_case=seen.append)
    assert not seen
    assert verify_model_folder(model) == before


def test_two_calibrations_of_a_model_do_not_run_side_by_side(model, table, monkeypatch):
    monkeypatch.setattr("maediff.locking.WAIT_SECONDS", 0)
    with folder_lock(model), pytest.raises(OutputError, match="another maediff run is writing"):
        calibrate_model(model, table, split="val", device="cpu")
    calibrate_model(model, table, split="val", device="cpu")


def test_a_model_that_is_replaced_while_it_is_calibrated_stays_as_it_is(model, table):
    with pytest.raises(ModelError, match="was replaced while it was calibrated"):
        calibrate_model(
            model, table, split="val", device="cpu", rate=0.3, on_case=lambda _case: update_card(model, "# Another\n")
        )
    stored = load_model_folder(model)
    assert stored.card == "# Another\n"
    assert stored.calibration["false_positive_rate"] != 0.3


# Slices


def test_slices_with_a_lesion_are_left_out_and_counted(config, table):
    ill = [case for case in find_cases(table, split="test") if case.label]
    assert len(ill) == 2
    kept = healthy_slices(ill, config.data)
    everything = healthy_slices([replace(case, label=None) for case in ill], config.data)
    assert kept.left_out > 0
    assert everything.left_out == 0
    assert len(kept) + kept.left_out == len(everything)
    assert kept.images.shape[1:] == config.data.size
    assert kept.images.dtype == np.float16
    assert (kept.images[~kept.masks] == -1).all()
    whole = {image.tobytes() for image in everything.images}
    assert all(image.tobytes() in whole for image in kept.images)


def test_slices_are_cached_until_a_scan_changes(config, table, tmp_path):
    cases = find_cases(table, split="val")
    read = []
    for _ in range(2):
        first = healthy_slices(cases, config.data, tmp_path, read.append)
    assert read == [cases[0].id]
    again = healthy_slices(cases, config.data)
    assert (first.images == again.images).all()
    assert (first.masks == again.masks).all()
    assert (first.subjects, first.left_out, first.failed) == (again.subjects, again.left_out, again.failed)
    healthy_slices(cases, config.data.model_copy(update={"clip": 1.2}), tmp_path, read.append)
    assert read == [cases[0].id] * 2


def test_a_scan_that_cannot_be_read_is_left_out_of_training_and_calibration(config, table, tmp_path, caplog):
    good = find_cases(table)
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no scan")
    text = "image,mask,subject,split\n"
    for case, split in ((good[0], "train"), (good[4], "val")):
        text += f"{case.image},{case.mask},{case.subject},{split}\n"
    text += f"{bad},,x,val\n"
    (tmp_path / "cases.csv").write_text(text)
    with caplog.at_level(logging.WARNING):
        train(config, tmp_path / "cases.csv", tmp_path / "run", device="cpu")
    assert "left out bad" in caplog.text
    assert load_model_folder(tmp_path / "run" / "model").calibration["n_scans"] == 1
    assert "1 scans could not be read" in load_model_folder(tmp_path / "run" / "model").card


def test_labelled_scans_alone_give_a_model_without_a_threshold(config, table, tmp_path, caplog):
    ill = [case for case in find_cases(table) if case.label]
    text = "image,mask,label,subject,split\n"
    for case, split in zip(ill, ("train", "val"), strict=True):
        text += f"{case.image},{case.mask},{case.label},{case.subject},{split}\n"
    (tmp_path / "cases.csv").write_text(text)
    with caplog.at_level(logging.INFO, "maediff"):
        folder = train(config, tmp_path / "cases.csv", tmp_path / "run", device="cpu")
    assert "slices with a lesion label left out" in caplog.text
    assert "no held-out scan is wholly healthy" in caplog.text
    assert load_model_folder(folder).calibration is None


def test_nothing_to_train_on_is_named(config, tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), tmp_path / "zero.nii.gz")
    with pytest.raises(InputError, match="none of 1 scans gave a healthy slice"):
        healthy_slices(find_cases(tmp_path / "zero.nii.gz"), config.data)


def test_slices_are_cropped_and_padded_around_their_centre():
    stack = np.arange(2 * 5 * 4).reshape(2, 5, 4)
    fitted = fit_size(stack, (3, 7), -1)
    assert fitted.shape == (2, 3, 7)
    assert (fitted[:, :, 1:5] == stack[:, 1:4]).all()
    assert (fitted[:, :, [0, 5, 6]] == -1).all()
    for have in range(1, 9):
        assert fit_size(np.zeros((1, have, 4)), (4, 4), 0).shape == (1, 4, 4)


# Splits


def test_splits_keep_subjects_apart(config, table):
    cases = find_cases(table)
    learn, held_out = split_cases(cases, config, None)
    assert {case.split for case in learn} == {"train"}
    assert {case.split for case in held_out} == {"val"}
    twice = [replace(case, split=None, id=f"{case.id}-{k}") for case in cases for k in (1, 2)]
    learn, held_out = split_cases(twice, config, None)
    assert len(held_out) == 2
    assert len(learn) + len(held_out) == len(twice)
    assert not {case.subject for case in learn} & {case.subject for case in held_out}
    assert split_cases(twice, config, None) == (learn, held_out)
    with pytest.raises(InputError, match="at least 2 are needed"):
        split_cases(twice[:2], config, None)
    with pytest.raises(InputError, match="no scan has split 'extra'"):
        split_cases(cases, config, "extra")


@pytest.mark.parametrize("names", [("Train", "Val", "Test"), ("training", "validation", "test"), ("TRAIN", "DEV", "x")])
def test_only_training_scans_are_learned_from_however_splits_are_written(config, table, names):
    written = dict(zip(("train", "val", "test"), names, strict=True))
    cases = [replace(case, split=written[case.split]) for case in find_cases(table)]
    learn, held_out = split_cases(cases, config, None)
    assert {case.split for case in learn} == {names[0]}
    assert {case.split for case in held_out} == {names[1]}


def test_splits_of_which_none_is_for_training_are_refused(config, table):
    """They may be for testing; only what is asked for is learned from."""
    cases = [replace(case, split="fold2" if case.split == "train" else case.split) for case in find_cases(table)]
    with pytest.raises(InputError, match=r"other splits here: fold2, test\. Rename .* or choose it with --split"):
        split_cases(cases, config, None)
    learn, held_out = split_cases(cases, config, "fold2")
    assert {case.split for case in learn} == {"fold2"}
    assert {case.split for case in held_out} == {"val"}
    unnamed = [replace(case, split=None if case.split == "fold2" else case.split) for case in cases]
    with pytest.raises(InputError, match="other splits here: "):
        split_cases(unnamed, config, None)


def test_all_but_the_validation_scans_are_learned_from_if_no_other_split_is_named(config, table):
    cases = [replace(case, split=case.split if case.split == "val" else None) for case in find_cases(table)]
    learn, held_out = split_cases(cases, config, None)
    assert {case.split for case in held_out} == {"val"}
    assert len(learn) + len(held_out) == len(cases)
    with pytest.raises(InputError, match="no scan is left to learn from; splits here: val"):
        split_cases(held_out, config, None)


def test_a_subject_in_training_and_in_validation_is_refused(config, table):
    cases = find_cases(table)
    (held_out, *_) = (case for case in cases if case.split == "val")
    again = replace(held_out, id="again", split="train")
    with pytest.raises(InputError, match=f"subjects {held_out.subject} have scans both to learn from and held out"):
        split_cases([*cases, again], config, None)
    split_cases([*cases, replace(again, split="test")], config, None)  # not learned from


def test_the_packaged_model_is_calibrated_as_a_copy_alone(tmp_path):
    """The installation is shared by all who use it."""
    before = (resolve_model("heads") / "calibration.json").read_bytes()
    with pytest.raises(ConfigError, match="copy it first"):
        calibrate_model("heads", tmp_path, device="cpu")
    assert (resolve_model("heads") / "calibration.json").read_bytes() == before
