"""The benchmark table: its budget, its maps and its page are what they say; no cell is computed here."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from maediff.config import UNTRAINED, ScoreConfig, load_config
from maediff.data.cases import Case
from maediff.errors import InputError
from maediff.inference.load import load_model
from maediff.working import lesion_slices

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("benchmarks_importable")


def module(name):
    return import_module(f"benchmarks.{name}")


def trained_sets():
    return [data for data in module("quality.table.rows").DATA_SETS.values() if data.trained_on is None]


def test_every_method_has_as_many_tries_as_any_other_that_can_choose():
    counts = {len(row.timesteps) for row in module("quality.table.rows").ROWS} - {1}
    assert len(counts) == 1
    for data, row in product(trained_sets(), module("quality.table.rows").ROWS):
        if not row.tried_on(data.name):
            continue
        first, last = module("quality.table.rows").config_of(data, row).diffusion.train_timesteps
        assert row.timesteps == (1,) or first <= min(row.timesteps) <= max(row.timesteps) <= last


def test_no_method_spends_more_than_the_budget_and_none_sees_far_more_samples():
    cells, data = module("quality.table.cells"), trained_sets()[0]
    ours = load_config(data.config, data.overrides)
    batch = ours.train.batch_size
    allowed = module("quality.table.cells").budget(ours, ours, data.budget_tflop)
    for row in module("quality.table.rows").ROWS:
        if row.name not in {"intensity", "ae", "dae", "pddpm", "maediff", "maediff-cross"}:
            continue  # the others have a network of these
        config = module("quality.table.rows").config_of(data, row)
        spent = cells.budget(config, ours, data.budget_tflop)
        step = batch * spent.gflop_a_sample / 1e3
        assert spent.tflop <= data.budget_tflop + step / 2
        assert spent.samples <= cells.MOST_SAMPLES * (allowed.samples + batch)
        bound_by_samples = spent.samples >= cells.MOST_SAMPLES * (allowed.samples - batch)
        assert config.method in UNTRAINED or bound_by_samples or spent.tflop >= data.budget_tflop - step / 2


def test_operations_are_counted_as_by_hand(tiny, monkeypatch):
    """A 3 x 3 convolution takes 2 x 9 x in x out operations a pixel: forward, for its weights, and for its input.

    The first one's input wants no gradient. One layer feeds the auxiliary loss alone.
    """

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.aside = (
                torch.nn.Conv2d(n, m, 3, padding=1) for n, m in [(1, 5), (5, 2), (5, 7)]
            )

        def losses(self, batch):
            assert batch["image"].shape == batch["clean"].shape == batch["noise"].shape == batch["mask"].shape
            hidden = self.first(batch["image"])
            return self.second(hidden).mean(), self.aside(hidden).mean()

    monkeypatch.setattr("maediff.training.loop.build_network", lambda config: Net())
    config = tiny("data.size=[32, 48]", "method=ae")
    by_hand = 32 * 48 * 2 * 9 * (2 * 1 * 5 + 3 * 5 * 2 + 3 * 5 * 7)
    assert module("quality.table.cells").training_gflop(config) == pytest.approx(by_hand / 1e9, rel=1e-9)


def test_operations_of_a_method_are_those_of_its_layers(tiny, monkeypatch):
    """Three passes of each convolution and product, counted from the shapes that go in and out of the layers."""
    loop, counted = import_module("maediff.training.loop"), []
    build = loop.build_network

    def note(layer, inputs, output):
        places = inputs[0] if isinstance(layer, torch.nn.ConvTranspose2d) else output
        counted.append(2 * layer.weight[0].numel() * places.numel() * (2 + inputs[0].requires_grad))

    def hooked(config):
        network = build(config)
        for layer in network.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear)):
                layer.register_forward_hook(note)
        return network

    monkeypatch.setattr(loop, "build_network", hooked)
    found = module("quality.table.cells").training_gflop(tiny("method=vae", "diffusion.noise=gaussian"))
    assert len(counted) > 3
    assert found == pytest.approx(sum(counted) / 4 / 1e9, rel=1e-9)  # of four samples


@pytest.fixture
def scored(tmp_path, tiny, make_model, make_scan):
    """A model with random weights, and a scan with a lesion."""
    image = make_scan(
        np.diag([4.0, 4.0, 8.0, 1.0]) - np.array([[0, 0, 0, 64], [0, 0, 0, 80], [0, 0, 0, 48], [0] * 4]), (32, 40, 12)
    )
    nib.save(image, tmp_path / "a.nii.gz")
    label = np.zeros(image.shape, np.uint8)
    label[14:18, 18:24, 5:7] = 1
    nib.save(nib.Nifti1Image(label, image.affine), tmp_path / "a_lesion.nii.gz")
    config = tiny("score.sign=bright", "score.median_mm=12", "score.erode_mm=5", "diffusion.test_timesteps=[30]")
    case = Case("a", tmp_path / "a.nii.gz", None, tmp_path / "a_lesion.nii.gz", "a", None, "test", "a")
    return load_model(make_model(tmp_path / "model", config), "cpu"), module("quality.patients").Patient(case)


def test_maps_are_those_of_inference(scored):
    predictor, patient = scored
    score = predictor.config.score
    found = module("quality.table.cells").raw_scores(predictor, patient, score, 30).maps(score)
    expected = predictor.predict(patient.case.image).anomaly
    np.testing.assert_allclose(found.filtered, expected, atol=1e-6)
    assert expected.max() > 0
    without = replace(
        predictor, config=predictor.config.model_copy(update={"score": ScoreConfig(sign="bright", erode_mm=5)})
    )
    np.testing.assert_allclose(found.unfiltered, without.predict(patient.case.image).anomaly, atol=1e-6)


def test_healthy_l1_leaves_slices_with_lesion_out(scored, tmp_path):
    predictor, patient = scored
    score, cells, patients = ScoreConfig(sign="abs"), module("quality.table.cells"), module("quality.patients")
    raw = cells.raw_scores(predictor, patient, score, 30)
    well = raw.prepared.mask & ~lesion_slices(patient.label, raw.prepared.grid)[:, None, None]
    assert 0 < well.sum() < raw.prepared.mask.sum()
    assert raw.healthy_l1 == pytest.approx(raw.values[well].mean(), rel=1e-5)
    healthy = cells.raw_scores(predictor, patients.Patient(replace(patient.case, label=None)), score, 30)
    assert healthy.healthy_l1 == pytest.approx(raw.values[raw.prepared.mask].mean(), rel=1e-5)
    nib.save(
        nib.Nifti1Image(np.ones(patient.label.shape, np.uint8), patient.volume.affine), tmp_path / "a_lesion.nii.gz"
    )
    assert cells.raw_scores(predictor, patients.Patient(patient.case), score, 30).healthy_l1 is None


def test_slices_that_are_cut_out_support_no_others(scored):
    predictor, patient = scored
    cells, alone = module("quality.table.cells"), ScoreConfig(sign="abs", median_mm=5)
    raw = cells.raw_scores(predictor, patient, alone, 30)
    calm = ~lesion_slices(patient.label, raw.prepared.grid)
    cut = raw.without(~calm)
    assert calm.any()
    assert not calm.all()
    assert not cut.prepared.mask[~calm].any()
    native = raw.prepared.to_native(np.broadcast_to(calm[:, None, None], raw.values.shape).astype(np.float32)) > 0.999
    np.testing.assert_allclose(cut.map_as(alone)[native], raw.map_as(alone)[native], atol=1e-6)
    supported = alone.model_copy(update={"support_mm": 20.0})
    louder = replace(raw, values=np.where(calm[:, None, None], raw.values, raw.values + 5).astype(np.float32))
    assert (louder.map_as(supported)[native] > raw.map_as(supported)[native]).any()
    np.testing.assert_array_equal(louder.without(~calm).map_as(supported), cut.map_as(supported))


def test_a_transfer_names_the_cell_that_it_builds_on(tmp_path):
    cells, rows = module("quality.table.cells"), module("quality.table.rows")
    (tmp_path / "work" / "mslub").mkdir(parents=True)
    (tmp_path / "work" / "mslub" / "cases.csv").write_text("image\n")
    with pytest.raises(module("common").AbsentError, match="compute the cell lgg_flair pddpm first"):
        cells.compute(
            rows.DATA_SETS["mslub"],
            next(row for row in rows.ROWS if row.name == "pddpm"),
            cells.Place(tmp_path / "work", tmp_path, tmp_path),
        )


def scan(number, auprc, kind=""):
    row = dict.fromkeys(("auroc", "auprc_unfiltered", "dice", "dice_validated", "dice_oracle"), auprc / 2)
    return {**row, "number": number, "kind": kind, "auprc": auprc, "healthy_l1": None, "seconds_a_slice": 0.1}


def cell_file(folder, data, name, auprcs, kinds=("", "", "")):
    results = {
        "training": {"steps": 10, "samples": 160, "tflop": 1.5, "seconds": 3.0},
        "timestep": 60,
        "validation_auprc": {"30": 0.1, "60": max(auprcs)},
        "parameters": 2_000_000,
        "gflop_per_slice": 1.25,
        "patients": [scan(k, value, kind) for k, (value, kind) in enumerate(zip(auprcs, kinds, strict=True))],
    }
    write(folder, data, name, results)


def write(folder, data, name, results):
    path = folder / data / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": results}))


def test_the_page_shows_the_cells(tmp_path):
    render, results = module("quality.table.render"), tmp_path / "cells"
    cell_file(results, "lgg_flair", "pddpm", (0.2, 0.3, 0.4))
    cell_file(results, "lgg_flair", "maediff", (0.5, 0.6, 0.7))
    cell_file(results, "phantom", "maediff", (0.1, 0.2, 0.9), ("ms", "ms", "tumour"))
    write(results, "lgg_flair", "zscore", {"refused": "no common space"})
    text = render.markdown(results)
    assert "| MAEDiff | 0.300 [" in text  # AUROC 0.5 / 2, 0.6 / 2, 0.7 / 2
    assert "- voxelwise z-score: no common space" in text
    assert "| method | ms | tumour |" in text
    assert "| MAEDiff | 0.150 [0.100, 0.200] | 0.900 |" in text
    assert "| pDDPM | -0.300 [-0.300, -0.300] | 0.0002 | - | - |" in text  # minus MAEDiff; p at its least
    assert "| MAEDiff | - | - | 0.300 [0.300, 0.300] | 0.0002 |" in text
    assert "**Measured by other authors on other data**" in text
    assert "VAE |" in text.split("### Published figures")[1]


def test_the_summary_has_a_line_per_method_of_the_gliomas(tmp_path):
    render, results = module("quality.table.render"), tmp_path / "cells"
    with pytest.raises(InputError, match="lgg_flair"):
        render.summary(results)
    cell_file(results, "lgg_flair", "pddpm", (0.2, 0.3, 0.4))
    cell_file(results, "lgg_flair", "maediff", (0.5, 0.6, 0.7))
    cell_file(results, "phantom", "maediff", (0.1, 0.1, 0.1))
    cell_file(results, "phantom", "dae", (0.1, 0.1, 0.1))
    write(results, "lgg_flair", "zscore", {"refused": "no common space"})
    lines = render.summary(results).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| pDDPM", "| MAEDiff"]
    assert "| -0.300 [-0.300, -0.300] |" in lines[0]  # minus MAEDiff, on the same scans
    assert lines[0].endswith("| - | 1.25 |")  # no phantoms
    assert "| 0.600 [0.500, 0.700] | - | 0.300 [0.250, 0.350] | 0.100 [0.100, 0.100] |" in lines[1]


def test_trainings_with_other_seeds_stand_beside_the_first(tmp_path):
    rows = module("quality.table.rows")
    cell_file(tmp_path, "lgg_flair", "pddpm", (0.2, 0.3, 0.4))
    assert "other seeds" not in module("quality.table.render").markdown(tmp_path)
    for seed, values in ((10, (0.5, 0.5, 0.5)), (2, (0.1, 0.1, 0.1))):
        cell_file(tmp_path, "lgg_flair", rows.variant("pddpm", seed), values)
    text = module("quality.table.render").markdown(tmp_path)
    assert "| pDDPM | 0.300 0.100 0.500 | 0.300 | 0.400 0.100 0.500 |" in text
    assert rows.cell_path(tmp_path, "lgg_flair", "pddpm", 2).is_file()
    assert rows.config_of(rows.DATA_SETS["lgg_flair"], rows.ROWS[0], 2).train.seed == 2


def test_the_page_needs_its_markers_and_keeps_what_stands_around_them(tmp_path):
    render, page = module("quality.table.render"), tmp_path / "page.md"
    cell_file(tmp_path / "cells", "lgg_flair", "pddpm", (0.2, 0.3, 0.4))
    page.write_text("# Title\n")
    with pytest.raises(InputError, match="lacks the lines"):
        render.write_markdown(page, tmp_path / "cells")
    pages = page, render.details_page(page)
    assert pages[1].name == "page-details.md"
    for each in pages:
        each.write_text(f"# Title\n\n{render.BEGIN}\nstale\n{render.END}\nend\n")
    render.write_markdown(page, tmp_path / "cells")
    once = [each.read_text() for each in pages]
    render.write_markdown(page, tmp_path / "cells")
    assert [each.read_text() for each in pages] == once
    for text, shown in zip(once, (render.summary, render.markdown), strict=True):
        assert text == f"# Title\n\n{render.BEGIN}\n\n{shown(tmp_path / 'cells')}\n\n{render.END}\nend\n"


def test_the_figure_is_the_same_each_time(tmp_path):
    cell_file(tmp_path / "cells", "lgg_flair", "pddpm", (0.2, 0.3, 0.4))
    for name in ("a.svg", "b.svg"):
        module("quality.table.render").draw(tmp_path / name, tmp_path / "cells")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(("page", "rendered"), [("benchmark", "summary"), ("benchmark-details", "markdown")])
def test_the_documented_tables_are_those_of_the_stored_cells(page, rendered):
    render = module("quality.table.render")
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    shown = text.partition(render.BEGIN)[2].partition(render.END)[0].strip()
    assert shown == getattr(render, rendered)(ROOT / "benchmarks" / "results" / "table").strip()


def test_the_command_prints_the_table_of_the_stored_cells(tmp_path, capsys):
    cell_file(tmp_path, "lgg_flair", "pddpm", (0.2, 0.3, 0.4))
    assert module("quality.table.__main__").main(["--render", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == module("quality.table.render").markdown(tmp_path).strip()


def test_what_cannot_be_computed_here_is_shown_as_not_computed(tmp_path, capsys):
    """As from a fresh clone, without scans and models; no such cell is stored, so that it can be computed later."""
    results = tmp_path / "cells"
    cell_file(results, "mslub", "maediff", (0.2, 0.3, 0.4))
    cell_file(results, "lgg_flair", "maediff-wide", (0.2, 0.3, 0.4))
    arguments = ["--results", str(results), "--work", str(tmp_path / "work"), "--data", str(tmp_path / "none")]
    chosen = ["--data-set", "mslub", "--method", "maediff-wide"]
    assert module("quality.table.__main__").main([*arguments, *chosen]) == 0
    told = capsys.readouterr()
    assert "not computed: no mslub data" in told.err
    assert "Not computed:" in told.out.partition("multiple sclerosis")[2]
    assert "windows of 64" in told.out.partition("multiple sclerosis")[2].partition("Not computed:")[2]
    (tmp_path / "work" / "mslub").mkdir(parents=True)
    (tmp_path / "work" / "mslub" / "cases.csv").write_text("image\n")
    assert module("quality.table.__main__").main([*arguments, *chosen]) == 0
    assert "compute the cell lgg_flair maediff-wide first, with --again" in capsys.readouterr().err
    assert not (results / "mslub" / "maediff-wide.json").exists()


def test_no_cells_no_table(tmp_path):
    with pytest.raises(InputError, match=r"python -m benchmarks\.quality\.table"):
        module("quality.table.render").markdown(tmp_path)


def test_frechet_distance_is_that_of_gaussians():
    digits, rng = module("quality.digits"), np.random.default_rng(0)
    sample = rng.normal(size=(2000, 3))
    assert digits.frechet(sample, sample) == pytest.approx(0, abs=1e-6)
    assert digits.frechet(sample, sample + np.array([3, 0, 4])) == pytest.approx(25, rel=1e-6)
    spread = digits.frechet(sample, 2 * (sample - sample.mean(0)) + sample.mean(0))
    assert spread == pytest.approx(np.trace(np.cov(sample, rowvar=False)), rel=1e-6)  # (2 - 1)^2 times the variances
