"""Images of other libraries give the map of the file; results show themselves as text, picture, table and files."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from types import ModuleType

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor

from maediff.calibration import Calibration
from maediff.errors import GeometryError, InputError
from maediff.evaluation.outputs import read_outputs
from maediff.files import read_json
from maediff.inference.load import load_model
from maediff.transforms import MAEDiffd, MAEDiffSubject

AFFINE = np.array([[0, -8.0, 0, 70], [8, 0, 0, -64], [0, 0, 10, -55], [0, 0, 0, 1]])  # turned by a quarter
SHAPE = (20, 17, 12)
SCORES = tuple(np.linspace(0, 1, 20))


@pytest.fixture(scope="module")
def predictor(make_model, tiny, tmp_path_factory):
    calibration = Calibration(0.2, 0.01, 20, 300, {}, SCORES, "20 scans of a test").to_dict()
    return load_model(
        make_model(tmp_path_factory.mktemp("model") / "m", tiny("partition.stride=16"), calibration), "cpu"
    )


@pytest.fixture(scope="module")
def scan(make_scan):
    return make_scan(AFFINE, SHAPE, seed=3)


@pytest.fixture(scope="module")
def voxels(scan):
    return scan.get_fdata(dtype=np.float32)


@pytest.fixture(scope="module")
def result(predictor, scan):
    return predictor.predict(scan)


def simpleitk(data, affine):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


class FakeTorchIO(ModuleType):
    """What the package uses of TorchIO, so that the suite need not install it."""

    class ScalarImage:
        __module__ = "torchio.data.image"

        def __init__(self, tensor, affine):
            self.data, self.affine, self.path = torch.as_tensor(tensor), np.asarray(affine), None

    class LabelMap(ScalarImage):
        __module__ = "torchio.data.image"

    class Subject(dict):
        pass


KINDS = {
    "numpy": lambda data, affine: (data, {"affine": affine}),
    "numpy, integers, a list": lambda data, affine: (data.round().astype(np.int16), {"affine": affine.tolist()}),
    "torch": lambda data, affine: (torch.from_numpy(data)[None], {"affine": torch.from_numpy(affine)}),
    "MetaTensor": lambda data, affine: (MetaTensor(torch.from_numpy(data)[None], affine=torch.from_numpy(affine)), {}),
    "SimpleITK": lambda data, affine: (simpleitk(data, affine), {}),
    "TorchIO": lambda data, affine: (FakeTorchIO.ScalarImage(data[None], affine), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_scan_in_another_library_gives_the_same_map(predictor, scan, voxels, result, kind):
    image, options = KINDS[kind](voxels, AFFINE)
    prepared, expected = predictor.prepare(image, **options), predictor.prepare(scan)
    assert np.allclose(prepared.volume.affine, AFFINE, atol=1e-4)
    tolerance = 0.02 if "integers" in kind else 1e-4
    assert np.allclose(prepared.prepared.slices, expected.prepared.slices, atol=tolerance)


@pytest.mark.parametrize("kind", ["numpy", "torch", "MetaTensor", "SimpleITK", "TorchIO"])
def test_masks_of_other_libraries(predictor, scan, voxels, kind):
    brain = (voxels > 0) & (np.indices(SHAPE)[0] < 10)
    mask, _ = KINDS[kind](brain.astype(np.float32), AFFINE)
    assert (predictor.prepare(scan, mask).prepared.native_mask == brain).all()


@pytest.mark.parametrize(
    ("image", "options", "error", "text"),
    [
        (np.ones(SHAPE), {}, GeometryError, "give affine="),
        (np.ones(SHAPE), {"affine": np.eye(3)}, GeometryError, r"\(3, 3\)"),
        (np.ones((2, *SHAPE)), {"affine": np.eye(4)}, InputError, "one channel at a time"),
        ("scan.nii.gz", {"affine": np.eye(4)}, InputError, "an affine of its own"),
        (object(), {}, InputError, "SimpleITK"),
        (np.ones(SHAPE, complex), {"affine": np.eye(4)}, InputError, "complex"),
    ],
)
def test_what_cannot_be_taken_is_named(predictor, image, options, error, text):
    with pytest.raises(error, match=text):
        predictor.predict(image, **options)


class TestResult:
    def test_repr_has_three_lines(self, result):
        lines = repr(replace(result, notes=("looks like noise",), score_percentile=0.95, healthy_scans=20)).splitlines()
        assert len(lines) == 3
        assert "above 19 of 20 healthy scans" in lines[0]
        assert "20 scans of a test" in lines[1]
        assert "looks like noise" in lines[2]

    def test_html_has_pictures_and_escapes(self, result):
        text = replace(result, notes=("<channel>",))._repr_html_()
        assert text.count("data:image/png;base64,") == 4
        assert re.findall(r"<b [^>]*>(\w)</b>", text) == ["R", "L", "A", "P"] * 4
        assert "&lt;channel&gt;" in text
        assert "Research use only" in text

    def test_plot(self, result):
        figure = result.plot(("axial", "sagittal"))
        assert len(figure.axes) == 8
        assert [text.get_text() for text in figure.axes[0].texts] == ["R", "L", "A", "P"]
        assert figure._repr_png_().startswith(b"\x89PNG")
        with pytest.raises(InputError, match="from 0 to 11"):
            result.plot(index=12)
        with pytest.raises(InputError, match="coronal"):
            result.plot("oblique")

    def test_components(self, result):
        found = result.components()
        assert found["volume_ml"].sum() == pytest.approx(result.volume_ml, rel=1e-4)
        assert found["volume_ml"].is_monotonic_decreasing
        assert result.components().iloc[0]["finding"] == 1
        assert replace(result, anomaly_mask=None).components().empty

    def test_saved_files_are_those_of_infer(self, result, tmp_path):
        path = result.save(str(tmp_path / "new"), "a")
        names = {"a_anomaly.json", "a_anomaly.nii.gz", "a_anomaly-mask.nii.gz", "a_components.tsv"}
        assert {item.name for item in path.parent.iterdir()} == names | {"a_reconstruction.nii.gz"}
        assert np.array_equal(nib.load(path).get_fdata(dtype=np.float32), result.anomaly)
        assert read_json(tmp_path / "new" / "a_anomaly.json").items() >= result.to_dict().items()


def test_summary_as_a_table(predictor, scan, tmp_path):
    from maediff.data.cases import find_cases
    from maediff.inference.cohort import infer_cases

    nib.save(scan, tmp_path / "s.nii.gz")
    summary = infer_cases(predictor, find_cases(tmp_path / "s.nii.gz"), tmp_path / "out" / "cases.tsv")
    frame = summary.to_frame()
    assert list(frame.columns) == list(pd.read_csv(tmp_path / "out" / "cases.tsv", sep="\t").columns)
    assert frame.loc[0, "case"] == "s" == read_outputs(tmp_path / "out")[0].case


def test_monai_transform(predictor, voxels, result):
    image = MetaTensor(torch.from_numpy(voxels)[None], affine=torch.from_numpy(AFFINE))
    found = MAEDiffd("image", predictor)({"image": image, "other": 1})
    assert found["other"] == 1
    assert isinstance(found["image_anomaly"], MetaTensor)
    assert np.allclose(found["image_anomaly"][0].numpy(), result.anomaly)
    assert np.allclose(found["image_anomaly"].affine, AFFINE)
    assert (found["image_anomaly_mask"][0].numpy() == result.anomaly_mask).all()
    assert found["image_result"].score == pytest.approx(result.score)


def test_torchio_callable(predictor, voxels, result, monkeypatch):
    fake = FakeTorchIO("torchio")
    monkeypatch.setitem(sys.modules, "torchio", fake)
    subject = fake.Subject(t1=fake.ScalarImage(voxels[None], AFFINE), age=70)
    found = MAEDiffSubject(predictor, "t1")(subject)
    assert set(subject) == {"t1", "age"}
    assert type(found["t1_anomaly_mask"]) is fake.LabelMap
    assert np.allclose(found["t1_anomaly"].data[0], result.anomaly)
    assert (found["age"], found["t1_score"]) == (70, pytest.approx(result.score))
