"""Cases: every kind of source becomes the same list, with nothing lost, mixed up or guessed."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maediff.data.cases import BidsName, find_cases, looks_like_scan, shard
from maediff.errors import ConfigError, InputError

SCANS = Path(__file__).parents[2] / "../shared/data"


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_one_case(tmp_path):
    touch(tmp_path, "scan_t1.nii.gz", "mask.nii.gz")
    (case,) = find_cases(tmp_path / "scan_t1.nii.gz")
    assert (case.id, case.stem, case.subject, case.mask, case.label, case.bids) == (
        "scan_t1",
        "scan_t1",
        "scan_t1",
        None,
        None,
        None,
    )
    (case,) = find_cases(str(tmp_path / "scan_t1.nii.gz"), mask=tmp_path / "mask.nii.gz")
    assert case.mask == tmp_path / "mask.nii.gz"


@pytest.mark.parametrize("name", ["a_t1_brainmask", "a_t1_brain_mask", "a_t1_mask", "a_brainmask", "a_desc-brain_mask"])
def test_a_mask_beside_a_scan_is_found(tmp_path, name):
    touch(tmp_path, "a_t1.nii.gz", f"{name}.nii.gz", "a_lesion.nii")
    for source in (tmp_path / "a_t1.nii.gz", tmp_path):
        (case,) = find_cases(source)
        assert case.mask == tmp_path / f"{name}.nii.gz"
        assert case.label == tmp_path / "a_lesion.nii"
    (case,) = find_cases(tmp_path / "a_t1.nii.gz", mask="other.nii")
    assert case.mask == Path("other.nii")


def test_a_folder_is_searched_for_scans_only(tmp_path):
    touch(
        tmp_path,
        "b.nii",
        "deep/er/a_flair.nii.gz",
        "a_mask.nii.gz",
        "a_brainmask.nii.gz",
        "a_dseg.nii.gz",
        "a_label.nii.gz",
        "a_lesion.nii.gz",
        "a_tumour.nii.gz",
        "a_anomaly.nii.gz",
        "a_anomaly-mask.nii.gz",
        "a_reconstruction.nii.gz",
        "sub-1_desc-anomaly_T2w.nii.gz",
        ".b.1234.nii.gz",
        "notes.txt",
        "run.json",
    )
    cases = find_cases(tmp_path)
    assert [case.stem for case in cases] == ["b", "a_flair"]
    assert [case.stem for case in find_cases(tmp_path, channel="FLAIR")] == ["a_flair"]
    with pytest.raises(InputError, match="of channel 't2'"):
        find_cases(tmp_path, channel="t2")


@pytest.mark.parametrize("name", ["anatomy.nii", "lesional-study_t1.nii", "masked_t1.nii.gz", "segment.nii.gz"])
def test_scans_with_telling_names_stay_scans(name):
    assert looks_like_scan(Path(name))


def test_stems_that_repeat_get_their_folders(tmp_path):
    touch(tmp_path, "x/s1/t1.nii.gz", "x/s2/t1.nii", "x/s2/t2.nii.gz", "x/s1_t1.nii.gz")
    ids = [case.id for case in find_cases(tmp_path)]
    assert len(set(ids)) == 4
    assert sorted(ids) == ["s1_t1", "s1_t1-2", "s2_t1", "t2"]


def test_same_stem_with_two_endings_in_one_folder(tmp_path):
    touch(tmp_path, "t1.nii.gz", "t1.nii")
    assert sorted(case.id for case in find_cases(tmp_path)) == ["t1", "t1-2"]


TABLE = """image,mask,label,subject,session,split,age
a.nii.gz,a_m.nii.gz,,s1,1,train,40
sub/b.nii.gz,,/abs/l.nii.gz,s2,,test,50

c.nii,n/a,N/A,,,test,
"""


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_a_table_gives_its_rows(tmp_path, suffix, start):
    path = table(tmp_path / f"x{suffix}", start + (TABLE if suffix == ".csv" else TABLE.replace(",", "\t")))
    a, b, c = find_cases(path)
    assert (a.image, a.mask, a.label) == (tmp_path / "a.nii.gz", tmp_path / "a_m.nii.gz", None)
    assert (a.subject, a.session, a.split) == ("s1", "1", "train")
    assert (b.image, b.mask, b.label) == (tmp_path / "sub/b.nii.gz", None, Path("/abs/l.nii.gz"))
    assert (c.mask, c.label, c.subject, c.session, c.split) == (None, None, "c", None, "test")
    assert [case.id for case in find_cases(path, split="test")] == ["b", "c"]


def test_a_folder_with_a_table_stands_for_the_table(tmp_path):
    touch(tmp_path, "a.nii.gz", "z.nii.gz")
    table(tmp_path / "cases.csv", "image,split\na.nii.gz,train\n")
    assert [case.split for case in find_cases(tmp_path)] == ["train"]
    table(tmp_path / "cases.csv", "case,status\na,done\n")  # the table of results: no input
    assert [case.stem for case in find_cases(tmp_path)] == ["a", "z"]


def test_a_channel_is_chosen_never_guessed(tmp_path):
    path = table(tmp_path / "x.csv", "image_t1,image_FLAIR,mask\na_t1.nii,a_flair.nii,m.nii\n")
    with pytest.raises(
        InputError, match=r"image_t1, image_flair; models take one channel: choose it with --channel t1 "
    ):
        find_cases(path)
    (case,) = find_cases(path, channel="flair")
    assert case.image == tmp_path / "a_flair.nii"
    with pytest.raises(InputError, match=r"no column image_t2; its columns: image_t1, image_flair, mask"):
        find_cases(path, channel="t2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n,,\n", "is empty"),
        ("scan,mask\na.nii,b.nii\n", "no column image; its columns: scan, mask"),
        ("image,mask\n", "names no scans"),
        ("image,mask\na.nii,\n,m.nii\n", "row 2 has no image"),
        ("image\na.nii\na.nii\n", "names .*a.nii more than once"),
    ],
)
def test_a_bad_table_is_named(tmp_path, text, message):
    path = table(tmp_path / "x.csv", text)
    with pytest.raises(InputError, match=message) as caught:
        find_cases(path)
    assert "x.csv" in str(caught.value)


def test_a_table_that_is_no_text_is_named(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xff\xfeimage")
    with pytest.raises(InputError, match=r"cannot read table .*UTF-8"):
        find_cases(tmp_path / "x.csv")


def test_a_bad_source_is_named(tmp_path):
    touch(tmp_path, "a.nii.gz", "notes.txt", "empty/notes.txt")
    with pytest.raises(InputError, match="does not exist"):
        find_cases(tmp_path / "none")
    with pytest.raises(InputError, match="neither a NIfTI file"):
        find_cases(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="holds no scans"):
        find_cases(tmp_path / "empty")
    with pytest.raises(InputError, match="single scan, not for"):
        find_cases(tmp_path, mask=tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="a single scan has no split"):
        find_cases(tmp_path / "a.nii.gz", split="test")
    with pytest.raises(InputError, match="names no splits"):
        find_cases(tmp_path, split="test")
    path = table(tmp_path / "x.csv", "image,split\na.nii,train\nb.nii,val\n")
    with pytest.raises(InputError, match="no split 'test'; choose one of train, val"):
        find_cases(path, split="test")


def bids(root):
    touch(
        root,
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_label-lesion_mask.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_acq-3d_FLAIR.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_acq-3d_FLAIR.json",
        "derivatives/masks/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "derivatives/masks/sub-02/ses-a/anat/sub-02_ses-a_desc-brain_mask.nii.gz",
        "derivatives/other/sub-02/ses-a/anat/sub-02_ses-a_acq-3d_label-lesion_mask.nii.gz",
        "derivatives/maediff/sub-01/anat/sub-01_desc-anomaly_T2w.nii.gz",
    )
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.8.0"}))
    table(root / "participants.tsv", "participant_id\tsplit\nsub-01\ttrain\nsub-02\tn/a\n")
    return root


def test_a_bids_data_set(tmp_path):
    one, two = find_cases(bids(tmp_path))
    assert one.image == tmp_path / "sub-01/anat/sub-01_T2w.nii.gz"
    assert one.mask == tmp_path / "derivatives/masks/sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    assert one.label == tmp_path / "sub-01/anat/sub-01_label-lesion_mask.nii.gz"
    assert (one.id, one.subject, one.session, one.split) == ("sub-01_T2w", "sub-01", None, "train")
    assert one.bids == BidsName("sub-01/anat", "sub-01", "T2w")
    assert two.mask == tmp_path / "derivatives/masks/sub-02/ses-a/anat/sub-02_ses-a_desc-brain_mask.nii.gz"
    assert two.label is not None
    assert (two.subject, two.session, two.split) == ("sub-02", "ses-a", None)
    assert two.bids == BidsName("sub-02/ses-a/anat", "sub-02_ses-a_acq-3d", "FLAIR")
    assert find_cases(tmp_path, split="train") == [one]
    assert find_cases(tmp_path, channel="t2") == [one]
    assert find_cases(tmp_path, channel="flair") == [two]
    with pytest.raises(InputError, match=r"\*_T1w.nii.gz"):
        find_cases(tmp_path, channel="t1")


@given(count=st.integers(0, 40), n=st.integers(1, 12))
def test_shards_are_disjoint_whole_and_even(count, n):
    cases = list(range(count))
    parts = [shard(cases, k, n) for k in range(1, n + 1)]
    assert sorted(chain.from_iterable(parts)) == cases
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("k", "n"), [(0, 2), (3, 2), (1, 0), (-1, 3)])
def test_a_shard_that_does_not_exist_is_refused(k, n):
    with pytest.raises(ConfigError, match=f"shard {k}/{n}"):
        shard([], k, n)


@pytest.mark.skipif(not SCANS.is_dir(), reason="real scans (../shared/data) are not here")
def test_the_real_tables():
    train, test = (find_cases(SCANS / "lgg_flair", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (60, 20)
    assert not {case.subject for case in train} & {case.subject for case in test}
    assert all(p.is_file() for case in train + test for p in (case.image, case.mask, case.label))
    assert len(find_cases(SCANS / "ixi_t1")) == 10
    assert [case.id for case in find_cases(SCANS / "mslub", channel="flair")] == ["patient07_flair", "patient26_flair"]


def test_ids_from_folders_above_the_table_are_not_hidden(tmp_path):
    """Repeated names take those of their folders; a path through `..` must not give a name that begins with dots."""
    for folder in ("raw", "tables/x"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "t1.nii.gz").write_bytes(b"")
    table = tmp_path / "tables" / "cases.csv"
    table.write_text("image\nx/t1.nii.gz\n../raw/t1.nii.gz\n")
    assert [case.id for case in find_cases(table)] == ["tables_x_t1", "raw_t1"]
