"""The cross-validation: its folds, its statistics and its page are what they say; no cell is computed here."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from maediff.config import load_config, override
from maediff.data.cases import Case
from maediff.errors import InputError
from maediff.evaluation import bootstrap_ci

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("benchmarks_importable")


def module(name):
    return import_module(f"benchmarks.quality.cross_validation.{name}")


def cases(count=80):
    names = [f"p{i:02}" for i in range(count)]
    return [
        Case(n, Path(f"{n}.nii.gz"), Path(f"{n}_mask.nii.gz"), Path(f"{n}_l.nii.gz"), n, None, "x", n) for n in names
    ]


def subjects(rows, split):
    return {row["subject"] for row in rows if row["split"] == split}


@pytest.mark.parametrize("count", [80, 78])
def test_every_patient_is_tested_once_and_never_trains_or_validates_in_that_fold(count):
    folds = module("folds")
    tested = []
    for fold in range(folds.FOLDS):
        rows = folds.split(cases(count), fold)
        train, val, test = (subjects(rows, name) for name in ("train", "val", "test"))
        assert not train & val | train & test | val & test
        assert len(train | val | test) == len(rows) == count
        assert len(val) == folds.VALIDATION
        assert len(test) in {count // 5, count // 5 + 1}
        tested += test
    assert sorted(tested) == [case.subject for case in cases(count)]


def test_folds_depend_on_the_names_alone():
    folds = module("folds")
    assert folds.split(cases(), 2) == folds.split(cases()[::-1], 2)
    drawn = [int(name[1:]) for name in subjects(folds.split(cases(), 0), "test")]
    assert sorted(drawn) != list(range(16))  # shuffled


def test_each_hypothesis_is_its_settings_and_nothing_else():
    folds, rows = module("folds"), import_module("benchmarks.quality.table.rows")
    data = folds.data_set(cases(), 0, 20.0)
    of = {row.name: rows.config_of(data, row) for row in folds.COMPARED}
    base = load_config(data.config)
    assert of["maediff"].model == base.model
    for name, source, settings in (
        ("maediff-all", "maediff", ["train.outside_weight=1"]),
        ("maediff-gate", "maediff", ["model.gate=true"]),
        ("maediff-all-gate", "maediff", ["train.outside_weight=1", "model.gate=true"]),
        ("ddpm-gate", "ddpm-lesions", ["model.gate=true"]),
        ("pddpm-gate", "pddpm-lesions", ["model.gate=true"]),
        ("ddpm-no-noise", "ddpm-lesions", list(folds.NO_NOISE)),
        ("maediff-windows", "maediff", ["train.outside_weight=1", *folds.NO_NOISE, *folds.MANY]),
    ):
        method = f"method={of[source].method}"
        assert of[name] == load_config(data.config, [method, *settings])
        assert of[source] == load_config(data.config, [method])
    hidden = rows.config_of(data, next(row for row in folds.COMPARED if row.name == "maediff-hidden"))
    seen = of["maediff-windows"].diffusion
    assert hidden.diffusion == seen.model_copy(update={"hidden_share": 0.5})
    assert hidden.model_copy(update={"diffusion": seen}) == of["maediff-windows"]
    both = rows.config_of(data, next(row for row in folds.COMPARED if row.name == "maediff-hidden-mirror"))
    assert both == hidden.model_copy(update={"model": hidden.model.model_copy(update={"mirror": True})})
    own = [row for row in folds.COMPARED if len(row.timesteps) > 1 and "hidden" not in row.name and not row.trained_as]
    assert len({row.timesteps for row in own}) == 1


def test_rows_that_only_test_differently_use_the_training_of_another():
    folds, rows = module("folds"), import_module("benchmarks.quality.table.rows")
    data = folds.data_set(cases(), 0, 20.0)
    of = {row.name: row for row in folds.COMPARED}
    tested = [row for row in folds.COMPARED if row.trained_as]
    assert len(tested) == 4
    for row in tested:
        config = rows.config_of(data, row)
        assert config == rows.config_of(data, of[row.trained_as])
        changed = override(config, row.at_test)
        assert changed.model_copy(update={"infer": config.infer, "score": config.score}) == config
        assert changed.infer.draws > 1
        assert set(row.timesteps) < set(of[row.trained_as].timesteps)


def test_other_masks_are_taken_by_name_and_must_be_there(tmp_path):
    folds = module("folds")
    data, other = tmp_path / "data" / "lgg_flair", tmp_path / "masks"
    data.mkdir(parents=True)
    other.mkdir()
    lines = ["image,mask,label,subject,split"]
    for name in ("b", "a"):
        for kind in ("flair", "mask", "tumour"):
            (data / f"{name}_{kind}.nii.gz").write_bytes(name.encode())
        lines.append(f"{name}_flair.nii.gz,{name}_mask.nii.gz,{name}_tumour.nii.gz,{name},train")
    (data / "cases.csv").write_text("\n".join(lines) + "\n")
    old = folds.patients(tmp_path / "data", None)
    assert [case.subject for case in old] == ["a", "b"]
    (other / "a_mask.nii.gz").write_bytes(b"better")
    with pytest.raises(import_module("benchmarks.common").AbsentError, match=r"1 of 2 brain masks .*b_mask.*new_masks"):
        folds.patients(tmp_path / "data", other)
    (other / "b_mask.nii.gz").write_bytes(b"b")
    new = folds.patients(tmp_path / "data", other)
    assert [Path(case.mask).parent for case in new] == [other, other]
    assert folds.fingerprint(new) != folds.fingerprint(old)
    (other / "a_mask.nii.gz").write_bytes(b"a")
    assert folds.fingerprint(new) == folds.fingerprint(old)


def test_post_processing_is_chosen_from_every_combination_of_lengths():
    folds, base = module("folds"), import_module("benchmarks.quality.table.rows").DATA_SETS["lgg_flair"]
    data = folds.data_set(cases(), 0, 20.0)
    assert data.score == base.score
    assert base.others == ()
    lengths = {(score.median_mm, score.half_depth_mm, score.support_mm) for score in data.others}
    assert lengths == {(m, d, s) for m in (0.0, 9.0, 15.0) for d in (0.0, 4.0) for s in (0.0, 20.0)}
    changed = {"median_mm", "half_depth_mm", "support_mm"}
    assert all(score.model_dump(exclude=changed) == base.score.model_dump(exclude=changed) for score in data.others)


# Statistics


def test_with_one_training_the_interval_is_the_paired_bootstrap_over_patients():
    rng = np.random.default_rng(0)
    ours, other = rng.random((2, 1, 40))
    ours[0, 3] = np.nan
    found = module("statistics").difference(ours, other, 500, 7)
    names = [f"{number:02}" for number in range(40)]
    assert asdict(found) == pytest.approx(asdict(bootstrap_ci(ours[0] - other[0], 500, 7, names)))
    assert module("statistics").mean(ours, 500, 7).mean == pytest.approx(np.nanmean(ours))


def test_trainings_that_disagree_widen_the_interval_and_those_that_agree_do_not():
    statistics, rng = module("statistics"), np.random.default_rng(0)
    patients = rng.random(80)
    other = patients[None] - 0.1 + 0.01 * rng.standard_normal(80)

    def width(gap):
        found = statistics.difference(np.stack([patients - gap, patients + gap]), other)
        assert found.mean == pytest.approx((patients - other).mean())
        return found.ci_high - found.ci_low

    alone = statistics.difference(patients[None], other)
    assert width(0.0) == pytest.approx(alone.ci_high - alone.ci_low, rel=0.05)
    assert width(0.05) == pytest.approx(0.1 + width(0.0), rel=0.2)  # one training or the other, and their patients


@pytest.mark.parametrize(("count", "wide"), [(2, 2.0), (9, 3.92)])
def test_resampled_trainings_vary_as_the_mean_of_all_does(count, wide):
    """The interval, in standard errors of the mean: from one of two points to the other, and that of a normal one."""
    trainings = np.random.default_rng(3).standard_normal(count)
    found = module("statistics").mean(np.repeat(trainings[:, None], 5, 1))  # patients are all alike
    error = trainings.std(ddof=1) / np.sqrt(count)
    assert found.ci_high - found.ci_low == pytest.approx(wide * error, rel=0.15)


# Pictures


def patient(subject, radius):
    places = np.indices((24, 24, 6)).astype(float) - np.array([12, 12, 3])[:, None, None, None]
    brain = (places**2).sum(0) < 120
    volume = SimpleNamespace(data=brain * 1.0, affine=np.eye(4))
    case = SimpleNamespace(subject=subject, id=subject)
    return SimpleNamespace(case=case, volume=volume, brain=brain, label=(places**2).sum(0) < radius**2)


def test_patients_are_shown_from_the_smallest_tumour_to_the_largest():
    found = module("pictures")._spread([patient(str(radius), radius) for radius in (5, 2, 7, 3, 9, 4, 8)])
    assert [one.case.subject for one in found] == ["2", "4", "7", "9"]
    assert len(module("pictures")._spread([patient("a", 2)])) == 1


def test_the_picture_shows_each_method_that_has_a_cell_and_a_model(tmp_path, monkeypatch):
    pictures, folds = module("pictures"), module("folds")
    place = import_module("benchmarks.quality.table.cells").Place(tmp_path / "work", tmp_path, tmp_path / "cells", 1)
    data = folds.data_set(cases(), 0, 20.0)
    rows = [row for row in folds.COMPARED if row.name in {"intensity", "maediff", "disyre", "ddpm-lesions"}]
    (place.work / data.name).mkdir(parents=True)
    (place.work / data.name / "cases.csv").write_text("")
    monkeypatch.setattr(pictures, "find_cases", lambda path, split: [])
    monkeypatch.setattr(pictures, "_spread", lambda found: [patient("p1", 4), patient("p2", 6)])
    monkeypatch.setattr(pictures, "load_model", lambda model, device: model)
    asked, drawn = [], []

    def raw_scores(model, one, score, timestep):
        asked.append((model.parent.name, timestep, score.support_mm))
        return SimpleNamespace(map_as=lambda given: one.label * float(given == score))

    monkeypatch.setattr(pictures, "raw_scores", raw_scores)
    write = pictures.write_pictures
    monkeypatch.setattr(pictures, "write_pictures", lambda *given: drawn.append(given) or write(*given))
    with pytest.raises(import_module("benchmarks.common").AbsentError, match="no method of fold 0, seed 1"):
        pictures.draw(tmp_path / "a.png", data, rows, place, 0)
    for name, seed in (("intensity", 0), ("maediff", 1), ("disyre", 0)):  # DISYRE has another seed's cell
        cell(place.cells, name, 0, (0.5,), seed)
        (place.work / data.name / (f"{name}.seed{seed}" if seed else name) / "model").mkdir(parents=True)
    (place.work / data.name / "ddpm-lesions.seed1" / "model").mkdir(parents=True)
    pictures.draw(tmp_path / "a.png", data, rows, place, 0)
    assert asked == [("intensity", 30, 20.0)] * 2 + [("maediff.seed1", 30, 20.0)] * 2
    assert drawn[0][1] == ["scan", "tumour", "intensity threshold", "MAEDiff"]
    assert [line.title.split(",")[0] for line in drawn[0][2]] == ["p1", "p2"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# The page


def scan(number, auprc):
    return {
        "number": number,
        "healthy_l1": None if number == 1 else 0.1,
        "auroc": auprc / 2,
        "auprc": auprc,
        "dice": auprc / 4,
        "sensitivity": auprc,
        "seconds_a_slice": 0.01,
    }


def cell(results, row, fold, auprcs, seed=0, budget=20.0):
    path = module("folds").path_of(results, row, fold, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "protocol": {"budget_tflop": budget, "masks": "abc"},
        "training": {"steps": 10, "samples": 160},
        "timestep": 30,
        "score": {"sign": "bright", "median_mm": 9.0 if fold else 15.0, "half_depth_mm": 4.0, "support_mm": 20.0},
        "parameters": 2_000_000,
        "gflop_per_slice": 1.25,
        "patients": [scan(k, value) for k, value in enumerate(auprcs, start=1)],
    }
    path.write_text(json.dumps({"results": record}))
    return path


def grid(results, row, values, seed=0):
    for fold in range(5):
        cell(results, row, fold, values, seed)


def test_the_page_shows_means_over_all_patients_and_differences_to_both_references(tmp_path):
    grid(tmp_path, "maediff", (0.5, 0.7))
    grid(tmp_path, "ddpm-lesions", (0.4, 0.6))
    grid(tmp_path, "ddpm-gate", (0.1, 0.3))
    grid(tmp_path, "maediff-all", (0.6, 0.8))
    grid(tmp_path, "maediff-all", (0.8, 1.0), seed=3)
    text = module("render").markdown(tmp_path)
    assert "10 patients, folds 0, 1, 2, 3, 4, 20 TFLOP of training for each method and fold" in text
    assert "| MAEDiff | 1 | 0.600 [" in text
    assert "| MAEDiff, the loss sees everything | 2 | 0.800 [" in text
    title = "Minus MAEDiff, the loss sees everything:"
    ours, rival = text.partition(title)[2].split("Minus DDPM + our pseudo-lesions:")
    assert "| DDPM + our pseudo-lesions | -0.300 [-0.400, -0.200] |" in ours  # one training or the other
    assert "| MAEDiff | -0.200 [-0.300, -0.100] |" in ours
    assert "| MAEDiff | 0.100 [0.100, 0.100] |" in rival
    assert "| 30 (10) | 9/4/20 (8), 15/4/20 (2) | 10 | 2.00 |" in text
    assert "DISYRE, seed 0: no cell of fold 0, 1, 2, 3, 4" in text


def test_a_metric_that_some_trainings_lack_is_that_of_the_others(tmp_path):
    grid(tmp_path, "maediff", (0.5, 0.7))
    grid(tmp_path, "maediff", (0.5, 0.7), seed=1)
    for fold in range(5):
        path = module("folds").path_of(tmp_path, "maediff", fold, 1)
        record = json.loads(path.read_text())
        for one in record["results"]["patients"]:
            one["auprc_plain"] = one["auprc"] + 0.1
        path.write_text(json.dumps(record))
    row = module("render").load(tmp_path)[0][0]
    assert row.values("auprc").shape == (2, 10)
    np.testing.assert_allclose(row.values("auprc_plain"), row.values("auprc")[:1] + 0.1)
    grid(tmp_path, "ddpm-lesions", (0.4, 0.6))
    table = module("render").markdown(tmp_path)
    assert re.search(r"^\| DDPM \+ our pseudo-lesions \| 1 \| 0\.500 \[[^]]+\] \| - \|", table, re.MULTILINE)


def test_a_training_counts_once_all_its_folds_are_there(tmp_path):
    grid(tmp_path, "maediff", (0.5, 0.7))
    cell(tmp_path, "maediff", 0, (0.9, 0.9), seed=1)
    scored, missing = module("render").load(tmp_path)
    assert list(scored[0].trainings) == [0]
    assert "MAEDiff, seed 1: no cell of fold 1, 2, 3, 4" in missing
    assert list(module("render").load(tmp_path, [0])[0][0].trainings) == [0, 1]


def test_cells_of_two_budgets_are_not_rendered_together(tmp_path):
    grid(tmp_path, "maediff", (0.5, 0.7))
    cell(tmp_path, "maediff", 3, (0.5, 0.7), budget=0.2)
    with pytest.raises(InputError, match=r"different protocols.*fold0\.json.*fold3\.json.*'budget_tflop': 0\.2"):
        module("render").markdown(tmp_path)


def test_a_stored_cell_of_another_budget_or_of_other_masks_is_refused(tmp_path):
    folds, command = module("folds"), module("__main__")
    path = cell(tmp_path, "maediff", 0, (0.5, 0.7))
    command.check(path, folds.Protocol(20.0, "abc"))
    for other in (folds.Protocol(0.2, "abc"), folds.Protocol(20.0, "xyz")):
        with pytest.raises(InputError, match=r"maediff/fold0\.json was computed with .*20\.0.*'abc'.*--results"):
            command.check(path, other)


def test_stored_cells_are_kept_and_missing_ones_computed_each_with_its_fold_and_seed(tmp_path, monkeypatch):
    command, done = module("__main__"), []

    def compute(data, row, place):
        done.append((data.name, data.budget_tflop, row.name, place.seed, place.work.name))
        return {"patients": []}

    monkeypatch.setattr(command, "patients", lambda data, masks: cases())
    monkeypatch.setattr(command, "fingerprint", lambda found: "abc")
    monkeypatch.setattr(command, "compute", compute)
    monkeypatch.setattr(command, "markdown", lambda results, folds: "")
    kept = cell(tmp_path, "maediff", 1, (0.5, 0.7), budget=2.0).read_text()
    run = [
        "--results",
        str(tmp_path),
        "--row",
        "maediff",
        "intensity",
        "--fold",
        "1",
        "--seed",
        "0",
        "2",
        "--budget",
        "2",
    ]
    for _ in range(2):
        assert command.main(run) == 0
    assert sorted(done) == sorted(
        ("fold1", 2.0, row, seed, "2tflop-abc") for row, seed in (("intensity", 0), ("intensity", 2), ("maediff", 2))
    )
    assert module("folds").path_of(tmp_path, "maediff", 1).read_text() == kept
    stored = json.loads((tmp_path / "intensity" / "fold1.seed2.json").read_text())["results"]
    assert stored["protocol"] == {"budget_tflop": 2.0, "masks": "abc"}
    assert command.main([*run[:-1], "3"]) == 1  # another budget
    assert len(done) == 3


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    command = module("__main__")

    def compute(data, row, place):
        if data.name == "fold1":
            raise InputError("checkpoint of another configuration")
        return {"patients": []}

    monkeypatch.setattr(command, "patients", lambda data, masks: cases())
    monkeypatch.setattr(command, "fingerprint", lambda found: "abc")
    monkeypatch.setattr(command, "compute", compute)
    monkeypatch.setattr(command, "markdown", lambda results, folds: "")
    assert command.main(["--results", str(tmp_path), "--row", "maediff"]) == 1
    assert sorted(path.name for path in (tmp_path / "maediff").iterdir()) == [
        f"fold{fold}.json" for fold in (0, 2, 3, 4)
    ]
    said = capsys.readouterr().err
    assert "1 cells could not be computed" in said
    assert "fold 1 maediff seed 0: checkpoint of another configuration" in said


def test_the_documented_tables_are_those_of_the_stored_cells():
    render = module("render")
    page = (ROOT / "docs" / "cross-validation.md").read_text(encoding="utf-8")
    shown = page.partition(render.BEGIN)[2].partition(render.END)[0].strip()
    assert shown == render.markdown(ROOT / "benchmarks" / "results" / "cross_validation").strip()
