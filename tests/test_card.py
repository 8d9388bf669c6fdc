"""The model card: Hugging Face reads it, later parts replace themselves alone, results are those of the model."""

from __future__ import annotations

import json
import math

import pytest
from huggingface_hub import ModelCard

from maediff import card, document_model, model_folder
from maediff.calibration import Calibration
from maediff.errors import ConfigError, InputError, ModelError

CALIBRATION = Calibration(0.2, 0.01, 5, 1000, {"0.01": 0.2, "0.001": 0.4}, (0.3, 0.5), "5 healthy scans")
ESTIMATE = {"mean": 0.91234, "ci_low": 0.85, "ci_high": 0.95, "n": 20}


@pytest.fixture
def plain(tiny):
    return card.model_card(tiny("score.sign=bright"), data="30 slices of 3 subjects", steps=6, loss=0.25)


@pytest.fixture
def folder(tiny, tmp_path, plain):
    model_folder.save_model(tmp_path / "model", {}, tiny(), CALIBRATION.to_dict(), plain)
    return tmp_path / "model"


def metrics(model_hash, **more):
    counts = {"scored": 20, "patients": 19, "with_lesion": 18}
    return {"voxel.auroc": ESTIMATE, "cases": counts, "settings": {"model_hashes": [model_hash]}, **more}


def test_a_metric_that_is_undefined_is_left_out(plain):
    """As `case.auroc` is where no scan is healthy, and Dice without a threshold."""
    given = metrics("ab" * 32, **{"case.auroc": {"mean": None, "ci_low": None, "ci_high": None, "n": 0}})
    measured = card.with_results(plain, given, "ab" * 32, "twenty patients")
    assert "AUROC of voxels" in measured
    assert "AUROC of scans" not in measured


def test_a_new_card_says_what_the_model_is_and_what_it_is_not(plain):
    front = ModelCard(plain).data.to_dict()
    assert front["library_name"] == "maediff"
    assert front["license"] == "other"
    assert "brain-mri" in front["tags"]
    for part in (
        "Research use only",
        "30 slices of 3 subjects",
        "0.2500",
        "32 x 32 pixels of 6 mm",
        "dark lesions are missed",
    ):
        assert part in plain
    assert [line for line in plain.splitlines() if line.startswith("## ")] == [
        "## Data and training",
        "## Preprocessing",
        "## Intended use",
        "## Limits",
    ]


def test_a_card_states_what_the_model_is_for(plain, tiny, folder):
    stated = card.scope_of(plain)
    assert stated.trained_on == "30 slices of 3 subjects"
    assert stated.misses == "dark lesions"
    assert stated.finds == card.NOT_STATED
    both = card.model_card(tiny("score.sign=abs"), data="x", steps=6, loss=0.25)
    assert card.scope_of(both).misses == card.NOT_STATED
    assert card.scope_of("# Any card\n") == card.Scope()
    measured = card.with_results(plain, metrics("ab" * 32), "ab" * 32, "twenty patients")
    assert "twenty patients" in card.scope_of(measured).finds
    assert "0.912" in card.scope_of(measured).finds
    assert card.scope_of(card.with_scope(measured, {"finds": "what I say"})).finds == "what I say"
    document_model(folder, finds="tumours: large ones", misses="MS")
    found = card.scope_of(model_folder.load_model_folder(folder).card)
    assert (found.trained_on, found.finds, found.misses) == ("30 slices of 3 subjects", "tumours: large ones", "MS")


def test_a_method_without_a_loss_has_none(tiny):
    text = card.model_card(tiny("method=zscore"), data="3 scans", steps=0, loss=math.nan)
    assert "nan" not in text
    assert "`zscore`" in text


def test_calibration_replaces_itself_alone(plain):
    once = card.with_calibration(plain + "\nMy own words.\n", CALIBRATION)
    assert "1,000 voxels per million" in once
    assert "0.300 to 0.500" in once
    other = Calibration(0.7, 0.01, 9, 1000, {"0.01": 0.7}, (), "9 others")
    twice = card.with_calibration(once + "\nMore.\n", other)
    assert "9 others" in twice
    assert "5 healthy scans" not in twice
    assert card.with_calibration(twice, CALIBRATION) == card.with_calibration(once + "\nMore.\n", CALIBRATION)
    assert twice.startswith(plain)
    assert "My own words." in twice
    assert "More." in twice


def test_results_stand_with_intervals_and_can_be_read_by_hugging_face(plain):
    text = card.with_results(
        plain, metrics("ab" * 32, **{"case.auroc": ESTIMATE | {"ci_low": None}}), "ab" * 32, 'T: "x"'
    )
    assert "| AUROC of voxels, mean over scans | 0.912 | 0.850 to 0.950 | 20 |" in text
    assert "| AUROC of scans, with a lesion against healthy | 0.912 | – | 20 |" in text
    assert "20 scans of 19 patients, 18 with a lesion" in text
    data = ModelCard(text).data
    assert data.eval_results[0].dataset_name == 'T: "x"'
    assert data.eval_results[0].metric_value == pytest.approx(0.9123)
    assert data.metrics == ["roc_auc", "scan_roc_auc"]
    assert card.without_results(text) == plain
    assert card.without_results(card.with_calibration(text, CALIBRATION)) == card.with_calibration(plain, CALIBRATION)


def test_results_of_another_model_are_refused(plain):
    with pytest.raises(InputError, match="cdcd"):
        card.with_results(plain, metrics("cd" * 32), "ab" * 32, "T")
    with pytest.raises(InputError, match="no model"):
        card.with_results(plain, {"voxel.auroc": ESTIMATE}, "ab" * 32, "T")
    with pytest.raises(InputError, match="hold none"):
        card.with_results(plain, {"settings": {"model_hashes": ["ab" * 32]}}, "ab" * 32, "T")


def test_the_card_of_a_folder_changes_and_the_folder_stays_sound(folder, tmp_path):
    before = model_folder.verify_model_folder(folder)
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(metrics(before)))
    after = document_model(folder, metrics=tmp_path, data="T", licence="cc-by-4.0")
    assert model_folder.verify_model_folder(folder) == after != before
    text = model_folder.describe_model(folder)["card"]
    assert before in text
    assert card.front_matter(text)["license"] == "cc-by-4.0"
    assert model_folder.load_model_folder(folder).calibration == CALIBRATION.to_dict()
    for licence in ("mit", "cc0-1.0"):  # the same results, though the hash has changed
        document_model(folder, licence=licence)
    document_model(folder, metrics=path, data="another name")
    text = model_folder.load_model_folder(folder).card
    assert "On another name:" in text
    assert before not in card.readable(text).replace(f"`{before}`", "")
    assert before not in card.with_calibration(text, CALIBRATION)  # another threshold: another model


def test_the_card_of_a_packaged_model_is_not_changed():
    """The installation is shared by all who use it."""
    before = (model_folder.PACKAGED / "heads" / "README.md").read_bytes()
    with pytest.raises(ConfigError, match="copy it first"):
        document_model("heads", misses="nothing")
    assert (model_folder.PACKAGED / "heads" / "README.md").read_bytes() == before


def test_what_cannot_be_written_into_a_card(folder, tmp_path):
    with pytest.raises(ConfigError, match="nothing"):
        document_model(folder)
    with pytest.raises(ConfigError, match="--data"):
        document_model(folder, metrics=tmp_path)
    with pytest.raises(InputError, match=r"metrics\.json"):
        document_model(folder, metrics=tmp_path / "metrics.json", data="T")
    (folder / "README.md").write_text("edited by hand")
    with pytest.raises(ModelError, match="checksum"):
        document_model(folder, licence="mit")


def test_a_card_is_read_without_its_machinery(plain):
    text = card.readable(card.with_calibration(plain, CALIBRATION))
    assert text.startswith("# MAEDiff model")
    assert "<!--" not in text
    assert card.readable("just words") == "just words\n"


def test_front_matter_that_cannot_be_read_counts_as_none():
    assert card.front_matter("---\n[: {\n---\n# A") == {}
    assert card.front_matter("# A") == {}
    assert card.with_front_matter("# A\n", {"license": "mit"}) == "---\nlicense: mit\n---\n# A\n"
