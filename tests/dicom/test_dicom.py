"""DICOM series that these tests write themselves become NIfTI, and maps become DICOM that overlays them.

Places follow DICOM PS3.3 C.7.6.2.1.1, and intensities tell the place; dcm2niix is the outside oracle.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from maediff.cli import app

from maediff.calibration import Calibration
from maediff.dicom import convert, convert_dicom, export_dicom, frames, headers, holds_dicom, read_dicom
from maediff.errors import ConfigError, GeometryError, InputError
from maediff.rawhead import PrepareSettings, prepare_cohort, restore_cohort
from maediff.volume import read_nifti, write_like

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")

from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

ROWS, COLUMNS, SLICES = 20, 24, 12
SPACING = (2.0, 1.5)  # between rows, between columns, mm
STEP = 4.0
PLANES = {
    "axial": ([1, 0, 0], [0, 1, 0]),
    "sagittal": ([0, 1, 0], [0, 0, -1]),
    "oblique": ([0.8, 0.6, 0], [-0.36, 0.48, -0.8]),
}
PATIENT = {"PatientID": "SECRET-4711", "PatientName": "Doe^Jane", "PatientBirthDate": "19700101", "PatientSex": "F"}


def value_at(x, y, z):
    """A number for every place in LPS mm, whole where rounded, larger than 0."""
    return 1000 + 3 * x + 2 * y + 5 * z


def places(plane):
    """LPS mm of every pixel, (slices, rows, columns, 3)."""
    along_row, along_column = (np.array(v, float) for v in PLANES[plane])
    normal = np.cross(along_row, along_column)
    s, r, c = np.indices((SLICES, ROWS, COLUMNS))[..., None]
    return np.array([-20.0, -30, 10]) + s * STEP * normal + r * SPACING[0] * along_column + c * SPACING[1] * along_row


def write_series(folder, plane="axial", *, number=3, change=None, encode=None, skip=()):
    """Write a series, slices in no order; `change(dataset, k)` alters a slice, `skip` leaves some out."""
    folder.mkdir(parents=True, exist_ok=True)
    where = places(plane)
    study, frame, series = (generate_uid(entropy_srcs=[str(folder.parent), kind]) for kind in ("study", "frame", "x"))
    series = generate_uid(entropy_srcs=[series, str(number)])
    for k in set(range(SLICES)) - set(skip):
        data = _slice(np.rint(value_at(*np.moveaxis(where[k], -1, 0)) / 0.5).astype(np.uint16))
        data.StudyInstanceUID, data.FrameOfReferenceUID, data.SeriesInstanceUID = study, frame, series
        data.SeriesNumber, data.InstanceNumber = number, SLICES - k
        data.ImageOrientationPatient = [*PLANES[plane][0], *PLANES[plane][1]]
        data.ImagePositionPatient = [float(v) for v in where[k, 0, 0]]
        if change:
            change(data, k)
        if encode:
            data.compress(encode)
        data.save_as(folder / f"IM{(k * 7) % SLICES:03d}_{number}", enforce_file_format=True)
    return folder


def _slice(pixels):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    for name, value in PATIENT.items():
        setattr(data, name, value)
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = MRImageStorage, meta.MediaStorageSOPInstanceUID, "MR"
    data.StudyID, data.AccessionNumber, data.StudyDate, data.StudyTime = "7", "ACC9", "20240102", "101112"
    data.ReferringPhysicianName, data.Manufacturer, data.ImageType = "", "Tests", ["ORIGINAL", "PRIMARY", "M"]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.PixelSpacing, data.SliceThickness = list(SPACING), STEP
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 0.5, 0, "US"
    data.PixelData = pixels.tobytes()
    return data


def write_multi_frame(path, plane="oblique"):
    """Write a series as one legacy converted enhanced MR image."""
    images = [pydicom.dcmread(p) for p in sorted(write_series(path.parent / "frames", plane).iterdir())]
    for image in images:
        image.Laterality, image.PositionReferenceIndicator = "", ""
    hd.legacy.LegacyConvertedEnhancedMRImage(images, generate_uid(), 5, generate_uid(), 1).save_as(path)
    return path


def in_lps(affine, shape):
    """LPS mm of every voxel of a RAS affine, (*shape, 3)."""
    return (np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1]


def expected(affine, shape):
    return value_at(*np.moveaxis(in_lps(affine, shape), -1, 0))


class TestReading:
    @pytest.mark.parametrize("plane", PLANES)
    def test_each_voxel_is_where_the_standard_says(self, plane, tmp_path):
        volume = read_dicom(write_series(tmp_path / "s", plane))
        assert volume.data.shape == (COLUMNS, ROWS, SLICES)
        np.testing.assert_allclose(volume.data, expected(volume.affine, volume.data.shape), atol=0.26)

    @pytest.mark.parametrize("plane", PLANES)
    def test_dcm2niix_says_the_same(self, plane, tmp_path):
        dcm2niix = pytest.importorskip("dcm2niix")
        folder = write_series(tmp_path / "s", plane)
        (tmp_path / "theirs").mkdir()
        command = [dcm2niix.bin, "-z", "n", "-f", "x", "-o", str(tmp_path / "theirs"), str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        (path,) = (tmp_path / "theirs").glob("*.nii")
        theirs, ours = read_nifti(path), read_dicom(folder)
        places = np.moveaxis(np.indices(theirs.data.shape), 0, -1) @ theirs.affine[:3, :3].T + theirs.affine[:3, 3]
        index = (places - ours.affine[:3, 3]) @ np.linalg.inv(ours.affine[:3, :3]).T
        np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
        np.testing.assert_array_equal(ours.data[tuple(np.moveaxis(np.rint(index).astype(int), -1, 0))], theirs.data)

    @pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
    def test_lossless_compression_changes_nothing(self, syntax, tmp_path):
        plain, packed = write_series(tmp_path / "a"), write_series(tmp_path / "b", encode=syntax)
        np.testing.assert_array_equal(read_dicom(packed).data, read_dicom(plain).data)

    def test_a_multi_frame_file_is_read(self, tmp_path):
        volume = read_dicom(write_multi_frame(tmp_path / "merged.dcm"))
        np.testing.assert_allclose(volume.data, expected(volume.affine, volume.data.shape), atol=0.26)

    def test_monochrome1_is_turned_and_told(self, tmp_path):
        def turn(data, _k):
            data.PhotometricInterpretation = "MONOCHROME1"
            data.PixelData = (4095 - np.frombuffer(data.PixelData, np.uint16)).tobytes()

        usual, turned = read_dicom(write_series(tmp_path / "a")), read_dicom(write_series(tmp_path / "b", change=turn))
        np.testing.assert_allclose(turned.data - turned.data.min(), usual.data - usual.data.min())
        assert "MONOCHROME1" in turned.notes[0]

    @pytest.mark.parametrize("name", ["DIRFILE", "DICOMDIR_1", "DICOMDIR"])
    def test_an_index_beside_a_series_is_no_image(self, name, tmp_path):
        folder = write_series(tmp_path / "in" / "s")
        for place in (folder, tmp_path / "in"):
            index = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=bytes(128))
            index.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            index.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
            index.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            index.FileSetID, index.DirectoryRecordSequence = "SECRET", [pydicom.Dataset()]
            index.save_as(place / name, enforce_file_format=True)
        (item,) = convert_dicom(tmp_path / "in", tmp_path / "out")
        assert (item.case, item.message) == ("s", "")

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
    def test_files_without_preamble_and_of_either_byte_order_are_read(self, syntax, tmp_path):
        plain = read_dicom(write_series(tmp_path / "a"))
        folder = write_series(tmp_path / "b")
        for path in folder.iterdir():
            data = pydicom.dcmread(path)
            if syntax == ExplicitVRBigEndian:
                data.PixelData = data.pixel_array.astype(">u2").tobytes()
            data.preamble, data.file_meta = None, FileMetaDataset()
            implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
            pydicom.dcmwrite(path, data, implicit_vr=implicit, little_endian=little, force_encoding=True)
        assert holds_dicom(folder)
        np.testing.assert_array_equal(read_dicom(folder).data, plain.data)

    def test_a_file_that_was_copied_counts_once(self, tmp_path, caplog):
        folder = write_series(tmp_path / "s")
        shutil.copy(folder / "IM000_3", folder / "IM000_3 (1)")
        assert read_dicom(folder).data.shape == (COLUMNS, ROWS, SLICES)
        assert "1 files are copies" in caplog.text

    def test_numbers_that_are_stored_as_text_are_read(self, tmp_path):
        def as_text(data, _k):
            del data.PixelSpacing
            data.add_new("PixelSpacing", "UT", "2.0\\1.5")

        stored = read_dicom(write_series(tmp_path / "b", change=as_text))
        np.testing.assert_array_equal(stored.affine, read_dicom(write_series(tmp_path / "a")).affine)

    def test_overlays_in_unused_bits_are_no_intensities(self, tmp_path):
        def draw(data, _k):
            data.BitsStored, data.HighBit = 12, 11
            data.add_new(0x60000100, "US", 16), data.add_new(0x60000102, "US", 12)
            data.PixelData = (np.frombuffer(data.PixelData, np.uint16) | 0x1000).tobytes()

        drawn = read_dicom(write_series(tmp_path / "b", change=draw))
        np.testing.assert_array_equal(drawn.data, read_dicom(write_series(tmp_path / "a")).data)

    def test_phase_images_beside_the_scan_are_left_out(self, tmp_path):
        folder = write_series(tmp_path / "s")
        for path in list(folder.iterdir())[:3]:
            data = pydicom.dcmread(path)
            data.ImageType, data.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "P", "ND"], generate_uid()
            data.save_as(folder / f"{path.name}_phase")
        (item,) = convert_dicom(folder, tmp_path / "out")
        assert item.notes == ("3 slices that are phase images were left out",)

    def test_a_series_is_chosen_by_number(self, tmp_path):
        write_series(tmp_path / "s", "axial", number=3)
        folder = write_series(tmp_path / "s", "sagittal", number=4)
        with pytest.raises(InputError, match=r"holds 2 series: number 3 \(12 images\), number 4 .* folder of its own"):
            read_dicom(folder)
        np.testing.assert_array_equal(
            read_dicom(folder, 4).affine, read_dicom(write_series(tmp_path / "x", "sagittal")).affine
        )
        with pytest.raises(InputError, match="no series 7; its series numbers are 3, 4"):
            read_dicom(folder, 7)


def _unset(name, only=None):
    def change(data, k):
        if only is None or k == only:
            delattr(data, name)

    return change


def _set(name, value, only=None):
    def change(data, k):
        if only is None or k == only:
            setattr(data, name, value)

    return change


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "kind", "said"),
        [
            (_unset("PixelSpacing"), InputError, "lack PixelSpacing"),
            (_unset("ImagePositionPatient", only=4), InputError, "lack ImagePositionPatient"),
            (_unset("FrameOfReferenceUID"), InputError, "lack FrameOfReferenceUID"),
            (_unset("PixelData", only=0), InputError, "lack PixelData"),
            (_set("Modality", "CT"), InputError, "no MR images.*CT"),
            (_set("SamplesPerPixel", 3), InputError, "in colour"),
            (_set("PixelSpacing", [2, 2], only=3), GeometryError, "different pixel spacings"),
            (_set("ImageOrientationPatient", [0, 1, 0, 0, 0, -1], only=0), GeometryError, "localizer"),
            (_set("ImagePositionPatient", [-20, -30, 10], only=5), GeometryError, "share 11 slice positions"),
            (_set("PixelData", b"12"), InputError, "no regular volume"),
            (
                _set("PixelData", bytes(3 * ROWS * COLUMNS * 2)),
                InputError,
                "holds 2880 bytes of pixels and explains 960",
            ),
            (_set("ImagePositionPatient", [1, 2], only=4), InputError, "ImagePositionPatient that cannot be used: 3 n"),
            (_set("ImageOrientationPatient", None), InputError, "lack ImageOrientationPatient"),
            (_set("ImageOrientationPatient", [1, 0, 0]), InputError, "ImageOrientationPatient that cannot be used"),
            (_set("ImageOrientationPatient", [0] * 6), GeometryError, "no pair of perpendicular unit vectors"),
            (_set("PixelSpacing", [0, 0]), InputError, "PixelSpacing that cannot be used: 2 positive numbers"),
            (_set("RescaleSlope", 0), InputError, "RescaleSlope that cannot be used"),
            (_unset("RescaleSlope", only=2), InputError, "some slices .* have a RescaleSlope and others have none"),
            (_set("ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), InputError, "Siemens mosaics"),
            (_set("ImageType", ["ORIGINAL", "PRIMARY", "P"]), InputError, "no magnitude images"),
            (_set("SOPClassUID", SecondaryCaptureImageStorage), InputError, "of modality MR, stored as Secondary Cap"),
            (_set("FrameOfReferenceUID", "1.2.3", only=2), GeometryError, "different frames of reference: 2 of them"),
        ],
    )
    def test_a_bad_header_is_told(self, change, kind, said, tmp_path):
        with pytest.raises(kind, match=said) as caught:
            read_dicom(write_series(tmp_path / "s", change=change))
        assert str(tmp_path / "s") in str(caught.value)
        assert not any(value in str(caught.value) for value in PATIENT.values() if len(value) > 1)

    def test_a_missing_slice_is_told(self, tmp_path):
        with pytest.raises(
            GeometryError, match="1 of 10 distances differ from 4 mm, the largest is 8 mm; slices may be"
        ):
            read_dicom(write_series(tmp_path / "s", skip=[5]))

    def test_a_syntax_without_decoder_is_told(self, tmp_path):
        def relabel(data, _k):
            data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG-2: no image of a scanner
            data["PixelData"].is_undefined_length = True
            data.PixelData = pydicom.encaps.encapsulate([b"x" * 10])

        with pytest.raises(InputError, match=r"compressed as MPEG2.*Explicit VR Little Endian"):
            read_dicom(write_series(tmp_path / "s", change=relabel))

    def test_no_dicom_and_a_damaged_file_are_told(self, tmp_path):
        with pytest.raises(InputError, match="holds no DICOM files"):
            convert_dicom(tmp_path, tmp_path / "out")
        folder = write_series(tmp_path / "s")
        (folder / "IM000_3").write_bytes(bytes(128) + b"DICM" + b"garbage" * 9)
        with pytest.raises(InputError, match=r"IM000_3 .*copy it again"):
            read_dicom(folder)

    def test_two_series_of_one_number_are_not_told_apart_by_it(self, tmp_path):
        write_series(tmp_path / "s", "axial", number=3)
        folder = write_series(tmp_path / "s", "sagittal", number=4)
        for path in folder.glob("*_4"):
            data = pydicom.dcmread(path)
            data.SeriesNumber = 3
            data.save_as(path)
        with pytest.raises(InputError, match=r"number 3 \(12 images\), number 3 .* do not tell them apart"):
            read_dicom(folder, 3)

    def test_whatever_a_series_raises_stops_no_other_and_tells_no_value(self, tmp_path, monkeypatch):
        def fail(_image, _folder):
            raise Bad("Doe^Jane")

        class Bad(Exception):
            pass

        write_series(tmp_path / "in" / "a")
        write_series(tmp_path / "in" / "b")
        right = frames._count
        monkeypatch.setattr(
            frames, "_count", lambda image, folder: (fail if folder.name == "a" else right)(image, folder)
        )
        bad, good = convert_dicom(tmp_path / "in", tmp_path / "out")
        assert "Bad in" in bad.message
        assert "Doe" not in bad.message
        assert good.path.is_file()
        write_like(
            tmp_path / "maps" / "a_anomaly.nii.gz", read_dicom(tmp_path / "in" / "b").data, read_nifti(good.path)
        )
        shutil.copy(tmp_path / "maps" / "a_anomaly.nii.gz", tmp_path / "maps" / "b_anomaly.nii.gz")
        found = export_dicom(tmp_path / "maps", tmp_path / "in", tmp_path / "dicom", trust_names=True)
        assert [item.status for item in found] == ["failed", "done"]
        assert "Doe" not in found[0].message

    def test_two_kinds_of_scans_are_not_guessed_between(self, tmp_path, make_scan):
        write_series(tmp_path / "s")
        assert holds_dicom(tmp_path)
        nib.save(make_scan(np.eye(4), (8, 8, 8)), tmp_path / "a.nii.gz")
        with pytest.raises(InputError, match="give one kind"):
            holds_dicom(tmp_path)

    def test_missing_packages_are_named(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "highdicom", None)
        with pytest.raises(ConfigError, match=r"pip install 'highdicom"):
            read_dicom(write_series(tmp_path / "s"))


@pytest.fixture
def exported(tmp_path, request):
    """A series, maps of it whose values tell the place, and what they became as DICOM."""
    plane = getattr(request, "param", "oblique")
    write_series(tmp_path / "in" / "head", plane)
    volume = read_dicom(tmp_path / "in" / "head")
    write_like(tmp_path / "maps" / "head_anomaly.nii.gz", volume.data / 1000, volume)
    mask = np.zeros(volume.data.shape, np.uint8)
    mask[3:9, 5:8, 2:4] = mask[20, 2, 9] = 1
    write_like(tmp_path / "maps" / "head_anomaly-mask.nii.gz", mask, volume, np.uint8)
    write_like(tmp_path / "scans" / "head.nii.gz", volume.data, volume)
    facts = {"threshold": 0.25, "model_hash": "ab12", "image": "../scans/head.nii.gz"}
    (tmp_path / "maps" / "head_anomaly.json").write_text(json.dumps(facts))
    (item,) = export_dicom(tmp_path / "maps", tmp_path / "in", tmp_path / "out")
    return item, volume, mask


class TestExport:
    @pytest.mark.parametrize("exported", PLANES, indirect=True)
    def test_the_map_lies_over_the_images(self, exported):
        item, volume, _ = exported
        image = hd.imread(item.files[0])
        grid = image.get_volume(dtype=np.float32)
        np.testing.assert_allclose(
            grid.array * 1000, expected(grid.get_affine("RAS"), grid.spatial_shape), rtol=0, atol=0.26
        )
        assert np.sort(grid.array, axis=None).tolist() == np.sort(volume.data / np.float32(1000), axis=None).tolist()
        assert image.SOPClassUID == pydicom.uid.ParametricMapStorage

    @pytest.mark.parametrize("exported", PLANES, indirect=True)
    def test_the_mask_lies_over_the_images(self, exported):
        item, volume, mask = exported
        segmentation = hd.seg.segread(item.files[1])
        grid = segmentation.get_volume(combine_segments=True)
        found = np.argwhere(grid.array) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        wanted = in_lps(volume.affine, mask.shape)[mask > 0]
        np.testing.assert_allclose(
            found[np.lexsort(found.T.round(3))], wanted[np.lexsort(wanted.T.round(3))], atol=1e-3
        )
        (description,) = segmentation.SegmentSequence
        assert "research use only" in description.SegmentLabel
        assert "threshold=0.25" in str(description.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters)

    def test_maps_of_a_multi_frame_file_lie_over_it(self, tmp_path):
        source = write_multi_frame(tmp_path / "merged.dcm")
        volume = read_dicom(source)
        write_like(tmp_path / "maps" / "merged_anomaly.nii.gz", volume.data / 1000, volume)
        write_like(tmp_path / "maps" / "merged_anomaly-mask.nii.gz", volume.data > 1000, volume, np.uint8)
        (item,) = export_dicom(tmp_path / "maps", source, tmp_path / "out", trust_names=True)
        grid = hd.imread(item.files[0]).get_volume(dtype=np.float32)
        np.testing.assert_allclose(grid.array * 1000, expected(grid.get_affine("RAS"), grid.spatial_shape), atol=0.26)
        mask = hd.seg.segread(item.files[1]).get_volume(combine_segments=True).match_geometry(grid)
        np.testing.assert_array_equal(mask.array > 0, grid.array > 1)

    def test_the_hospital_finds_patient_study_and_images(self, exported, tmp_path):
        item, _, _ = exported
        source = pydicom.dcmread(next((tmp_path / "in" / "head").iterdir()))
        instances = {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "in" / "head").iterdir()}
        for path in item.files:
            made = pydicom.dcmread(path)
            for name in (*PATIENT, "StudyInstanceUID", "FrameOfReferenceUID", "AccessionNumber", "StudyID"):
                assert made[name].value == source[name].value, name
            assert made.SeriesInstanceUID != source.SeriesInstanceUID
            assert made.SeriesNumber > 90000
            assert "research use only" in made.SeriesDescription
            (series,) = made.ReferencedSeriesSequence
            assert series.SeriesInstanceUID == source.SeriesInstanceUID
            assert {image.ReferencedSOPInstanceUID for image in series.ReferencedInstanceSequence} <= instances
        assert not any(value in path.name for path in item.files for value in PATIENT.values() if len(value) > 1)

    def test_exported_again_it_is_the_same_object_and_another_map_another(self, exported, tmp_path):
        def uids():
            (item,) = export_dicom(tmp_path / "maps", tmp_path / "in", tmp_path / "out")
            found = [pydicom.dcmread(path) for path in item.files]
            return {data.SOPInstanceUID for data in found} | {data.SeriesInstanceUID for data in found}

        _, volume, _ = exported
        first = uids()
        assert len(first) == 4
        assert uids() == first
        write_like(tmp_path / "maps" / "head_anomaly.nii.gz", volume.data / 500, volume)
        assert len(uids() & first) == 2

    def test_an_empty_mask_and_a_de_identified_series_are_exported(self, tmp_path):
        names = ("PatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "ReferringPhysicianName", "StudyID")

        def strip(data, _k):
            for name in names:
                delattr(data, name)

        volume = read_dicom(write_series(tmp_path / "in", change=strip))
        write_like(tmp_path / "maps" / "in_anomaly.nii.gz", volume.data / 1000, volume)
        write_like(tmp_path / "maps" / "in_anomaly-mask.nii.gz", 0 * volume.data, volume, np.uint8)
        (item,) = export_dicom(tmp_path / "maps", tmp_path / "in", tmp_path / "out", trust_names=True)
        assert item.status == "done"
        assert not hd.seg.segread(item.files[1]).pixel_array.any()

    @pytest.mark.filterwarnings("ignore")  # of writing such a file; reading must be silent
    def test_values_that_break_the_standard_are_not_told(self, tmp_path, capfd, caplog, recwarn):
        folder = write_series(tmp_path / "in", change=_set("PatientID", "SECRET " * 20))
        caplog.clear(), capfd.readouterr(), recwarn.clear()
        volume = read_dicom(folder)
        write_like(tmp_path / "maps" / "in_anomaly.nii.gz", volume.data, volume)
        (item,) = export_dicom(tmp_path / "maps", folder, tmp_path / "out", trust_names=True)
        assert "SECRET" not in caplog.text + "".join(capfd.readouterr()) + item.message
        assert not recwarn.list
        assert item.status == "done"

    @pytest.mark.filterwarnings("ignore")  # of writing such files
    @pytest.mark.parametrize(
        ("name", "value", "kept"),
        [
            ("PatientBirthDate", "1970", ""),
            ("PatientBirthDate", "19700000", ""),
            ("PatientBirthDate", "1970-01-02", "19700102"),
            ("StudyDate", "2024.01.02", "20240102"),
            ("StudyTime", "10:11:12.25", "101112.25"),
            ("StudyTime", "99", ""),
            ("PatientSex", "female", "F"),
            ("PatientSex", "unknown", ""),
            ("PatientAge", "thirty years", "thirty years"),
            ("StudyID", "7" * 30, "7" * 30),
            ("AccessionNumber", "A" * 99, "A" * 99),
            ("SeriesNumber", 2**31 - 5, None),
            ("SeriesNumber", -3, None),
            ("SliceThickness", None, None),
        ],
    )
    def test_values_that_no_standard_allows_stop_no_export(self, name, value, kept, tmp_path):
        volume = read_dicom(write_series(tmp_path / "in", change=_set(name, value)))
        write_like(tmp_path / "maps" / "in_anomaly.nii.gz", volume.data / 1000, volume)
        write_like(tmp_path / "maps" / "in_anomaly-mask.nii.gz", volume.data > 1000, volume, np.uint8)
        (item,) = export_dicom(tmp_path / "maps", tmp_path / "in", tmp_path / "out", trust_names=True)
        assert item.status == "done", item.message
        for path, number in zip(item.files, (90000, 90001), strict=True):
            made = pydicom.dcmread(path)
            if kept is not None:
                assert str(made.get(name, "")) == kept
            assert made.SeriesNumber == number + 3 * (name != "SeriesNumber")
        changed = name == "SeriesNumber" or (kept is not None and kept != value)
        assert [note.split()[0] for note in item.notes] == [name] * changed
        assert not any(str(value) in note for note in item.notes)

    @pytest.mark.parametrize(("text", "kept"), [("1,5\\20", "1.5\\20"), ("1.5\\20", "1.5\\20"), ("1,5\\ten", None)])
    def test_each_of_several_decimals_is_brought_to_the_form_of_the_standard(self, text, kept):
        assert headers._decimals(text) == kept

    @pytest.mark.filterwarnings("ignore")  # of reading such files
    @pytest.mark.parametrize(
        ("name", "text", "kept"),
        [
            ("PatientWeight", "70kg", ""),
            ("PatientWeight", "70,5", "70.5"),
            ("PatientSize", "nan ", ""),
        ],
    )
    def test_decimals_that_are_no_numbers_stop_no_export(self, name, text, kept, tmp_path):
        """Text that pydicom writes for nobody is put into the files by hand."""
        folder = write_series(tmp_path / "in", change=_set(name, "7" * len(text)))
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes().replace(b"7" * len(text), text.encode()))
        volume = read_dicom(folder)
        write_like(tmp_path / "maps" / "in_anomaly.nii.gz", volume.data / 1000, volume)
        (item,) = export_dicom(tmp_path / "maps", folder, tmp_path / "out", trust_names=True)
        assert item.status == "done", item.message
        assert str(pydicom.dcmread(item.files[0]).get(name, "")) == kept
        assert [note.split()[0] for note in item.notes] == [name]

    @pytest.mark.filterwarnings("ignore")  # of writing such files
    @pytest.mark.parametrize(
        ("characters", "person", "told"),
        [
            (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
            (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう", True),
            (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동", True),
            (["ISO 2022 IR 6", "ISO 2022 IR 100"], "Müller^Jürgen", True),
            ("ISO_IR 100", "Müller^Jürgen", False),
            ("ISO_IR_100", "Müller^Jürgen", True),
            ("ISO 2022 IR 100", "Müller^Jürgen", True),
            ("ISO_IR 144", "Люкceмбypг", False),
            ("GB18030", "Wang^XiaoDong=王^小东", False),
            ("ISO_IR 192", "Müller=王^小东", False),
            (None, "Müller^Jürgen", True),
            ("klingon", "Plain^Name", False),
        ],
    )
    def test_names_in_any_character_set_arrive(self, characters, person, told, tmp_path):
        def name(data, _k):
            data.PatientName = person
            if characters is not None:
                data.SpecificCharacterSet = characters

        folder = write_series(tmp_path / "in", change=name)
        volume = read_dicom(folder)
        write_like(tmp_path / "maps" / "in_anomaly.nii.gz", volume.data / 1000, volume)
        (item,) = export_dicom(tmp_path / "maps", folder, tmp_path / "out", trust_names=True)
        assert item.status == "done", item.message
        assert str(pydicom.dcmread(item.files[0]).PatientName) == person
        assert bool(item.notes) == told

    def test_a_map_of_zeros_is_exported(self, tmp_path):
        volume = read_dicom(write_series(tmp_path / "in"))
        write_like(tmp_path / "maps" / "in_anomaly.nii.gz", 0 * volume.data, volume)
        (item,) = export_dicom(tmp_path / "maps", tmp_path / "in", tmp_path / "out", trust_names=True)
        assert item.status == "done", item.message
        assert not hd.imread(item.files[0]).get_volume(dtype=np.float32).array.any()

    def test_orientations_that_differ_by_rounding_are_exported(self, tmp_path):
        turned = _set("ImageOrientationPatient", [1, 1e-6, 0, -1e-6, 1, 0], only=3)
        volume = read_dicom(write_series(tmp_path / "in", change=turned))
        write_like(tmp_path / "maps" / "in_anomaly.nii.gz", volume.data, volume)
        (item,) = export_dicom(tmp_path / "maps", tmp_path / "in", tmp_path / "out", trust_names=True)
        assert item.status == "done", item.message

    def test_a_map_on_another_grid_is_refused(self, exported, tmp_path):
        _, volume, _ = exported
        moved = volume.affine.copy()
        moved[0, 3] += 2
        nib.save(nib.Nifti1Image(volume.data, moved), tmp_path / "maps" / "head_anomaly.nii.gz")
        (item,) = export_dicom(tmp_path / "maps", tmp_path / "in", tmp_path / "again")
        assert item.status == "failed"
        assert "maediff restore" in item.message

    def test_maps_of_another_patient_are_refused(self, exported, tmp_path):
        def other(data, k):
            pixels = np.random.default_rng(k).integers(1, 4000, (ROWS, COLUMNS), np.uint16)
            data.PixelData = pixels.tobytes()

        assert exported[0].status == "done"
        write_series(tmp_path / "mixed" / "head", "oblique", change=other)
        (item,) = export_dicom(tmp_path / "maps", tmp_path / "mixed", tmp_path / "mixed-out")
        assert (item.status, item.files) == ("failed", ())
        assert "shows something else than the DICOM series" in item.message

    @pytest.mark.parametrize("gone", ["scan", "sidecar", "image", "home"])
    def test_maps_that_cannot_be_checked_are_refused_unless_names_are_trusted(self, exported, tmp_path, gone):
        sidecar = tmp_path / "maps" / "head_anomaly.json"
        if gone == "scan":
            (tmp_path / "scans" / "head.nii.gz").unlink()
        elif gone == "sidecar":
            sidecar.unlink()
        else:  # no name of the scan, or one that was shortened for display
            sidecar.write_text(
                json.dumps({"threshold": 0.25} | ({"image": "/mnt~/head.nii.gz"} if gone == "home" else {}))
            )
        steps = f"export-dicom -i {tmp_path}/maps --dicom {tmp_path}/in -o {tmp_path}/again"
        result = CliRunner().invoke(app, steps.split())
        assert result.exit_code == 1, result.output
        assert "cannot check that the maps belong" in result.output
        assert not (tmp_path / "again").exists()
        result = CliRunner().invoke(app, [*steps.split(), "--trust-names"])
        assert result.exit_code == 0, result.output
        assert len(list((tmp_path / "again").iterdir())) == 2

    def test_no_map_is_told(self, exported, tmp_path):
        with pytest.raises(InputError, match=r"head_anomaly\.nii\.gz"):
            export_dicom(tmp_path / "out", tmp_path / "in", tmp_path / "again")


CALIBRATION = Calibration(0.5, 0.01, 3, 300, {}, (0.2,), "a test").to_dict()
PLAIN = PrepareSettings(bias="none", register="none", percentiles=None)


def _brain_only(data, k):
    """Make a stripped scan of a slice: zero but for a box."""
    pixels = data.pixel_array.copy()
    inside = np.zeros_like(pixels, bool)
    inside[3:-3, 4:-4] = 1 < k < SLICES - 2
    data.PixelData = np.where(inside, pixels, 0).astype(np.uint16).tobytes()


class TestPipeline:
    def test_a_bad_series_stops_no_other_and_nothing_names_the_patient(self, tmp_path, caplog):
        write_series(tmp_path / "in" / "a" / "t1", "sagittal", change=_brain_only)
        write_series(tmp_path / "in" / "b" / "t1", skip=[5], change=_brain_only)
        summary = prepare_cohort(tmp_path / "in", tmp_path / "out", PLAIN)
        assert [(case.case, case.status) for case in summary.cases] == [("a_t1", "done"), ("b_t1", "failed")]
        prepared = read_nifti(tmp_path / "out" / "a_t1.nii.gz")
        write_like(tmp_path / "maps" / "a_t1_anomaly.nii.gz", prepared.data, prepared)
        (tmp_path / "maps" / "cases.tsv").write_text("case\tstatus\na_t1\tdone\n")
        restore_cohort(tmp_path / "maps", tmp_path / "out", tmp_path / "back")
        found = export_dicom(tmp_path / "back", tmp_path / "in", tmp_path / "dicom")
        assert [item.status for item in found] == ["done", "no map"]
        grid = hd.imread(found[0].files[0]).get_volume(dtype=np.float32)
        inside = grid.array > 0
        assert inside.any()
        truth = expected(grid.get_affine("RAS"), grid.spatial_shape)
        np.testing.assert_allclose(grid.array[inside], truth[inside], atol=0.26)
        files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        told = caplog.text + "".join(_content(path) for path in files) + "".join(map(str, files))
        assert not any(secret in told for secret in ("SECRET", "Doe", "19700101", "ACC9"))

    def test_a_scan_that_cannot_be_restored_stops_no_other(self, tmp_path):
        names = ("a", "b")
        for name in names:
            write_series(tmp_path / "in" / name, change=_brain_only)
        prepare_cohort(tmp_path / "in", tmp_path / "out", PLAIN)
        for name in names:
            prepared = read_nifti(tmp_path / "out" / f"{name}.nii.gz")
            write_like(tmp_path / "maps" / f"{name}_anomaly.nii.gz", prepared.data, prepared)
        (tmp_path / "maps" / "cases.tsv").write_text("case\tstatus\na\tdone\nb\tdone\n")
        (tmp_path / "out" / "raw" / "a.nii.gz").unlink()
        steps = f"restore -i {tmp_path}/maps -p {tmp_path}/out -o {tmp_path}/back"
        result = CliRunner().invoke(app, steps.split())
        assert result.exit_code == 3, result.output
        assert (tmp_path / "back" / "b_anomaly.nii.gz").is_file()
        table = (tmp_path / "back" / "cases.tsv").read_text()
        assert "a\tfailed" in table
        assert "is not where it was" in table

    @pytest.mark.parametrize("place", ["mnt/home/jane"])
    def test_by_the_command_line(self, tmp_path, monkeypatch, place):
        (tmp_path / place).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        write_series(Path("in/head"), change=_brain_only)
        steps = (
            "prepare -i in -o prepared --bias none --register none",
            "infer -m phantom -i prepared/cases.csv -o out --jobs 1 --report",
            "restore -i out -p prepared -o raw",
            "export-dicom -i raw --dicom in -o dicom",
        )
        for step in steps:
            result = CliRunner().invoke(app, step.split())
            assert result.exit_code == 0, result.output
        assert "head" in Path("out/report.html").read_text()
        (description,) = hd.seg.segread("dicom/head_anomaly-mask.dcm").SegmentSequence
        assert "threshold=" in str(description.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters)
        assert {path.name for path in Path("dicom").iterdir()} == {"head_anomaly.dcm", "head_anomaly-mask.dcm"}

    def test_series_are_scored_as_they_are_and_their_maps_lie_over_them(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_series(Path("in/a/t1"), "sagittal", change=_brain_only)
        write_series(Path("in/b/t1"), skip=[5], change=_brain_only)
        infer = ["infer", "-m", "phantom", "-i", "in", "-o", "out", "--jobs", "1"]
        for status in ("done", "skipped"):
            result = CliRunner().invoke(app, infer)
            assert result.exit_code == 3, result.output
            table = Path("out/cases.tsv").read_text()
            assert f"a_t1\t{status}" in table
            assert "b_t1\tfailed" in table
        planned = CliRunner().invoke(app, [*infer, "--dry-run"])
        assert planned.exit_code == 3
        assert "skip\ta_t1" in planned.stdout
        assert "fail\tb_t1" in planned.stdout
        found = export_dicom(Path("out"), Path("in"), Path("dicom"))
        assert [item.status for item in found] == ["done", "no map"]
        grid = hd.imread(found[0].files[0]).get_volume(dtype=np.float32)
        scan = read_dicom(Path("in/a/t1"))
        assert sorted(grid.spatial_shape) == sorted(scan.data.shape)
        files = [path for path in Path("out").rglob("*") if path.is_file()]
        assert not any("SECRET" in _content(path) for path in files)

    def test_the_plan_of_a_run_hands_on_the_series_that_it_converted(self, tmp_path, monkeypatch, make_model, tiny):
        monkeypatch.chdir(tmp_path)
        for case in ("a", "b"):
            write_series(Path("in", case), change=_brain_only)
        make_model(Path("model"), tiny(), CALIBRATION)
        converted = []

        def counted(folder, series):
            converted.append(folder.name)
            return read_dicom(folder, series)

        monkeypatch.setattr(convert, "read_dicom", counted)
        result = CliRunner().invoke(app, ["infer", "-m", "model", "-i", "in", "-o", "out", "--jobs", "1"])
        assert "2 done" in result.output
        assert sorted(converted) == ["a", "b"]

    def test_a_run_whose_results_lie_below_its_input_can_be_resumed(self, tmp_path, monkeypatch, make_model, tiny):
        monkeypatch.chdir(tmp_path)
        write_series(Path("in/head"), change=_brain_only)
        make_model(Path("model"), tiny(), CALIBRATION)
        steps = {
            "prepare -i in -o in/prepared --bias none": "done, {} skipped, 0 failed",
            "infer -m model -i in/prepared -o in/prepared/out --jobs 1": "done, {} skipped, 0 failed",
            "restore -i in/prepared/out -p in/prepared -o in/raw": "",
            "export-dicom -i in/raw --dicom in -o in/dicom": "2 DICOM files of 1 series",
        }
        for skipped in (0, 1):
            for step, said in steps.items():
                result = CliRunner().invoke(app, step.split())
                assert (result.exit_code, said.format(skipped) in result.output) == (0, True), result.output
        assert sorted(path.name for path in Path("in/dicom").iterdir()) == ["head_anomaly-mask.dcm", "head_anomaly.dcm"]


def _content(path):
    if path.name.endswith(".nii.gz"):
        image = nib.load(path)
        return str(image.header) + image.to_bytes()[:400].decode("latin1")
    return path.read_text()
