"""From raw scans to prepared ones and back; SimpleITK is needed for registration and bias alone."""

from __future__ import annotations

import json
import os

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from maediff.data.cases import find_cases
from maediff.errors import ConfigError, GeometryError, InputError, OutputError
from maediff.files import read_json
from maediff.locking import folder_lock
from maediff.notes import Information, notes_record, warnings_of
from maediff.rawhead import PrepareSettings, itk, masks, prepare_cohort, restore_cohort, restore_map
from maediff.tables import read_table
from maediff.volume import read_mask, read_nifti
from maediff.working.foreground import looks_stripped

TURNED = np.array([[0, -3.0, 0, 70], [-3, 0, 0, 80], [0, 0, 4, -60], [0, 0, 0, 1]])
SHAPE = (54, 48, 32)
PLAIN = PrepareSettings(bias="none", register="none", align_channels=False)


@pytest.fixture
def raw(tmp_path, make_scan):
    """A folder with one stripped scan in an unusual orientation."""
    folder = tmp_path / "raw"
    folder.mkdir()
    nib.save(make_scan(TURNED, SHAPE), folder / "a_t1.nii.gz")
    return folder


class TestCohort:
    def test_output_is_what_infer_takes(self, raw, tmp_path):
        summary = prepare_cohort(raw, tmp_path / "out", PLAIN)
        (case,) = find_cases(tmp_path / "out")
        scan = read_nifti(case.image)
        mask = read_mask(case.mask, scan, "brain mask")
        assert summary.count("done") == 1
        assert nib.aff2axcodes(scan.affine) == ("R", "A", "S")
        assert not scan.data[~mask].any()
        np.testing.assert_allclose(np.percentile(scan.data[mask], [1, 99]), [0, 1000], atol=0.1)

    def test_a_turned_grid_loses_nothing(self, raw, tmp_path):
        prepare_cohort(raw, tmp_path / "out", PrepareSettings("none", "none", percentiles=None))
        before, after = read_nifti(raw / "a_t1.nii.gz"), read_nifti(tmp_path / "out" / "a_t1.nii.gz")
        back = restore_map(after.data, read_json(tmp_path / "out" / "a_t1_prepare.json"), before)
        np.testing.assert_allclose(back, before.data, rtol=1e-6)

    def test_finished_ones_are_skipped_until_something_changes(self, raw, tmp_path):
        def status(settings=PLAIN, **more):
            return prepare_cohort(raw, tmp_path / "out", settings, **more).cases[0].status

        assert [status(), status(), status(overwrite=True)] == ["done", "skipped", "done"]
        assert status(PrepareSettings("none", "none", spacing_mm=4)) == "done"
        (tmp_path / "out" / "a_t1.nii.gz").unlink()
        assert status(PrepareSettings("none", "none", spacing_mm=4)) == "done"

    def test_a_bad_scan_stops_no_other(self, raw, tmp_path):
        (raw / "b_t1.nii.gz").write_bytes(b"no scan")
        summary = prepare_cohort(raw, tmp_path / "out", PLAIN)
        assert [case.status for case in summary.cases] == ["done", "failed"]
        assert [case.id for case in find_cases(tmp_path / "out")] == ["a_t1"]
        assert "b_t1" in (tmp_path / "out" / "prepare.tsv").read_text()

    def test_results_among_the_raw_scans_are_refused(self, raw):
        with pytest.raises(InputError, match="choose another folder"):
            prepare_cohort(raw, raw, PLAIN)

    @pytest.mark.parametrize("source", ["a_t1.nii.gz", "cases.csv"])
    def test_neither_does_a_file_of_that_folder_or_a_table_there_lose_its_scan(self, raw, source):
        (raw / "cases.csv").write_text("image\na_t1.nii.gz\n")
        before = {path.name: path.read_bytes() for path in raw.iterdir()}
        with pytest.raises(InputError, match="choose another folder"):
            prepare_cohort(raw / source, raw, PLAIN)
        assert {path.name: path.read_bytes() for path in raw.iterdir()} == before

    def test_a_scan_in_the_output_folder_is_never_replaced(self, raw, tmp_path):
        table = tmp_path / "cases.csv"
        table.write_text("image\nraw/a_t1.nii.gz\n")
        before = (raw / "a_t1.nii.gz").read_bytes()
        summary = prepare_cohort(table, raw, PLAIN)
        assert summary.cases[0].status == "failed"
        assert "would be replaced" in summary.cases[0].message
        assert (raw / "a_t1.nii.gz").read_bytes() == before

    def test_label_goes_along(self, raw, tmp_path):
        image = nib.load(raw / "a_t1.nii.gz")
        label = np.zeros(SHAPE, np.uint8)
        label[20:30, 20:30, 10:20] = 1
        nib.save(nib.Nifti1Image(label, image.affine), raw / "a_lesion.nii.gz")
        prepare_cohort(raw, tmp_path / "out", PLAIN)
        (case,) = find_cases(tmp_path / "out")
        assert np.asarray(nib.load(case.label).dataobj).sum() == label.sum()
        case.label.unlink()
        assert prepare_cohort(raw, tmp_path / "out", PLAIN).count("done") == 1  # not finished without its label
        assert case.label.is_file()
        assert prepare_cohort(raw, tmp_path / "out", PLAIN).count("skipped") == 1

    def test_two_runs_do_not_write_into_one_folder(self, raw, tmp_path, monkeypatch):
        monkeypatch.setattr("maediff.locking.WAIT_SECONDS", 0)
        out = tmp_path / "out"
        with folder_lock(out), pytest.raises(OutputError, match="another maediff run is writing"):
            prepare_cohort(raw, out, PLAIN)
        assert list(out.iterdir()) == []
        prepare_cohort(raw, out, PLAIN)
        with folder_lock(tmp_path / "back"), pytest.raises(OutputError, match="another maediff run is writing"):
            restore_cohort(tmp_path, out, tmp_path / "back")


class TestChannels:
    @pytest.fixture
    def table(self, tmp_path, make_scan):
        """Two subjects with two channels each, on grids of their own, and a mask of the first channel."""
        tilted = np.array([[4.0, 0, 0, -76], [0, 3.5, 0, -84], [0, 0, 4.5, -62], [0, 0, 0, 1]])
        rows = ["image_t1,image_flair,mask,subject"]
        for name in ("p", "q"):
            nib.save(make_scan(TURNED, SHAPE), tmp_path / f"{name}_t1.nii.gz")
            nib.save(make_scan(tilted, (39, 48, 28)), tmp_path / f"{name}_flair.nii.gz")
            brain = (np.asarray(nib.load(tmp_path / f"{name}_t1.nii.gz").dataobj) > 0).astype(np.uint8)
            nib.save(nib.Nifti1Image(brain, TURNED), tmp_path / f"{name}_brain.nii.gz")
            rows.append(f"{name}_t1.nii.gz,{name}_flair.nii.gz,{name}_brain.nii.gz,{name}")
        (tmp_path / "raw.csv").write_text("\n".join(rows) + "\n")
        return tmp_path / "raw.csv"

    def test_all_channels_share_grid_and_brain_of_the_first(self, table, tmp_path):
        summary = prepare_cohort(
            table, tmp_path / "out", PrepareSettings("none", "none", percentiles=None, align_channels=False)
        )
        assert [case.case for case in summary.cases] == ["p_t1", "p_flair", "q_t1", "q_flair"]
        (first, _), (second, _) = (find_cases(tmp_path / "out", channel=name) for name in ("t1", "flair"))
        one, two = read_nifti(first.image), read_nifti(second.image)
        mask = read_mask(second.mask, two, "brain mask")
        assert first.mask == second.mask
        np.testing.assert_array_equal(one.affine, two.affine)
        np.testing.assert_array_equal(one.data != 0, mask)
        # the same brain in the same place: what is left is interpolation, most at the rim
        assert np.median(np.abs(one.data - two.data)[mask]) < 12
        assert np.corrcoef(one.data[mask], two.data[mask])[0, 1] > 0.95

    def test_maps_of_each_channel_return_to_its_own_voxels(self, table, tmp_path):
        prepare_cohort(table, tmp_path / "out", PLAIN)
        maps = tmp_path / "maps"
        maps.mkdir()
        (maps / "cases.tsv").write_text("case\tstatus\np_flair\tdone\n")
        image = nib.load(tmp_path / "out" / "p_flair.nii.gz")
        nib.save(image, maps / "p_flair_anomaly.nii.gz")
        (path,) = restore_cohort(maps, tmp_path / "out", tmp_path / "back")
        raw, back = nib.load(tmp_path / "p_flair.nii.gz"), nib.load(path)
        np.testing.assert_array_equal(back.affine, raw.affine)
        inside = ndimage.binary_erosion(raw.get_fdata() > 0, iterations=2)
        assert np.corrcoef(back.get_fdata()[inside], raw.get_fdata()[inside])[0, 1] > 0.95

    def test_finished_ones_are_skipped_until_the_first_channel_changes(self, table, tmp_path):
        def statuses():
            return [case.status for case in prepare_cohort(table, tmp_path / "out", PLAIN).cases]

        assert statuses() == ["done"] * 4
        assert statuses() == ["skipped"] * 4
        image = nib.load(tmp_path / "p_t1.nii.gz")
        nib.save(nib.Nifti1Image(image.get_fdata() * 2, image.affine), tmp_path / "p_t1.nii.gz")
        assert statuses() == ["done", "done", "skipped", "skipped"]

    def test_a_missing_channel_is_told(self, table, tmp_path):
        table.write_text(table.read_text().replace("q_flair.nii.gz", ""))
        with pytest.raises(InputError, match="row 2 has no image_flair; give its path or remove the row"):
            prepare_cohort(table, tmp_path / "out", PLAIN)

    def test_without_its_first_channel_or_its_last_a_scan_is_no_case(self, table, tmp_path):
        (tmp_path / "p_t1.nii.gz").write_bytes(b"no scan")
        (tmp_path / "q_flair.nii.gz").write_bytes(b"no scan")
        summary = prepare_cohort(table, tmp_path / "out", PLAIN)
        assert [case.status for case in summary.cases] == ["failed", "failed", "done", "failed"]
        assert summary.cases[1].message == "its first channel, p_t1, failed"
        with pytest.raises(InputError, match="names no scans"):
            find_cases(tmp_path / "out", channel="t1")

    def test_channels_of_one_name_do_not_overwrite_each_other(self, table, tmp_path):
        for name in ("t1", "flair"):
            (tmp_path / name).mkdir()
            (tmp_path / f"p_{name}.nii.gz").rename(tmp_path / name / "p.nii.gz")
        table.write_text("image_t1,image_flair\nt1/p.nii.gz,flair/p.nii.gz\n")
        summary = prepare_cohort(table, tmp_path / "out", PLAIN)
        assert [case.case for case in summary.cases] == ["p_t1", "p_flair"]


class TestWayBack:
    def test_a_map_on_another_spacing_returns_to_its_place(self, raw, tmp_path):
        out, maps = tmp_path / "out", tmp_path / "maps"
        prepare_cohort(raw, out, PrepareSettings("none", "none", spacing_mm=2.0))
        prepared = nib.load(out / "a_t1.nii.gz")
        maps.mkdir()
        index = np.argwhere(np.ones(prepared.shape, bool)) @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]
        ramp = (index[:, 0] + 2 * index[:, 1] - index[:, 2]).reshape(prepared.shape)
        nib.save(nib.Nifti1Image(ramp.astype(np.float32), prepared.affine), maps / "a_t1_anomaly.nii.gz")
        (maps / "cases.tsv").write_text("case\tstatus\na_t1\tdone\n")
        (path,) = restore_cohort(maps, out, tmp_path / "back")
        back = nib.load(path)
        inner = np.argwhere(np.ones(SHAPE, bool))[::7]
        inner = inner[((inner > 2) & (inner < np.array(SHAPE) - 3)).all(axis=1)]
        x, y, z = (inner @ TURNED[:3, :3].T + TURNED[:3, 3]).T
        np.testing.assert_array_equal(back.affine, TURNED)
        np.testing.assert_allclose(back.get_fdata()[tuple(inner.T)], x + 2 * y - z, atol=1e-3)

    @pytest.mark.parametrize("kind", ["mask", "brain"])
    def test_a_mask_returns_as_a_mask(self, raw, tmp_path, kind):
        out, maps = tmp_path / "out", tmp_path / "maps"
        prepare_cohort(raw, out, PrepareSettings("none", "none", spacing_mm=2.0))
        maps.mkdir()
        names = {"anomaly": "a_t1_anomaly.nii.gz", kind: f"a_t1_{kind}.nii.gz"}
        nib.save(nib.load(out / "a_t1.nii.gz"), maps / names["anomaly"])
        nib.save(nib.load(out / "a_t1_brainmask.nii.gz"), maps / names[kind])
        (maps / "a_t1_anomaly.json").write_text(json.dumps({"case": "a_t1", "outputs": names}))
        (maps / "cases.tsv").write_text("case\tstatus\na_t1\tdone\n")
        restore_cohort(maps, out, tmp_path / "back")
        back = nib.load(tmp_path / "back" / names[kind])
        assert back.get_data_dtype() == np.uint8
        found, brain = np.asarray(back.dataobj), np.asarray(nib.load(raw / "a_t1.nii.gz").dataobj) > 0
        assert set(np.unique(found)) == {0, 1}
        assert 2 * np.count_nonzero(found * brain) / (found.sum() + brain.sum()) > 0.95

    def test_notes_of_prepare_come_along_and_are_told_again(self, raw, tmp_path):
        out, maps = tmp_path / "out", tmp_path / "maps"
        prepare_cohort(raw, out, PLAIN)
        record = out / "a_t1_prepare.json"
        record.write_text(json.dumps(read_json(record) | notes_record([Information("look at the mask"), "known"])))
        again = prepare_cohort(raw, out, PLAIN).cases[0]
        assert again.message == "look at the mask; known"  # skipped, and told again
        assert warnings_of(again.notes) == ("known",)
        maps.mkdir()
        nib.save(nib.load(out / "a_t1.nii.gz"), maps / "a_t1_anomaly.nii.gz")
        (maps / "a_t1_anomaly.json").write_text(json.dumps({"case": "a_t1", "notes": ["known"]}))
        (maps / "cases.tsv").write_text("case\tstatus\tmessage\na_t1\tdone\tknown\n")
        restore_cohort(maps, out, tmp_path / "back")
        restored = read_json(tmp_path / "back" / "a_t1_anomaly.json")
        assert restored["notes"] == ["known", "look at the mask"]
        assert restored["note_levels"] == ["warning", "information"]
        (row,) = read_table(tmp_path / "back" / "cases.tsv").rows
        assert row["message"] == "known; look at the mask"
        assert row["warnings"] == "1"

    def test_a_restored_map_tells_how_its_scan_lies_in_the_template(self, raw, tmp_path):
        out, maps = tmp_path / "out", tmp_path / "maps"
        prepare_cohort(raw, out, PLAIN)
        to_scan = nib.affines.from_matvec(0.9 * np.eye(3), [3, 4, 5])
        record = out / "a_t1_prepare.json"
        record.write_text(json.dumps(read_json(record) | {"registration": {"template_to_scan": to_scan.tolist()}}))
        maps.mkdir()
        nib.save(nib.load(out / "a_t1.nii.gz"), maps / "a_t1_anomaly.nii.gz")
        (maps / "a_t1_anomaly.json").write_text(json.dumps({"case": "a_t1"}))
        (maps / "cases.tsv").write_text("case\tstatus\na_t1\tdone\n")
        restore_cohort(maps, out, tmp_path / "back")
        found = read_json(tmp_path / "back" / "a_t1_anomaly.json")
        np.testing.assert_allclose(np.array(found["to_template_mm"]) @ to_scan, np.eye(4), atol=1e-12)
        assert found["volume_ml"] is None  # no threshold, no volume

    def test_another_raw_scan_is_refused(self, raw, tmp_path, make_scan):
        prepare_cohort(raw, tmp_path / "out", PLAIN)
        moved = TURNED.copy()
        moved[0, 3] += 5
        nib.save(make_scan(moved, SHAPE), raw / "a_t1.nii.gz")
        sidecar = json.loads((tmp_path / "out" / "a_t1_prepare.json").read_text())
        values = np.zeros(sidecar["prepared_grid"]["shape"])
        with pytest.raises(GeometryError, match="give the original file"):
            restore_map(values, sidecar, read_nifti(raw / "a_t1.nii.gz"))

    def test_a_raw_scan_that_is_gone_stops_no_other(self, raw, tmp_path, make_scan):
        out, maps = tmp_path / "out", tmp_path / "maps"
        nib.save(make_scan(TURNED, SHAPE), raw / "b_t1.nii.gz")
        prepare_cohort(raw, out, PLAIN)
        maps.mkdir()
        for name in "ab":
            nib.save(nib.load(out / f"{name}_t1.nii.gz"), maps / f"{name}_t1_anomaly.nii.gz")
        (maps / "cases.tsv").write_text("case\tstatus\na_t1\tdone\nb_t1\tdone\n")
        (raw / "a_t1.nii.gz").unlink()
        told = []
        (path,) = restore_cohort(maps, out, tmp_path / "back", on_failed=lambda *failed: told.append(failed))
        assert path.name == "b_t1_anomaly.nii.gz"
        assert [case for case, _ in told] == ["a_t1"]
        assert "is not where it was when it was prepared" in (tmp_path / "back" / "cases.tsv").read_text()
        (raw / "b_t1.nii.gz").unlink()
        with pytest.raises(InputError, match="is not where it was when it was prepared"):
            restore_cohort(maps, out, tmp_path / "again")

    def test_no_maps_is_said(self, raw, tmp_path):
        prepare_cohort(raw, tmp_path / "out", PLAIN)
        (tmp_path / "cases.tsv").write_text("case\tstatus\na_t1\tfailed\n")
        with pytest.raises(InputError, match="run maediff infer"):
            restore_cohort(tmp_path, tmp_path / "out", tmp_path / "back")


class TestMask:
    def test_stripped_brains_are_told_from_noisy_heads(self, raw):
        scan = read_nifti(raw / "a_t1.nii.gz")
        assert looks_stripped(scan)
        noise = np.random.default_rng(0).integers(0, 80, SHAPE)
        head = type(scan)(np.where(scan.data > 0, scan.data, noise).astype(np.float32), scan.affine, scan.header)
        assert not looks_stripped(head)

    def test_order_of_choice(self, monkeypatch):
        monkeypatch.setattr(masks.shutil, "which", lambda name: f"/bin/{name}")
        assert masks.choose_method("auto", given=True, stripped=True) == "given"
        assert masks.choose_method("auto", given=False, stripped=True) == "stripped"
        assert masks.choose_method("auto", given=False, stripped=False) == "extraction"

    @pytest.mark.parametrize(("asked", "said"), [("given", "no brain mask is given"), ("synthstrip", "not on PATH")])
    def test_what_is_not_there_is_said(self, asked, said, monkeypatch):
        monkeypatch.setattr(masks.shutil, "which", lambda _name: None)
        with pytest.raises(ConfigError, match=said):
            masks.choose_method(asked, given=False, stripped=False)

    def test_a_tool_of_the_user_is_run(self, raw, tmp_path, monkeypatch):
        program = tmp_path / "mri_synthstrip"
        program.write_text('#!/bin/sh\ncp "$2" "$4"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        scan = read_nifti(raw / "a_t1.nii.gz")
        np.testing.assert_array_equal(masks.run_tool("synthstrip", scan), scan.data >= 0.5)
        program.write_text("#!/bin/sh\necho no weights >&2\nexit 4\n")
        with pytest.raises(InputError, match=r"exit code 4.*no weights"):
            masks.run_tool("synthstrip", scan)

    @pytest.mark.parametrize(
        ("change", "warning"),
        [
            (lambda m: m, None),
            (lambda m: m[:, :, :6] * 0, "empty"),
            (lambda m: np.where(np.indices(m.shape).sum(0) % 3 == 0, False, m), "holes|parts|apart"),
        ],
    )
    def test_quality(self, change, warning):
        ball = ((np.indices((40, 40, 40)) - 19.5) ** 2).sum(0) < 17**2
        _, said = masks.check_mask(change(ball).astype(bool), 50.0, None)
        assert (
            (said == ())
            if warning is None
            else any(np.char.find(text, w) >= 0 for w in warning.split("|") for text in said)
        )

    def test_a_mask_beside_the_template_is_warned_of(self):
        ball = ((np.indices((40, 40, 40)) - 19.5) ** 2).sum(0) < 15**2
        facts, said = masks.check_mask(ball, 100.0, np.roll(ball, 12, axis=0))
        assert facts["overlap"] < 0.85
        assert "agree poorly" in said[0]


@pytest.mark.parametrize("wrong", [{"bias": "n3"}, {"spacing_mm": 0.0}, {"percentiles": (5, 5)}, {"mask_from": "bet"}])
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError):
        PrepareSettings(**wrong)


def test_the_rigid_part_of_a_rigid_map_is_itself():
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    turn[:3, 3] = [3, -4, 5]
    np.testing.assert_allclose(itk.rigid_part(turn, np.array([7.0, 8, 9])), turn, atol=1e-12)


class TestRegistration:
    @pytest.fixture(autouse=True)
    def _needs_simpleitk(self):
        pytest.importorskip("SimpleITK")

    def test_a_known_place_is_found_again(self):
        atlas = itk.template()
        truth = np.eye(4)
        truth[:2, :2] = np.array([[0.995, -0.0998], [0.0998, 0.995]]) * 0.95
        truth[:3, 3] = [9, -6, 7]
        found = itk.register(atlas.data, truth @ atlas.affine, atlas.brain, "the scan")
        points = np.argwhere(atlas.brain)[::500] @ atlas.affine[:3, :3].T + atlas.affine[:3, 3]
        error = np.linalg.norm(points @ (found - truth)[:3, :3].T + (found - truth)[:3, 3], axis=1)
        assert error.max() < 2.0

    def test_another_contrast_is_laid_over_the_first_channel(self):
        atlas = itk.template()
        truth = np.eye(4)
        truth[:2, :2] = [[0.998, -0.0632], [0.0632, 0.998]]
        truth[:3, 3] = [4, -3, 5]
        other = np.where(atlas.brain, atlas.data.max() - atlas.data, 0)
        found = itk.register_rigid(atlas, other, truth @ atlas.affine, "the scan")
        points = np.argwhere(atlas.brain)[::500] @ atlas.affine[:3, :3].T + atlas.affine[:3, 3]
        error = np.linalg.norm(points @ (found - truth)[:3, :3].T + (found - truth)[:3, 3], axis=1)
        assert error.max() < 0.5

    def test_bias_and_corrected_scan_give_the_scan_back(self, make_scan):
        scan = make_scan(np.diag([4.0, 4, 4, 1]) - np.array([[0, 0, 0, 80]] * 3 + [[0] * 4]), (40, 40, 40))
        data = scan.get_fdata(dtype=np.float32)
        corrected, field = itk.correct_bias(data, scan.affine, data > 0)
        np.testing.assert_allclose(corrected * field, data, rtol=1e-4)
