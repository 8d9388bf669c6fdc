"""The helpers of the benchmarks; no real scan is needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from maediff.config import ScoreConfig, load_config
from maediff.data.cases import Case
from maediff.evaluation import Estimate, dice
from maediff.model_folder import load_model_folder, resolve_model
from maediff.scoring import anomaly_map
from maediff.volume import read_nifti

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("benchmarks_importable")


def module(name):
    return import_module(f"benchmarks.{name}")


def scripts():
    """Name the modules that can be run, as `python -m` wants them."""
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").rglob("*.py")}
    paths = (path.relative_to(ROOT / "benchmarks") for path, text in texts.items() if "\nif __name__" in text)
    return sorted(
        ".".join(path.with_suffix("").parts) for path in paths if "(main())" in texts[ROOT / "benchmarks" / path]
    )


@pytest.mark.parametrize("name", [name for name in scripts() if name != "index"])
def test_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        module(name).main(["--help"])
    assert ended.value.code == 0
    assert f"python -m benchmarks.{name.removesuffix('.__main__')} " in capsys.readouterr().out


def entries():
    index = module("index")
    return [entry for room in index.ROOMS for entry in index.entries(room)]


def test_the_index_is_that_of_the_scripts():
    index = module("index")
    assert index.INDEX.read_text(encoding="utf-8") == index.markdown(), "run python -m benchmarks.index"
    listed = {entry.module for entry in entries()}
    assert listed == {f"benchmarks.{name}".removesuffix(".__main__") for name in scripts() if name != "index"}


def test_the_index_leads_to_results_and_pages_that_are_there():
    stored = {path.name for path in (ROOT / "benchmarks" / "results").iterdir()}
    listed = {name for entry in entries() for name in entry.results}
    assert stored - listed == set(), "results of no script"
    for entry in entries():
        assert entry.question.endswith((".", "?")), entry
        if set(entry.results) <= stored:
            assert entry.module in (ROOT / entry.page).read_text(encoding="utf-8"), entry


def test_no_script_is_imported_as_a_library():
    names = "|".join(name.replace(".", r"\.") for name in scripts())
    for path in (ROOT / "benchmarks").rglob("*.py"):
        found = re.search(rf"^\s*(from|import) benchmarks\.({names})\b", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert found is None, f"{path}: {found[0]}"


def test_an_installation_is_the_package_and_all_that_it_requires():
    installation = module("speed.installation")
    plain, clustered = installation.needed("maediff"), installation.needed("MAEDiff", ["cluster"])
    assert {"maediff", "torch", "sympy", "scikit-learn"} <= set(plain)  # sympy is required by torch alone
    assert not {"distributed", "pytest"} & set(plain)
    assert set(clustered) - set(plain) >= {"distributed"}
    recorded = [file.size or 0 for file in plain["numpy"].files if file.suffix != ".pyc"]  # as pip wrote them down
    assert installation.size_mb(plain["numpy"]) == pytest.approx(sum(recorded) / 1e6, rel=0.01)


def test_absent_data_are_named(tmp_path):
    common = module("common")
    with pytest.raises(common.AbsentError, match=r"no lgg_flair data: .*cases\.csv.*--data"):
        common.data_folder("lgg_flair", tmp_path)
    assert module("common").shared_data("lgg_flair", tmp_path) is None


def test_results_carry_the_machine_and_survive_nan(tmp_path):
    path = tmp_path / "results.json"
    nan = float("nan")
    module("common").save_results(path, {"a": np.float32(0.5), "b": Estimate(0.1, nan, nan, 1), "c": (nan, Path("x"))})
    found = json.loads(path.read_text())
    assert {"machine", "results", "commit"} <= set(found)
    assert found["results"] == {"a": 0.5, "b": {"mean": 0.1, "ci_low": None, "ci_high": None, "n": 1}, "c": [None, "x"]}


def test_commit_is_that_of_git():
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    assert head.startswith(module("common").git_commit().rstrip("+"))


def test_errors_become_messages_and_exit_codes(capsys, tmp_path):
    code = module("quality.native_space").main(
        ["--model", str(tmp_path / "none"), "--output", str(tmp_path), "--data", str(_mslub(tmp_path))]
    )
    assert code == 1
    assert "error: " in capsys.readouterr().err


def test_config_has_the_network_of_the_packaged_model_once_it_has_its_mask_channel():
    ours = load_config(ROOT / "benchmarks" / "quality" / "lgg_flair.yaml", ["model.mask_channel=true"])
    small = load_config("small", module("release.phantom_model").PLAIN)
    assert ours.model == small.model == load_model_folder(resolve_model("phantom")).config.model
    assert (ours.partition.cell, ours.diffusion.objective) == (small.partition.cell, small.diffusion.objective)


def cases(train=20, test=5):
    splits = ["train"] * train + ["test"] * test
    return [
        Case(f"p{i:02}", Path(f"{i}.nii.gz"), None, Path(f"{i}_lesion.nii.gz"), f"p{i:02}", None, split, f"p{i:02}")
        for i, split in enumerate(splits)
    ]


def test_validation_patients_come_from_the_training_patients():
    rows = module("quality.patients").split_rows(cases(), held_out=6)
    of = {name: {row["subject"] for row in rows if row["split"] == name} for name in ("train", "val", "test")}
    assert (len(of["train"]), len(of["val"])) == (14, 6)
    assert of["test"] == {"p20", "p21", "p22", "p23", "p24"}
    assert all(Path(row["image"]).is_absolute() for row in rows)
    assert rows == module("quality.patients").split_rows(cases()[::-1], held_out=6)
    assert len(module("quality.patients").split_rows(cases(), held_out=6, limit=2)) == 6


def test_table_reads_back(tmp_path):
    from maediff.data.cases import find_cases

    module("quality.patients").write_cases(
        tmp_path / "cases.csv", module("quality.patients").split_rows(cases(), held_out=6)
    )
    assert len(find_cases(tmp_path / "cases.csv", split="val")) == 6


def _mslub(folder):
    data = folder / "mslub"
    data.mkdir()
    native = module("quality.native_space")
    image, _ = native.save(scan(), data, "patient26_flair")
    nib.save(nib.Nifti1Image(scan().lesion.astype(np.uint8), scan().affine), data / "lesion.nii.gz")
    row = f"{image.name},patient26_flair_brainmask.nii.gz,lesion.nii.gz\n"
    (data / "cases.csv").write_text("image_flair,mask,label\n" + row)
    return folder


def scan(codes=(1, 2)):
    """A smooth blob with a brain and a lesion, one voxel a mm, in RAS."""
    x, y, z = np.meshgrid(*(np.arange(n) - n / 2 for n in (24, 30, 21)), indexing="ij")
    distance = np.sqrt((x / 9) ** 2 + (y / 11) ** 2 + (z / 8) ** 2)
    brain = distance < 1
    image = np.where(brain, 100 + 40 * np.cos(x / 5) * np.sin(y / 6), 0).astype(np.float32)
    lesion = np.sqrt((x - 3) ** 2 + y**2 + (z + 1) ** 2) < 3
    affine = np.array([[1, 0, 0, -12], [0, 1, 0, -15], [0, 0, 1, -10], [0, 0, 0, 1.0]])
    return module("quality.native_space").Scan(image, brain, lesion, affine, codes)


def test_flip_moves_no_voxel():
    native, original = module("quality.native_space"), scan()
    turned = native.flipped(original)
    assert nib.aff2axcodes(turned.affine) == ("L", "P", "I")
    back = native.moved(turned.image, turned.affine, original.affine, original.image.shape)
    np.testing.assert_allclose(back, original.image, atol=1e-4)


def test_oblique_keeps_brain_and_places():
    native, original = module("quality.native_space"), scan()
    turned = native.oblique(original)
    assert nib.affines.obliquity(turned.affine).max() > np.deg2rad(10)
    np.testing.assert_allclose(np.linalg.norm(turned.affine[:3, :3], axis=0), 1)
    assert abs(int(turned.brain.sum()) / int(original.brain.sum()) - 1) < 0.03
    back = native.moved(turned.brain, turned.affine, original.affine, original.brain.shape) >= 0.5
    assert dice(back, original.brain) > 0.97


def test_thick_slices_average():
    native, original = module("quality.native_space"), scan()
    coarse = native.thick(original)
    assert coarse.image.shape == (24, 30, 7)
    np.testing.assert_allclose(nib.affines.voxel_sizes(coarse.affine), [1, 1, 3])
    np.testing.assert_allclose(nib.affines.apply_affine(coarse.affine, [0, 0, 0]), [-12, -15, -9])
    inside = coarse.brain[12, 15]
    np.testing.assert_allclose(
        coarse.image[12, 15][inside][1], original.image[12, 15, 3 * np.flatnonzero(inside)[1] + 1]
    )


def test_geometry_check_sees_a_changed_code(tmp_path):
    from maediff.volume import write_like

    native = module("quality.native_space")
    image, _ = native.save(scan((1, 2)), tmp_path / "a", "scan")
    volume = read_nifti(image)
    assert native.same_geometry(write_like(tmp_path / "map.nii.gz", volume.data, volume), image)
    other, _ = native.save(scan((1, 0)), tmp_path / "b", "scan")
    assert (int(read_nifti(other).header["qform_code"]), int(read_nifti(other).header["sform_code"])) == (1, 0)
    assert not native.same_geometry(other, image)


def test_agreement_of_a_map_with_itself_flipped():
    native, original = module("quality.native_space"), scan()
    turned = native.flipped(original)
    one = native.Scored(original, original.image, original.image, {}, 0.0, "")
    other = native.Scored(turned, turned.image, turned.image, {}, 0.0, "")
    assert native.agreement(one, other) == pytest.approx(1, abs=1e-6)


class FakePatient:
    def __init__(self, label):
        self.label = label
        self.brain = np.ones(label.shape, bool)
        self.pseudo_healthy = module("quality.patients").Patient.pseudo_healthy.fget(self)


def test_pseudo_healthy_slices_hold_no_lesion():
    label = np.zeros((4, 4, 3), bool)
    label[1, 1, 2] = True
    patient = FakePatient(label)
    assert patient.pseudo_healthy.any((0, 1)).tolist() == [True, True, False]
    values = np.where(label.any((0, 1)), 9.0, np.linspace(0, 1, 48).reshape(4, 4, 3)).astype(np.float32)
    found = module("quality.methods").pseudo_healthy_calibration([values], [patient], 0.05)
    assert found.threshold < 1
    assert "pseudo-healthy" in found.origin


def test_validated_threshold_finds_the_best_dice():
    rng = np.random.default_rng(0)
    labels = [rng.random((8, 8, 4)) < 0.2 for _ in range(3)]
    maps = [np.where(label, 2.0, 1.0).astype(np.float32) + rng.random(label.shape, np.float32) for label in labels]
    found = module("quality.methods").validated_threshold(maps, [FakePatient(label) for label in labels])
    assert 1.9 < found < 2.1
    assert all(dice(values > found, label) > 0.95 for values, label in zip(maps, labels, strict=True))


class FakePrepared:
    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.slices = rng.random((2, 24, 24), np.float32)
        self.mask = np.pad(np.ones((2, 18, 18), bool), ((0, 0), (3, 3), (3, 3)))
        self.grid = type("Grid", (), {"spacing_mm": (2.0, 2.0, 1.0)})()


def test_choice_makes_the_maps_that_inference_makes():
    choose, prepared = module("quality.settings"), FakePrepared()
    rng = np.random.default_rng(1)
    healthy = {t: rng.random((2, 24, 24), np.float32) for times in choose.TIMESTEPS for t in times}
    found = dict(choose.maps(prepared, healthy))
    assert len(found) == len(choose.TIMESTEPS) * len(choose.SIGNS) * len(choose.MEDIANS_MM) * len(choose.EROSIONS_MM)
    setting = choose.Setting((100, 200), "bright", 5.0, 4.0)
    config = ScoreConfig(sign="bright", median_mm=5.0, erode_mm=4.0)
    mean = (healthy[100] + healthy[200]) / 2
    expected = anomaly_map(prepared.slices, mean, prepared.mask, (2.0, 2.0, 1.0), config)
    np.testing.assert_allclose(found[setting], expected, atol=1e-6)


def test_overrides_of_a_setting_are_valid():
    setting = module("quality.settings").Setting((100, 200), "abs", 10.0, 0.0)
    config = load_config("quick", setting.overrides())
    assert config.diffusion.test_timesteps == (100, 200)
    assert (config.score.sign, config.score.median_mm, config.score.erode_mm) == ("abs", 10.0, 0.0)


def test_montage_is_a_picture(tmp_path):
    pictures, one = module("quality.montage"), scan()
    row = pictures.Shown("a", one.affine, one.image, one.image, one.image, one.brain, one.lesion)
    pictures.write_montage(tmp_path / "figures" / "a.png", [row, row], "heading")
    assert (tmp_path / "figures" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_margin_of_a_scan_is_chosen_on_the_others():
    dices = np.array([[0.95, 0.8, 0, 0, 0, 0], [0.5, 0.9, 0, 0, 0, 0], [0.7, 0.8, 0, 0, 0, 0]])
    margins, kept = module("quality.brainmask").leave_one_out(dices)
    assert margins == [1.0, 0.0, 1.0]  # the second alone pulls to 1 mm
    np.testing.assert_array_equal(kept, [0.8, 0.5, 0.8])


def test_calibration_counts_scans_alike_and_in_ml():
    row = module("quality.calibration").rate_row(0.01, 0.5, [0.0, 0.01, 0.05], volume_ml=1500.0)
    assert row["measured_voxels_per_million"] == pytest.approx(20_000)
    assert (row["lowest_scan_per_million"], row["highest_scan_per_million"]) == (0.0, pytest.approx(50_000))
    assert row["scans_within_promise"] == pytest.approx(2 / 3)
    assert (row["promised_ml_per_scan"], row["measured_ml_per_scan"]) == (pytest.approx(15), pytest.approx(30))


def test_a_simulated_queue_keeps_its_machines_busy():
    simulate = module("speed.scaling").simulate
    assert simulate([2.0], 10.0, 1000, 1) == pytest.approx((10 + 2000) / 3600)
    assert simulate([2.0], 10.0, 1000, 100) == pytest.approx((10 + 20) / 3600)
    assert simulate([2.0], 10.0, 1001, 100) == pytest.approx((10 + 22) / 3600)  # one machine takes one more
    mixed = simulate([1.0, 3.0], 0.0, 2000, 10) * 3600
    assert 380 < mixed < 430  # 2000 scans of 2 s on average


def test_the_process_that_writes_an_unfinished_output_is_found(tmp_path):
    cluster = module("robustness.cluster")
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("looks for processes in /proc")
    code = (
        f"import sys, time; f = open({str(tmp_path / '.a.12345678.nii.gz')!r}, 'w'); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        try:
            other.stdout.readline()
            assert list(cluster.writers(tmp_path)) == [(other.pid, ".a.12345678.nii.gz")]
        finally:
            other.kill()
    assert list(cluster.writers(tmp_path)) == []


def test_maps_that_differ_or_lack_are_named(tmp_path):
    for folder, files in {"one": {"a": b"1", "b": b"2", "c": b"3"}, "two": {"a": b"1", "b": b"0"}}.items():
        (tmp_path / folder).mkdir()
        for name, content in files.items():
            (tmp_path / folder / f"{name}.nii.gz").write_bytes(content)
    assert module("robustness.cluster").differences(tmp_path / "one", tmp_path / "two") == ["b.nii.gz", "c.nii.gz"]


# Residuals by place


def test_places_are_compared_on_the_same_scans():
    rows = [
        {
            "kind": kind,
            "zscore": {"auprc": 0.1},
            "working units": {"auprc": value, "dice": 0.2, "dice_oracle": 0.3},
            "by place": {"auprc": value + 0.1, "dice": 0.2, "dice_oracle": 0.3},
        }
        for kind, value in (("ms", 0.1), ("ms", 0.5), ("dark", 0.9))
    ]
    dark, ms, everything = module("quality.locations")._summary(rows)
    assert [entry["kind"] for entry in (dark, ms, everything)] == ["dark", "ms", "all"]
    gain = everything["auprc"]["difference"]
    assert (gain.mean, gain.ci_low, gain.ci_high) == pytest.approx((0.1, 0.1, 0.1))
    assert everything["auprc"]["working_units"].ci_low < 0.5  # though scans differ
    assert (ms["scans"], everything["auprc"]["p"] < 0.001, everything["dice"]["p"]) == (2, True, 1.0)
