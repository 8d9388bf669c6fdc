"""One scan in, one map out: geometry, determinism, calibration and refusals."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from maediff.calibration import Calibration
from maediff.errors import ConfigError, GeometryError, InputError, ModelError
from maediff.inference.asymmetry import GAIN, LIMIT
from maediff.inference.load import load_model
from maediff.inference.predictor import content_key
from maediff.inputcheck import check_scan
from maediff.volume import from_image, read_nifti
from maediff.working import brainmask, foreground, pipeline

RAS = np.array([[6.0, 0, 0, -63], [0, 6, 0, -78], [0, 0, 6, -54], [0, 0, 0, 1]])
SHAPE = (22, 27, 19)
CALIBRATION = Calibration(0.5, 0.01, 3, 300, {"0.1": 0.3}, (0.2, 0.4, 100.0, 200.0), "3 scans of a test")


def turned(degrees):
    a, b = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    tilt = np.array([[a, -b, 0, 0], [b, a, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    pitch = np.array([[1, 0, 0, 0], [0, a, -b, 0], [0, b, a, 0], [0, 0, 0, 1]])
    return tilt @ pitch @ RAS


def flipped(axes):
    affine = RAS.copy()
    for axis in axes:
        affine[:3, 3] += affine[:3, axis] * (SHAPE[axis] - 1)
        affine[:3, axis] *= -1
    return affine


@pytest.fixture(scope="module")
def predictors(make_model, tiny, tmp_path_factory):
    """Load models of random weights, aligned to voxels and to the world."""
    folders = tmp_path_factory.mktemp("models")
    small = ("partition.stride=16",)
    return {
        align: load_model(
            make_model(folders / align, tiny(f"data.align={align}", *small), CALIBRATION.to_dict()), "cpu"
        )
        for align in ("voxel", "world")
    }


GRIDS = {
    "oblique": (turned(17), SHAPE, (1, 2)),
    "lpi": (flipped((0, 1, 2)), SHAPE, (2, 0)),
    "permuted": (RAS[:, [2, 0, 1, 3]], tuple(SHAPE[k] for k in (2, 0, 1)), (1, 4)),
    "anisotropic": (RAS @ np.diag([0.5, 0.5, 1.5, 1]), (44, 54, 12), (0, 3)),
}


@pytest.mark.parametrize("align", ["voxel", "world"])
@pytest.mark.parametrize("name", GRIDS)
def test_maps_lie_in_the_space_of_the_scan(predictors, make_scan, name, align):
    affine, shape, codes = GRIDS[name]
    scan = make_scan(affine, shape, codes)
    result = predictors[align].predict(scan)
    brain = scan.get_fdata() > 0
    assert (result.brain_mask == brain).all()
    for kind in ("anomaly", "reconstruction", "brain_mask", "anomaly_mask"):
        image = result.image(kind)
        assert image.shape == shape
        np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
        assert int(image.header["qform_code"]) == int(scan.header["qform_code"])
        assert int(image.header["sform_code"]) == int(scan.header["sform_code"])
        outside = scan.get_fdata() if kind == "reconstruction" else np.zeros(shape)
        assert (image.get_fdata()[~brain] == outside[~brain]).all()
    assert result.anomaly.dtype == result.reconstruction.dtype == np.float32
    assert np.isfinite(result.anomaly).all()
    assert np.isfinite(result.reconstruction).all()
    assert result.anomaly.min() >= 0
    assert result.anomaly[brain].std() > 0
    assert result.brain_volume_ml == pytest.approx(brain.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000, rel=1e-4)


@pytest.mark.parametrize("align", ["voxel", "world"])
def test_a_flipped_scan_gives_the_flipped_map(predictors, make_scan, align):
    straight = predictors[align].predict(make_scan(RAS, SHAPE))
    turned_over = predictors[align].predict(make_scan(flipped((0, 1, 2)), SHAPE))
    np.testing.assert_allclose(turned_over.anomaly[::-1, ::-1, ::-1], straight.anomaly, atol=2e-3)
    assert turned_over.score == pytest.approx(straight.score, rel=1e-3)


@pytest.mark.parametrize("align", ["voxel", "world"])
def test_names_and_the_order_of_voxels_change_nothing(predictors, make_scan, tmp_path, align):
    scan = make_scan(RAS, SHAPE)
    nib.save(scan, tmp_path / "one.nii.gz")
    data = np.asarray(scan.dataobj)[::-1].transpose(2, 0, 1)
    affine = flipped((0,))[:, [2, 0, 1, 3]]
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "other_name.nii")
    one, other = (predictors[align].predict(tmp_path / name) for name in ("one.nii.gz", "other_name.nii"))
    np.testing.assert_allclose(other.anomaly.transpose(1, 2, 0)[::-1], one.anomaly, atol=2e-3)
    assert other.score == pytest.approx(one.score, rel=1e-4)


def test_asymmetry_weighs_the_map_and_says_so(predictors, make_scan):
    plain = predictors["world"]
    score = plain.config.score.model_copy(update={"asymmetry_mm": 12.0})
    weighed = replace(plain, config=plain.config.model_copy(update={"score": score}))
    one, other = (predictor.predict(make_scan(RAS, SHAPE)) for predictor in (plain, weighed))
    assert (other.anomaly >= one.anomaly - 1e-6).all()
    assert (other.anomaly <= (1 + GAIN * LIMIT) * one.anomaly + 1e-6).all()
    assert (other.anomaly > 1.1 * one.anomaly).any()
    np.testing.assert_array_equal(other.reconstruction, one.reconstruction)
    assert other.units == f"{one.units}, more where the hemispheres differ"
    mirrored = weighed.predict(make_scan(flipped((0,)), SHAPE)).anomaly
    assert abs(mirrored[::-1] - other.anomaly).mean() < 0.02 * other.anomaly.mean()


def test_asymmetry_weighs_maps_of_methods_without_a_network(make_model, tiny, make_scan, tmp_path):
    plain, weighed = (
        load_model(make_model(tmp_path / name, tiny("method=intensity", "score.sign=bright", setting)), "cpu")
        for name, setting in (("plain", "score.asymmetry_mm=0"), ("weighed", "score.asymmetry_mm=12"))
    )
    one, other = (model.predict(make_scan(RAS, SHAPE)) for model in (plain, weighed))
    assert (other.anomaly >= one.anomaly - 1e-6).all()
    assert (other.anomaly > 1.1 * one.anomaly).any()


def test_channels_that_only_steer_do_not_weigh(make_model, tiny, make_scan, tmp_path):
    settings = ("data.channels=[flair, t1]", "structure.kinds=[t2i]", "structure.guides=[t1]", "structure.omega=[0]")
    model = load_model(make_model(tmp_path / "m", tiny(*settings, "score.asymmetry_mm=12")), "cpu")
    scan = make_scan(RAS, SHAPE)
    brain = scan.get_fdata() > 0
    other = nib.Nifti1Image(np.where(brain, scan.get_fdata()[::-1] + 50, 0), scan.affine)
    found = [
        model.predict([scan, guide], nib.Nifti1Image(brain.astype(np.uint8), scan.affine)).anomaly
        for guide in (scan, other)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_channels_that_only_steer_do_not_decide_the_sign(make_model, tiny, make_scan, tmp_path):
    """A scan and a second contrast on which lesions are dark: the contrast of what is reconstructed counts."""
    settings = ("data.channels=[flair, t1]", "structure.kinds=[t2i]", "structure.guides=[t1]", "score.sign=auto")
    model = load_model(make_model(tmp_path / "m", tiny(*settings)), "cpu")
    scan = make_scan(RAS, SHAPE)
    brain = nib.Nifti1Image((scan.get_fdata() > 0).astype(np.uint8), scan.affine)
    inverted = nib.Nifti1Image(np.where(brain.get_fdata() > 0, 2000 - scan.get_fdata(), 0), scan.affine)
    alone, steered = (model.prepare([scan, guide], brain).reading for guide in (scan, inverted))
    assert alone == steered
    assert isinstance(steered.steps.record["contrast"], dict)  # of one channel, not a list


def test_outside_the_brain_the_reconstruction_is_the_scan(predictors, make_scan):
    scan = make_scan(RAS, SHAPE)
    data = np.asarray(scan.dataobj)
    scored = np.where(data > 0, (data - 500) / 100, -5).astype(np.float32)  # z-scored, with its own background
    result = predictors["world"].predict(nib.Nifti1Image(scored, scan.affine))
    assert (result.brain_mask == (data > 0)).all()
    assert (result.reconstruction[data == 0] == -5).all()
    assert result.background.level == -5


def test_a_result_depends_on_scan_and_seed_alone(predictors, make_scan, tmp_path):
    scan = make_scan(RAS, SHAPE)
    predictor = predictors["world"]
    path = tmp_path / "scan.nii.gz"
    nib.save(scan, path)
    first, again, other = (predictor.predict(path, seed=seed) for seed in (1, 1, 2))
    assert (first.anomaly == again.anomaly).all()
    assert (first.anomaly != other.anomaly).any()
    assert (predictor.predict(nib.load(path), seed=1).anomaly == first.anomaly).all()
    assert (predictor.predict(read_nifti(path), seed=1).anomaly == first.anomaly).all()
    assert (predictor.predict(str(path), seed=1).reconstruction == first.reconstruction).all()


def test_a_mask_may_be_a_path_an_image_an_array_or_a_volume(predictors, make_scan, tmp_path):
    scan = make_scan(RAS, SHAPE)
    brain = scan.get_fdata() > 0
    brain[:8] = False
    image = nib.Nifti1Image(brain.astype(np.uint8), scan.affine)
    nib.save(image, tmp_path / "mask.nii.gz")
    predictor = predictors["voxel"]
    results = [predictor.predict(scan, mask) for mask in (image, tmp_path / "mask.nii.gz", brain, from_image(image))]
    assert all((result.brain_mask == brain).all() for result in results)
    assert all((result.anomaly == results[0].anomaly).all() for result in results)
    with pytest.raises(GeometryError):
        predictor.predict(scan, brain[1:])
    with pytest.raises(InputError):
        predictor.predict(scan, np.zeros(SHAPE, bool))


def test_calibration_gives_mask_volume_and_percentile(predictors, make_scan):
    result = predictors["world"].predict(make_scan(RAS, SHAPE))
    assert (result.anomaly_mask == (result.anomaly > 0.5)).all()
    assert result.volume_ml == pytest.approx(result.anomaly_mask.sum() * 216 / 1000)
    assert (result.threshold, result.threshold_origin) == (0.5, "3 scans of a test")
    assert result.score_percentile == np.mean(np.array(CALIBRATION.case_scores) < result.score)
    with pytest.raises(InputError, match="no uncertainty: there was a single draw"):
        result.image("uncertainty")
    with pytest.raises(InputError, match="no map 'map'"):
        result.image("map")


def test_without_calibration_there_is_no_mask(make_model, make_scan, tiny, tmp_path):
    predictor = load_model(make_model(tmp_path / "m", tiny("partition.stride=16")), "cpu")
    result = predictor.predict(make_scan(RAS, SHAPE))
    found = (result.anomaly_mask, result.volume_ml, result.threshold, result.score_percentile, result.threshold_origin)
    assert found == (None,) * 5
    with pytest.raises(InputError, match="not calibrated"):
        result.image("anomaly_mask")


def test_draws_give_an_uncertainty_map(make_model, make_scan, tiny, tmp_path):
    config = tiny("partition.stride=16", "infer.draws=2", "score.erode_mm=9", "score.sign=dark")
    result = load_model(make_model(tmp_path / "m", config), "cpu").predict(make_scan(RAS, SHAPE))
    assert result.image("uncertainty").shape == SHAPE
    assert result.uncertainty[result.brain_mask].max() > 0
    assert (result.uncertainty[~result.brain_mask] == 0).all()
    assert 0 < np.count_nonzero(result.anomaly) < 0.8 * result.brain_mask.sum()


def test_overrides_that_change_maps_drop_the_threshold(make_model, tiny, tmp_path, caplog):
    folder = make_model(tmp_path / "m", tiny(), CALIBRATION.to_dict())
    assert load_model(folder, "cpu", ("infer.batch_size=3", "score.min_size_mm3=50")).calibration == CALIBRATION
    other = "voxel" if tiny().data.align == "world" else "world"
    changes = (
        "infer.draws=2",
        "partition.stride=4",
        "diffusion.test_timesteps=[100]",
        "score.median_mm=12",
        "score.asymmetry_mm=6",
    )
    for change in (*changes, f"data.align={other}"):
        caplog.clear()
        assert load_model(folder, "cpu", (change,)).calibration is None
        assert "threshold does not apply" in caplog.text


def test_the_distance_from_several_draws_drops_the_threshold_too(make_model, tiny, tmp_path):
    folder = make_model(tmp_path / "m", tiny("infer.draws=2"), CALIBRATION.to_dict())
    assert load_model(folder, "cpu").calibration == CALIBRATION
    assert load_model(folder, "cpu", ("score.mahalanobis=0.1",)).calibration is None


@pytest.mark.parametrize("change", ["data.spacing_mm=2", "partition.cell=4", "diffusion.objective=x0", "model.patch=2"])
def test_overrides_that_need_another_network_are_refused(make_model, tiny, tmp_path, change):
    with pytest.raises(ConfigError, match="what the network was trained as"):
        load_model(make_model(tmp_path / "m", tiny()), "cpu", (change,))


def test_weights_of_another_network_are_refused(random_network, tiny, tmp_path):
    from maediff.model_folder import save_model

    save_model(tmp_path / "m", random_network(tiny("model.mae_width=32")).state_dict(), tiny(), None, "")
    with pytest.raises(ModelError, match="do not fit its config"):
        load_model(tmp_path / "m", "cpu")


def test_progress_is_told(predictors, make_scan):
    seen = []
    predictors["world"].predict(make_scan(RAS, SHAPE), on_batch=lambda done, of: seen.append((done, of)))
    assert seen[-1][0] == seen[-1][1] > 0


@pytest.fixture(scope="module")
def by_orientation(make_model, tiny, tmp_path_factory):
    """Load one model of random weights for each choice of orientations."""
    folder = make_model(tmp_path_factory.mktemp("turned") / "model", tiny("partition.stride=16", "data.spacing_mm=2.5"))
    choices = ("axial",), ("coronal",), ("sagittal",), ("axial", "coronal", "sagittal")
    return {names: load_model(folder, "cpu", (f"infer.orientations=[{','.join(names)}]",)) for names in choices}


def test_the_map_of_several_orientations_is_the_mean_of_theirs(by_orientation, make_scan):
    scan = make_scan(np.diag([2.5, 2.5, 2.5, 1]), (22, 24, 20))
    several = by_orientation["axial", "coronal", "sagittal"].predict(scan)
    alone = [by_orientation[name,].predict(scan) for name in ("axial", "coronal", "sagittal")]
    np.testing.assert_allclose(several.anomaly, np.mean([one.anomaly for one in alone], axis=0), atol=1e-5)
    assert np.abs(alone[0].anomaly - alone[1].anomaly).max() > 1e-2
    assert several.steps["orientations"] == ["axial", "coronal", "sagittal"]
    assert (several.form, *(one.form for one in alone)) == ("volume", "", "", "")
    assert several.to_dict()["form"] == "volume"


def with_score(predictor, **settings):
    return replace(
        predictor,
        config=predictor.config.model_copy(update={"score": predictor.config.score.model_copy(update=settings)}),
    )


def test_where_orientations_disagree_the_mahalanobis_distance_is_less(by_orientation, make_scan):
    scan, least = make_scan(np.diag([2.5, 2.5, 2.5, 1]), (22, 24, 20)), 0.2
    names = ("axial", "coronal", "sagittal")
    plain, weighed = (with_score(by_orientation[names], mahalanobis=value).predict(scan) for value in (0.0, least))
    np.testing.assert_array_equal(weighed.reconstruction, plain.reconstruction)
    assert weighed.units == f"{plain.units}, less where passes disagree"
    alone = [by_orientation[name,] for name in names]
    ready = alone[0].prepare(scan)
    drawn = [ready.prepared.scale.forward(one.predict(scan).reconstruction) for one in alone]
    distance = plain.anomaly * least / np.sqrt(np.var(drawn, axis=0, ddof=1) + least**2)
    inside = plain.brain_mask
    np.testing.assert_allclose(weighed.anomaly[inside], distance[inside], rtol=2e-2, atol=1e-3)
    assert (weighed.anomaly <= plain.anomaly + 1e-6).all()
    assert weighed.anomaly[inside].mean() < 0.95 * plain.anomaly[inside].mean()


def test_where_draws_disagree_the_mahalanobis_distance_is_less(make_model, make_scan, tiny, tmp_path):
    config, scan = tiny("partition.stride=16", "infer.draws=3", "data.spacing_mm=2.5"), make_scan(RAS, SHAPE)
    predictor = load_model(make_model(tmp_path / "m", config), "cpu")
    weighed = with_score(predictor, mahalanobis=0.1)
    ready = predictor.prepare(scan)
    deviation = predictor._healthy(ready.prepared, (0, content_key(ready))).deviation.numpy()
    np.testing.assert_allclose(
        weighed.residual(ready), predictor.residual(ready) * 0.1 / np.sqrt(deviation**2 + 0.1**2), rtol=1e-4, atol=1e-6
    )
    assert deviation.max() > 0.05


def test_the_distance_needs_several_passes(tiny):
    with pytest.raises(ConfigError, match="mahalanobis compares passes, and there is only one"):
        tiny("score.mahalanobis=0.1")
    tiny("score.mahalanobis=0.1", "infer.draws=2")


def test_a_stack_of_thick_slices_is_reconstructed_in_the_first_orientation_only(by_orientation, make_scan):
    scan = make_scan(np.diag([2.5, 2.5, 6, 1]), (22, 24, 9))
    several = by_orientation["axial", "coronal", "sagittal"].predict(scan)
    assert np.array_equal(several.anomaly, by_orientation["axial",].predict(scan).anomaly)
    assert several.steps["orientations"] == ["axial"]
    assert several.form == "stack"


def test_the_input_check_sees_the_same_brain_in_every_orientation(by_orientation, benchmarks_importable):
    from benchmarks.robustness import made_scans

    image, brain = made_scans.brain(3, "flair")
    affine = np.diag([*made_scans._STEP_MM, 1])
    scan = nib.Nifti1Image(np.where(brain, 500 + 100 * image, 0).astype(np.float32), affine)
    seen = []
    for name in ("axial", "coronal", "sagittal"):
        predictor = by_orientation[name,]
        prepared = predictor.prepare(scan).prepared
        measures = predictor.measured(prepared, np.where(prepared.native_mask, 0.1, 0).astype(np.float32)).scan
        assert check_scan(measures) == []
        seen.append([*measures.sides_mm, *(100 * value for value in (*measures.tissues, measures.symmetry))])
    np.testing.assert_allclose(seen[1:], [seen[0]] * 2, atol=8)  # mm or %, slices of 2.5 to 3.7 mm


def test_the_background_of_a_scan_is_sought_once(predictors, make_scan, monkeypatch):
    calls, seek = [], foreground.find_background
    for module in (foreground, brainmask, pipeline):
        if hasattr(module, "find_background"):
            monkeypatch.setattr(module, "find_background", lambda data: calls.append(1) or seek(data))
    predictors["voxel"].prepare(make_scan(RAS, SHAPE))
    assert calls == [1]


def test_progress_over_several_orientations_ends_at_its_total(by_orientation, make_scan):
    seen = []
    scan = make_scan(np.diag([2.5, 2.5, 2.5, 1]), (22, 24, 20))
    by_orientation["axial", "coronal", "sagittal"].predict(scan, on_batch=lambda done, total: seen.append(done / total))
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_a_threshold_does_not_outlive_a_change_of_the_orientations(make_model, tiny, tmp_path):
    folder = make_model(tmp_path / "model", tiny("partition.stride=16"), CALIBRATION.to_dict())
    assert load_model(folder, "cpu", ("infer.batch_size=3",)).calibration is not None
    changed = load_model(folder, "cpu", ("infer.orientations=[axial, coronal]",))
    assert changed.calibration is None
    assert "orientations" in changed.suspended
