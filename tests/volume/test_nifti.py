"""Volumes: what is read is what nibabel reads, what is written lies where it came from, bad input is named."""

from __future__ import annotations

import gzip
import struct
from contextlib import suppress
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from maediff.errors import GeometryError, InputError, OutputError
from maediff.volume import Volume, from_image, grid_distance, image_like, read_mask, read_nifti, stem_of, write_like

RNG = np.random.default_rng(0)
DATA = RNG.integers(1, 200, (7, 6, 5)).astype(np.int16)
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_affine(codes="RAS", angles=(0.0, 0.0, 0.0), spacing=(1.0, 1.0, 1.0), origin=(-10.0, 5.0, 3.0)):
    """Orientation, then obliquity, then spacing; built with nibabel."""
    turn = np.eye(4)
    turn[:3, :3] = nib.eulerangles.euler2mat(*angles)
    shift = np.eye(4)
    shift[:3, 3] = origin
    axes = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(codes)), (1, 1, 1))
    return shift @ turn @ np.linalg.inv(axes) @ np.diag([*spacing, 1.0])


def save(path, data=DATA, affine=None, qform=1, sform=1, **fields):
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    image.set_qform(image.affine, qform)
    image.set_sform(image.affine, sform)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def patch(path, offset, content):
    """Overwrite raw header bytes, below nibabel's own checks."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as stream:
        block = bytearray(stream.read())
    block[offset : offset + len(content)] = content
    with opener(path, "wb") as stream:
        stream.write(block)
    return path


PAIRS = ("RL", "AP", "SI")
ORIENTATIONS = ["".join(codes) for order in permutations(PAIRS) for codes in product(*order)]
orientations = st.sampled_from(ORIENTATIONS)
angles = st.tuples(*[st.floats(-0.6, 0.6)] * 3)
spacings = st.tuples(*[st.sampled_from([0.5, 0.9375, 1.0, 1.2, 3.0, 5.5])] * 3)
codes = st.sampled_from([(1, 1), (1, 0), (0, 1), (0, 2), (2, 4), (1, 2), (3, 3)])


@FEW
@given(
    orientation=orientations,
    angles=angles,
    spacing=spacings,
    codes=codes,
    dtype=st.sampled_from(["u1", "i2", "f4", "f8", ">i2"]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
def test_results_lie_where_the_scan_lies(tmp_path, orientation, angles, spacing, codes, dtype, suffix):
    affine = make_affine(orientation, angles, spacing)
    scan = save(tmp_path / f"scan{suffix}", DATA.astype(dtype), affine, *codes, xyzt_units=10)
    volume = read_nifti(scan)
    result = write_like(tmp_path / f"map{suffix}", RNG.random(DATA.shape), volume)
    before, after = nib.load(scan), nib.load(result)
    np.testing.assert_array_equal(volume.affine, before.affine)
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(after.get_qform(), before.get_qform())
    np.testing.assert_array_equal(after.get_sform(), before.get_sform())
    for field in ("qform_code", "sform_code", "xyzt_units"):
        assert after.header[field] == before.header[field]
    assert after.shape == before.shape
    np.testing.assert_allclose(after.header.get_zooms(), before.header.get_zooms())
    np.testing.assert_allclose(volume.spacing_mm, spacing, rtol=1e-5)
    assert volume.voxel_mm3 == pytest.approx(np.prod(spacing), rel=1e-5)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize(("slope", "inter"), [(1.0, 0.0), (0.25, -3.0), (2.5, 1000.0)])
def test_intensities_are_those_that_nibabel_reads(tmp_path, dtype, slope, inter):
    image = nib.Nifti1Image(DATA.astype(dtype), np.eye(4))
    image.header.set_slope_inter(slope, inter)
    nib.save(image, tmp_path / "scan.nii.gz")
    volume = read_nifti(tmp_path / "scan.nii.gz")
    assert volume.data.dtype == np.float32
    np.testing.assert_allclose(volume.data, nib.load(tmp_path / "scan.nii.gz").get_fdata(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_a_scaled_scan_does_not_scale_its_results(tmp_path, dtype):
    patch(save(tmp_path / "scan.nii"), 112, struct.pack("<2f", 3.0, 7.0))
    values = RNG.integers(0, 2, DATA.shape).astype(dtype)
    path = write_like(tmp_path / "map.nii", values, read_nifti(tmp_path / "scan.nii"), dtype)
    assert struct.unpack("<2f", path.read_bytes()[112:120]) == (1.0, 0.0)
    after = nib.load(path)
    assert after.get_data_dtype() == dtype
    np.testing.assert_array_equal(after.get_fdata(), values)


def test_equal_input_gives_equal_bytes(tmp_path):
    volume = read_nifti(save(tmp_path / "scan.nii.gz"))
    first = write_like(tmp_path / "a.nii.gz", DATA, volume).read_bytes()
    second = write_like(tmp_path / "b.nii.gz", DATA, volume).read_bytes()
    assert first == second
    assert first[4:8] == bytes(4)  # no time in the gzip header
    assert not first[3] & 8  # no file name


def test_nothing_but_geometry_is_taken_from_the_header(tmp_path):
    image = nib.Nifti1Image(DATA, np.eye(4))
    for field in ("descrip", "db_name", "aux_file", "intent_name"):
        image.header[field] = b"Jane Doe"
    image.header["cal_max"] = 100
    image.header.set_intent("t test", (3,))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe 1970-01-01"))
    nib.save(image, tmp_path / "scan.nii")
    written = write_like(tmp_path / "map.nii", DATA, read_nifti(tmp_path / "scan.nii"))
    assert b"Jane" not in written.read_bytes()
    header = nib.load(written).header
    assert header["cal_max"] == 0
    assert header.get_intent()[0] == "none"
    assert not header.extensions


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_both_nifti_versions_and_byte_orders(tmp_path, kind, endianness):
    header = kind.header_class(endianness=endianness)
    header.set_data_dtype(np.dtype(np.int16).newbyteorder(endianness))
    nib.save(kind(DATA, make_affine("LPI"), header), tmp_path / "scan.nii.gz")
    volume = read_nifti(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(volume.data, DATA)
    after = nib.load(write_like(tmp_path / "map.nii.gz", DATA, volume))
    assert type(after) is kind
    np.testing.assert_array_equal(after.affine, volume.affine)


def test_an_image_in_memory_a_path_and_a_volume_are_the_same(tmp_path):
    path = save(tmp_path / "scan.nii", affine=make_affine("PSR"))
    volume = read_nifti(path)
    assert from_image(volume) is volume
    for other in (from_image(path), from_image(str(path)), from_image(nib.load(path))):
        np.testing.assert_array_equal(other.data, volume.data)
        np.testing.assert_array_equal(other.affine, volume.affine)
    image = image_like(DATA, from_image(nib.load(path)))
    np.testing.assert_array_equal(image.affine, volume.affine)
    with pytest.raises(InputError, match="MGHImage, not NIfTI"):
        from_image(nib.MGHImage(DATA, np.eye(4)))


def test_stem():
    assert [stem_of(p) for p in ("a/b.c_t1.nii.gz", "x.nii", "x.NII.GZ", "plain")] == ["b.c_t1", "x", "x", "plain"]


# Notes


def test_a_singleton_axis_is_dropped_with_a_note(tmp_path):
    volume = read_nifti(save(tmp_path / "scan.nii.gz", DATA[..., None]))
    assert volume.data.shape == DATA.shape
    assert any("trailing axis" in note for note in volume.notes)
    assert nib.load(write_like(tmp_path / "map.nii.gz", DATA, volume)).shape == DATA.shape


def test_disagreeing_forms_missing_forms_and_units_are_noted(tmp_path):
    image = nib.Nifti1Image(DATA, np.eye(4))
    image.set_sform(np.eye(4), 1)
    image.set_qform(make_affine(origin=(0, 0, 4)), 1)
    nib.save(image, tmp_path / "scan.nii")
    volume = read_nifti(tmp_path / "scan.nii")
    assert any("disagree by up to 4 mm" in note for note in volume.notes)
    np.testing.assert_array_equal(volume.affine, np.eye(4))
    assert any("neither" in n for n in read_nifti(save(tmp_path / "b.nii", qform=0, sform=0)).notes)
    assert any("metre" in n for n in read_nifti(save(tmp_path / "c.nii", xyzt_units=1)).notes)
    assert read_nifti(save(tmp_path / "d.nii", xyzt_units=2)).notes == ()


def test_an_impossible_qform_does_not_hide_a_good_sform(tmp_path):
    path = patch(save(tmp_path / "scan.nii", affine=make_affine("LAS")), 256, struct.pack("<3f", 1, 1, 1))
    volume = read_nifti(path)
    assert any("quaternion" in note for note in volume.notes)
    after = nib.load(write_like(tmp_path / "map.nii", DATA, volume))
    np.testing.assert_array_equal(after.affine, volume.affine)


# Bad input


def truncated(tmp_path, name, share):
    path = save(tmp_path / name, RNG.integers(0, 9999, (20, 20, 20)).astype(np.int16))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def other(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def with_value(value):
    data = DATA.astype(np.float32)
    data[1, 2, 3] = value
    return data


def rgb():
    return np.zeros((4, 4, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))


def flipped_byte(tmp_path):
    path = save(tmp_path / "a.nii.gz", RNG.integers(0, 9999, (20, 20, 20)).astype(np.int16))
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # in the checksum: the voxels unpack, but are not those that were packed
    path.write_bytes(content)
    return path


SINGULAR = np.eye(4)
SINGULAR[:3, 2] = [1, 1, 0]
NAN_AFFINE = struct.pack("<f", float("nan"))
BAD = {
    "missing": (lambda t: t / "none.nii.gz", "does not exist"),
    "folder": (lambda t: t, "is not a file"),
    "other name": (lambda t: other(t, "scan.dcm", b"DICM"), "not NIfTI by its name"),
    "not gzip": (lambda t: other(t, "a.nii.gz", b"hello world"), "(?i)not a gzipped file"),
    "not NIfTI": (lambda t: other(t, "a.nii", b"hello world" * 100), "is not NIfTI"),
    "empty": (lambda t: other(t, "a.nii", b""), "is not NIfTI"),
    "empty gzip": (lambda t: other(t, "a.nii.gz", b""), "is not NIfTI"),
    "truncated gzip": (lambda t: truncated(t, "a.nii.gz", 0.6), "truncated"),
    "truncated header": (lambda t: truncated(t, "a.nii.gz", 0.004), "a.nii.gz"),
    "truncated plain": (lambda t: truncated(t, "a.nii", 0.6), "truncated"),
    "checksum": (flipped_byte, "damaged"),
    "RGB": (lambda t: save(t / "a.nii", rgb()), "RGB"),
    "complex": (lambda t: save(t / "a.nii", DATA.astype(np.complex64)), "complex"),
    "2-D": (lambda t: save(t / "a.nii", DATA[..., 0]), "2-D"),
    "4-D": (lambda t: save(t / "a.nii", np.stack([DATA] * 3, -1)), r"4-D \(7 x 6 x 5 x 3\)"),
    "5-D": (lambda t: save(t / "a.nii", np.stack([DATA[..., None]] * 3, -1)), "5-D"),
    "NaN": (lambda t: save(t / "a.nii", with_value(np.nan)), "1 voxels that are NaN or Inf"),
    "Inf": (lambda t: save(t / "a.nii", with_value(np.inf)), "NaN or Inf"),
    "beyond float32": (lambda t: save(t / "a.nii", with_value(1).astype(float) * 1e300), "NaN or Inf"),
    "all zero": (lambda t: save(t / "a.nii", DATA * 0), "all zero"),
    "constant": (lambda t: save(t / "a.nii", DATA * 0 + 7), r"constant \(7 everywhere\)"),
    "implausible size": (
        lambda t: patch(save(t / "a.nii"), 40, struct.pack("<4h", 3, 30000, 30000, 30000)),
        "30000 x 30000 x 30000",
    ),
    "more than packed": (
        lambda t: patch(save(t / "a.nii.gz"), 40, struct.pack("<4h", 3, 1200, 1200, 1200)),
        "truncated",
    ),
    "negative size": (lambda t: patch(save(t / "a.nii"), 40, struct.pack("<4h", 3, -3, 5, 5)), "-3 x 5 x 5"),
    "no axes": (lambda t: patch(save(t / "a.nii"), 40, b"\0\0"), "0 axes"),
    "unknown type": (lambda t: patch(save(t / "a.nii"), 70, struct.pack("<h", 999)), "damaged"),
}
BAD_GEOMETRY = {
    "singular": (lambda t: patch(save(t / "a.nii", qform=0), 280, SINGULAR[:3].astype("<f4").tobytes()), "singular"),
    "zero column": (
        lambda t: patch(save(t / "a.nii", qform=0), 280, np.diag([0.0, 1, 1, 1])[:3].astype("<f4").tobytes()),
        "singular affine",
    ),
    "NaN affine": (lambda t: patch(save(t / "a.nii", qform=0), 280, NAN_AFFINE), "NaN or Inf"),
    "zero spacing": (lambda t: patch(save(t / "a.nii"), 84, struct.pack("<f", 0)), r"spacing \(1.0, 0.0, 1.0\)"),
    "zero spacing, no forms": (
        lambda t: patch(save(t / "a.nii.gz", qform=0, sform=0), 80, struct.pack("<3f", 0, 0, 0)),
        "spacing above zero",
    ),
    "NaN spacing": (lambda t: patch(save(t / "a.nii"), 80, NAN_AFFINE), "spacing"),
    "metres": (lambda t: save(t / "a.nii", affine=np.diag([0.001, 0.001, 0.001, 1])), "plausible"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(tmp_path, case):
    make, message = BAD[case]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_nifti(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 1
    assert not isinstance(caught.value, GeometryError)


@pytest.mark.parametrize("case", BAD_GEOMETRY)
def test_bad_geometry_is_named(tmp_path, case):
    make, message = BAD_GEOMETRY[case]
    path = make(tmp_path)
    with pytest.raises(GeometryError, match=message) as caught:
        read_nifti(path)
    assert str(path) in str(caught.value)


@FEW
@given(position=st.integers(0, 351), value=st.integers(0, 255))
@example(position=111, value=95)  # an offset beyond any file
@example(position=123, value=5)  # a unit that does not exist
def test_a_damaged_header_never_ends_in_a_traceback(tmp_path, position, value):
    path = patch(save(tmp_path / "a.nii"), position, bytes([value]))
    with suppress(InputError):
        assert isinstance(read_nifti(path), Volume)


@pytest.mark.parametrize("data", [with_value(np.nan), DATA * 0])
def test_images_in_memory_are_checked_too(data):
    with pytest.raises(InputError, match="the image"):
        from_image(nib.Nifti1Image(data, np.eye(4)))


# Masks


def test_a_mask_is_true_from_half_on(tmp_path):
    volume = read_nifti(save(tmp_path / "scan.nii"))
    values = np.zeros(DATA.shape, np.float32)
    values[0, 0, :5] = [0.2, 0.5, 1, 4, -1]
    path = save(tmp_path / "mask.nii.gz", values)
    for source in (path, str(path), nib.load(path), values):
        mask = read_mask(source, volume, "lesion mask")
        assert mask.dtype == bool
        assert np.argwhere(mask).tolist() == [[0, 0, 1], [0, 0, 2], [0, 0, 3]]


def test_only_an_empty_brain_mask_is_refused(tmp_path):
    volume = read_nifti(save(tmp_path / "scan.nii"))
    empty = save(tmp_path / "mask.nii", DATA * 0)
    assert not read_mask(empty, volume, "lesion mask").any()
    with pytest.raises(InputError, match=r"brain mask .*mask.nii is empty"):
        read_mask(empty, volume, "brain mask")
    with pytest.raises(InputError, match="empty"):
        read_mask(DATA * 0, volume, "brain mask")


def test_a_mask_on_another_grid_is_refused(tmp_path):
    volume = read_nifti(save(tmp_path / "scan.nii"))
    with pytest.raises(GeometryError, match=r"shape \(7, 6, 4\).*\(7, 6, 5\)"):
        read_mask(DATA[..., 1:], volume, "brain mask")
    moved = save(tmp_path / "moved.nii", affine=make_affine(origin=(0, 0, 1)))
    with pytest.raises(GeometryError, match="up to 1 mm away"):
        read_mask(moved, volume, "brain mask")
    flipped = save(tmp_path / "flipped.nii", affine=make_affine("LAS", origin=(0, 0, 0)))
    with pytest.raises(GeometryError, match="another affine"):
        read_mask(flipped, volume, "brain mask")
    with pytest.raises(InputError, match="NaN"):
        read_mask(with_value(np.nan), volume, "brain mask")
    with pytest.raises(InputError, match="numbers or booleans"):
        read_mask(np.full(DATA.shape, "x"), volume, "brain mask")
    with pytest.raises(InputError, match="does not exist"):
        read_mask(tmp_path / "none.nii", volume, "brain mask")


def test_rounding_of_a_quaternion_is_no_other_grid(tmp_path):
    affine = make_affine("LPS", (0.2, -0.1, 0.3), (0.9375, 0.9375, 5.5))
    volume = read_nifti(save(tmp_path / "scan.nii", affine=affine, qform=0))
    assert read_mask(save(tmp_path / "mask.nii", affine=affine, sform=0), volume, "brain mask").any()


def test_grid_distance_is_that_of_the_worst_corner():
    moved = np.eye(4)
    moved[0, 0] = 1.01
    assert grid_distance(np.eye(4), moved, (101, 5, 5)) == pytest.approx(1.0)


# Writing


def test_what_cannot_be_written_is_named(tmp_path):
    volume = read_nifti(save(tmp_path / "scan.nii"))
    with pytest.raises(OutputError, match=r"end in .nii or .nii.gz"):
        write_like(tmp_path / "map.png", DATA, volume)
    with pytest.raises(GeometryError, match=r"shape \(6, 6, 5\)"):
        write_like(tmp_path / "map.nii", DATA[1:], volume)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        write_like(tmp_path / "file" / "map.nii", DATA, volume)
    assert not list(Path(tmp_path).glob(".map*"))
