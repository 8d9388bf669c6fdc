"""Multi-frame MR as vendors write it: where a frame's place is stored differs, where its voxels are does not.

The layouts follow real files (Philips, Siemens XA, GE, and one frame per file as UIH and Canon write them); every value
tells its place, by DICOM PS3.3 C.7.6.2.1.1.
"""

from __future__ import annotations

import numpy as np
import pytest

from maediff.dicom import convert_dicom, export_dicom, read_dicom
from maediff.errors import GeometryError, InputError
from maediff.volume import write_like

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid  # noqa: E402

SHAPE = (5, 8, 6)  # slices, rows, columns
SPACING = (2.0, 1.5)
STEP = 3.0
ROW, COLUMN = np.array([0.8, 0.6, 0]), np.array([-0.36, 0.48, -0.8])
SERIES = [generate_uid(entropy_srcs=[name]) for name in ("study", "series", "frame")]


def places():
    """LPS mm of every voxel, (slices, rows, columns, 3)."""
    s, r, c = np.indices(SHAPE)[..., None]
    return (
        np.array([-20.0, -30, 10]) + s * STEP * np.cross(ROW, COLUMN) + r * SPACING[0] * COLUMN + c * SPACING[1] * ROW
    )


def value_at(lps):
    return 1000 + lps @ [3.0, 2, 5]


def item(**values):
    found = Dataset()
    for name, value in values.items():
        setattr(found, name, value)
    return found


def measures():
    return [item(PixelSpacing=list(SPACING), SliceThickness=STEP)]


def orientation():
    return [item(ImageOrientationPatient=[*ROW, *COLUMN])]


def frame_groups(place, *, slope=0.5, component="MAGNITUDE", kind="M", position=None, **more):
    groups = item(
        PlanePositionSequence=[
            item(ImagePositionPatient=list(places()[place, 0, 0] if position is None else position))
        ],
        FrameContentSequence=[item(StackID="1", InStackPositionNumber=place + 1)],
        MRImageFrameTypeSequence=[item(FrameType=["ORIGINAL", "PRIMARY", "T1", kind], ComplexImageComponent=component)],
        **more,
    )
    if slope is not None:
        groups.PixelValueTransformationSequence = [item(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US")]
    return groups


def stored(place, slope=0.5):
    return np.rint(value_at(places()[place]) / slope).astype(np.uint16)


def write(path, frames, pixels, shared=None, **more):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, EnhancedMRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = EnhancedMRImageStorage, meta.MediaStorageSOPInstanceUID, "MR"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = SERIES
    data.SeriesNumber, data.ImageType, data.NumberOfFrames = 5, ["ORIGINAL", "PRIMARY", "T1", "M"], len(frames)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = SHAPE[1:]
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared or Dataset()], frames
    data.PixelData = np.stack(pixels).tobytes()
    for name, value in more.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def philips(folder):
    """Everything per frame, a field map beside the magnitude, slopes that differ, a private dimension."""
    frames, pixels = [], []
    for place in (3, 0, 4, 1, 2):
        own = {"PixelMeasuresSequence": measures(), "PlaneOrientationSequence": orientation()}
        frames += [
            frame_groups(place, slope=0.25 + 0.25 * (place % 2), **own),
            frame_groups(place, component="REAL", kind="FIELD_MAP", **own),
        ]
        pixels += [stored(place, 0.25 + 0.25 * (place % 2)), np.full(SHAPE[1:], 7, np.uint16)]
    private = item(DimensionIndexPointer=0x2005106E, FunctionalGroupPointer=0x2005140F)
    private.DimensionIndexPrivateCreator = "Philips MR Imaging DD 001"
    return write(folder / "one.dcm", frames, pixels, DimensionIndexSequence=[private])


def siemens(folder):
    """Orientation and pixel spacing per frame, although all share them."""
    own = [{"PixelMeasuresSequence": measures(), "PlaneOrientationSequence": orientation()} for _ in range(SHAPE[0])]
    return write(
        folder / "one.dcm",
        [frame_groups(place, **own[place]) for place in range(SHAPE[0])],
        [stored(place) for place in range(SHAPE[0])],
    )


def ge(folder):
    """Shared groups, frames against the direction of the slices, no rescaling."""
    shared = item(PixelMeasuresSequence=measures(), PlaneOrientationSequence=orientation())
    order = range(SHAPE[0] - 1, -1, -1)
    return write(
        folder / "one.dcm", [frame_groups(k, slope=None) for k in order], [stored(k, 1.0) for k in order], shared
    )


def frame_per_file(folder):
    """One frame per file, its place in the functional groups alone."""
    for place in range(SHAPE[0]):
        shared = item(PixelMeasuresSequence=measures(), PlaneOrientationSequence=orientation())
        write(folder / f"{(place * 3) % SHAPE[0]}.dcm", [frame_groups(place)], [stored(place)], shared)
    return folder


def two_files(folder):
    """A volume that is spread over two multi-frame files."""
    for name, places_ in (("a", (0, 1, 2)), ("b", (3, 4))):
        shared = item(PixelMeasuresSequence=measures(), PlaneOrientationSequence=orientation())
        write(folder / name, [frame_groups(k) for k in places_], [stored(k) for k in places_], shared)
    return folder


def packages(folder):
    """Two stacks whose slices lie between each other's, one volume together (dcm2niix issue 839)."""
    shared = item(PixelMeasuresSequence=measures(), PlaneOrientationSequence=orientation())
    order = (0, 2, 4, 1, 3)
    frames = [frame_groups(place) for place in order]
    for frame, place in zip(frames, order, strict=True):
        frame.FrameContentSequence[0].StackID = str(1 + place % 2)
    return write(folder / "one.dcm", frames, [stored(place) for place in order], shared)


LAYOUTS = [philips, siemens, ge, frame_per_file, two_files, packages]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_voxel_is_where_the_standard_says(layout, tmp_path):
    volume = read_dicom(layout(tmp_path / "s"))
    assert volume.data.shape == SHAPE[::-1]
    ras = np.moveaxis(np.indices(volume.data.shape), 0, -1) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    np.testing.assert_allclose(volume.data, value_at(ras * [-1, -1, 1]), atol=0.51)
    assert len(volume.notes) == (layout is philips)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exported_maps_lie_over_the_frames_that_they_refer_to(layout, tmp_path):
    source = layout(tmp_path / "in" / "s")
    volume = read_dicom(source)
    name = source.stem
    write_like(tmp_path / "maps" / f"{name}_anomaly.nii.gz", volume.data, volume)
    write_like(tmp_path / "maps" / f"{name}_anomaly-mask.nii.gz", volume.data > 1000, volume, np.uint8)
    (exported,) = export_dicom(tmp_path / "maps", source, tmp_path / "out", trust_names=True)
    assert exported.status == "done", exported.message
    made = hd.imread(exported.files[0])
    grid = made.get_volume(dtype=np.float32)
    lps = np.moveaxis(np.indices(grid.spatial_shape), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    np.testing.assert_allclose(grid.array, value_at(lps), atol=0.51)
    files = [source] if source.is_file() else sorted(source.iterdir())
    images = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, files)}
    (series,) = made.ReferencedSeriesSequence
    assert sorted(ref.ReferencedSOPInstanceUID for ref in series.ReferencedInstanceSequence) == sorted(images)
    for frame in made.PerFrameFunctionalGroupsSequence:
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        image = images[reference.ReferencedSOPInstanceUID]
        assert reference.ReferencedSOPClassUID == EnhancedMRImageStorage
        groups = image.PerFrameFunctionalGroupsSequence[int(reference.get("ReferencedFrameNumber", 1)) - 1]
        assert groups.MRImageFrameTypeSequence[0].ComplexImageComponent == "MAGNITUDE"
        there = groups.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(frame.PlanePositionSequence[0].ImagePositionPatient, there, atol=1e-4)
    mask = hd.seg.segread(exported.files[1]).get_volume(combine_segments=True).match_geometry(grid)
    np.testing.assert_array_equal(mask.array > 0, grid.array > 1000)


def _echoes(folder):
    shared = item(PixelMeasuresSequence=measures(), PlaneOrientationSequence=orientation())
    frames = [
        frame_groups(place, MREchoSequence=[item(EffectiveEchoTime=echo)])
        for echo in (20.0, 80.0)
        for place in range(5)
    ]
    return write(folder / "one.dcm", frames, [stored(place) for _ in range(2) for place in range(5)], shared)


def _phase(folder):
    shared = item(PixelMeasuresSequence=measures(), PlaneOrientationSequence=orientation())
    frames = [frame_groups(place, component="PHASE", kind="P") for place in range(5)]
    return write(folder / "one.dcm", frames, [stored(place) for place in range(5)], shared)


def _miscounted(folder):
    shared = item(PixelMeasuresSequence=measures(), PlaneOrientationSequence=orientation())
    frames = [frame_groups(place) for place in range(5)]
    return write(folder / "one.dcm", frames, [stored(k) for k in range(5)], shared, NumberOfFrames=7)


def _placeless(folder):
    frames = [frame_groups(place) for place in range(5)]
    return write(folder / "one.dcm", frames, [stored(k) for k in range(5)], item(PixelMeasuresSequence=measures()))


def _sheared(folder):
    shared = item(PixelMeasuresSequence=measures(), PlaneOrientationSequence=orientation())
    frames = [frame_groups(k, position=places()[k, 0, 0] + 0.4 * k * ROW) for k in range(5)]
    return write(folder / "one.dcm", frames, [stored(k) for k in range(5)], shared)


def _localizer(folder):
    planes = ([1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1])
    frames = [frame_groups(k, PlaneOrientationSequence=[item(ImageOrientationPatient=planes[k])]) for k in range(3)]
    return write(folder / "one.dcm", frames, [stored(k) for k in range(3)], item(PixelMeasuresSequence=measures()))


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (_localizer, GeometryError, "turned against each other, as those of a localizer are"),
        (_echoes, GeometryError, "share 5 slice positions: 2 echo times; .* needed: convert .* dcm2niix"),
        (_phase, InputError, "no magnitude images: 5 slices are phase images"),
        (_miscounted, InputError, "claims 7 frames and describes 5"),
        (_placeless, InputError, "lack ImageOrientationPatient"),
        (_sheared, GeometryError, "shifted against each other within their planes"),
    ],
)
def test_what_makes_no_volume_is_told_and_stops_no_other(make, kind, said, tmp_path):
    source = make(tmp_path / "in" / "bad")
    with pytest.raises(kind, match=said):
        read_dicom(source)
    ge(tmp_path / "in" / "good")
    bad, good = convert_dicom(tmp_path / "in", tmp_path / "out")
    assert (bad.path, good.path) == (None, tmp_path / "out" / "good.nii.gz")
