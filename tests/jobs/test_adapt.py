"""Adapting a model to a site: the job, its folder, and what refuses."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from maediff.cli import app

from maediff.bundle import export_bundle
from maediff.data.cases import find_cases
from maediff.errors import ConfigError, InputError, ModelError
from maediff.files import read_json
from maediff.inference.load import load_model
from maediff.inference.reading import Reading, Steps
from maediff.jobs import adapt
from maediff.jobs.adapt import adapt_model, rehearsal_of, suspicious, tuning_config, with_brains
from maediff.jobs.calibrate import calibrate_model
from maediff.low_rank import LowRank, attach, detached
from maediff.methods.build import build_network
from maediff.model_folder import describe_model, load_model_folder, merge_adapter, save_model, verify_model_folder
from maediff.training.rehearsal import Rehearsal
from maediff.training.tune import Schedule, tune
from maediff.volume import read_mask, read_nifti

AFFINE = np.diag([4.0, 4.0, 8.0, 1.0]) - np.array([[0, 0, 0, 64], [0, 0, 0, 80], [0, 0, 0, 48], [0] * 4])
SHORT = Schedule(max_steps=6, lr=2e-2, every=2, patience=10)


@pytest.fixture(scope="module")
def scans(tmp_path_factory, make_scan):
    folder = tmp_path_factory.mktemp("site")
    for seed in range(4):
        nib.save(make_scan(AFFINE, (32, 40, 12), seed=seed), folder / f"s{seed}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny, make_model):
    return make_model(tmp_path_factory.mktemp("base") / "model", tiny("partition.stride=16"))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, scans, base):
    return adapt_model(base, scans, tmp_path_factory.mktemp("adapted") / "a", rank=2, schedule=SHORT, device="cpu")


def maps(model, scan, *overrides):
    result = load_model(model, "cpu", overrides).predict(scan)
    return result.anomaly, result.reconstruction


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_it_learns_from_the_site_and_calibrates_on_the_held_out(adapted, base, scans):
    assert adapted.tuned.loss_after < adapted.tuned.loss_before
    assert 0 < adapted.tuned.best_step <= 6
    assert adapted.calibration.n_scans == 1
    assert "1 held-out healthy scan of the site" in adapted.calibration.origin
    assert not same(maps(adapted.folder, scans / "s0.nii.gz"), maps(base, scans / "s0.nii.gz"))
    stored = load_model_folder(adapted.folder)
    assert stored.base == base
    assert "adapted with low-rank updates (rank 2)" in stored.card


def test_a_held_out_scan_that_is_refused_costs_the_threshold_and_not_the_adapter(
    base, scans, tmp_path, monkeypatch, caplog
):
    def refused(*_arguments, **_options):
        raise InputError("s3.nii.gz is not what the model can judge")

    monkeypatch.setattr("maediff.jobs.calibrate.calibrate_folder", refused)
    made = adapt_model(base, scans, tmp_path / "a", rank=2, schedule=SHORT, device="cpu")
    assert made.calibration is None
    assert load_model_folder(made.folder).calibration is None
    assert "the model has no threshold: s3.nii.gz is not what the model can judge" in caplog.text


def test_brains_of_whole_heads_are_found_as_infer_finds_them(scans, tiny, tmp_path, monkeypatch, caplog):
    """A scan with a mask, a stripped one and one that cannot be read stay as they are."""
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no scan")
    head, stripped = scans / "s0.nii.gz", scans / "s1.nii.gz"
    cases = [find_cases(path)[0] for path in (head, stripped)]
    cases += [replace(cases[1], id="masked", mask=stripped), replace(cases[1], id="broken", image=broken)]
    brain = read_nifti(head).data > 0.3

    def find(volume, _config):
        return (brain if "s0" in volume.name else None), Steps()

    monkeypatch.setattr(adapt, "find_brain", find)
    seen = []
    found = with_brains(cases, tiny(), tmp_path, seen.append)
    assert found[1:] == cases[1:]
    np.testing.assert_array_equal(read_mask(found[0].mask, read_nifti(head), "mask"), brain)
    assert seen == [cases[0].id]
    assert "brains of 1 whole-head scan (s0)" in caplog.text
    assert "no brain of broken" in caplog.text


def test_the_folder_is_small_and_holds_no_weights(adapted, base):
    names = {path.name for path in adapted.folder.iterdir()}
    assert "adapter.safetensors" in names
    assert "model.safetensors" not in names
    assert (adapted.folder / "adapter.safetensors").stat().st_size < 2**20
    facts = describe_model(adapted.folder)
    assert facts["adapter"]["rank"] == 2
    assert (
        facts["adapter"]["base_weights"]
        == dict(reversed(line.split("  ")) for line in (base / "SHA256SUMS").read_text().splitlines())[
            "model.safetensors"
        ]
    )
    assert facts["parameters"] == describe_model(base)["parameters"]


def test_the_same_seed_gives_the_same_adapter(adapted, base, scans, tmp_path):
    again = adapt_model(base, scans, tmp_path / "again", rank=2, schedule=SHORT, device="cpu")
    first, second = (load_model_folder(folder).weights for folder in (adapted.folder, again.folder))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_a_step_that_helps_it_is_the_base_bit_for_bit(base, scans, tmp_path):
    harmful = Schedule(max_steps=2, lr=1e3, every=1, patience=1)
    found = adapt_model(base, scans, tmp_path / "a", rank=2, schedule=harmful, device="cpu")
    assert found.tuned.best_step == 0
    assert found.tuned.loss_after == found.tuned.loss_before
    assert same(maps(found.folder, scans / "s1.nii.gz"), maps(base, scans / "s1.nii.gz"))


def test_scans_of_another_contrast_than_it_was_adapted_to_are_said(scans, tiny, make_model, tmp_path, monkeypatch):
    """What the random scans read as is made up here."""

    def read_as(kind):
        reading = Reading("dark" if kind == "t1" else "bright", kind)
        monkeypatch.setattr("maediff.inference.predictor.read_sign", lambda *_: reading)

    base = make_model(tmp_path / "base", tiny("partition.stride=16", "score.sign=auto"))
    read_as("t1")
    adapted = adapt_model(base, scans, tmp_path / "a", rank=2, schedule=SHORT, device="cpu").folder
    assert describe_model(adapted)["adapter"]["contrasts"] == ["t1"]
    assert load_model(adapted, "cpu").adapted_to == ("t1",)

    def told(*overrides):
        notes = load_model(adapted, "cpu", overrides).prepare(scans / "s0.nii.gz").steps.notes
        return any("adapted to T1 scans, and this one reads as T2" in note for note in notes)

    assert not told()
    read_as("t2")
    assert told()
    assert not told("infer.adapter=false")
    read_as("")
    assert not told()


def test_merged_switched_off_and_unmerged(adapted, base, scans, tmp_path):
    """Merged: a model of its own, the same maps. Off: the base. Unmerged: the network that learned, the same maps."""
    scan = scans / "s2.nii.gz"
    merge_adapter(adapted.folder, tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert same(maps(tmp_path / "merged", scan), maps(adapted.folder, scan))
    assert load_model_folder(tmp_path / "merged").calibration == load_model_folder(adapted.folder).calibration
    assert same(maps(adapted.folder, scan, "infer.adapter=false"), maps(base, scan))
    assert load_model(adapted.folder, "cpu", ("infer.adapter=false",)).model_hash == verify_model_folder(base)

    predictor = load_model(adapted.folder, "cpu")
    unmerged = load_model(base, "cpu")
    attach(unmerged.network, 2)
    delta = load_updates(adapted.folder)
    with torch.no_grad():
        for name, module in unmerged.network.named_modules():
            if isinstance(module, LowRank):
                weight = name.replace(".parametrizations.", ".").rpartition(".")[0]
                module.up.copy_(delta[f"{weight}.up"])
                module.down.copy_(delta[f"{weight}.down"])
    assert detached(unmerged.network).keys() == delta.keys()
    one, other = predictor.predict(scan), unmerged.predict(scan)
    np.testing.assert_allclose(one.anomaly, other.anomaly, atol=1e-6)
    np.testing.assert_allclose(one.reconstruction, other.reconstruction, rtol=1e-6)


def load_updates(folder):
    from maediff.low_rank import Adapter

    return Adapter.from_bytes((folder / "adapter.safetensors").read_bytes()).updates


def test_it_is_recalibrated_like_any_model(adapted, scans, tmp_path):
    copy = shutil.copytree(adapted.folder, tmp_path / "copy")
    calibration = calibrate_model(copy, scans, device="cpu")
    assert load_model(copy, "cpu").calibration.threshold == calibration.threshold
    assert calibration.n_scans == 4
    assert load_model_folder(copy).base is not None


def test_a_moved_study_keeps_its_base(adapted, base, tmp_path):
    """The path to the base is relative, so that both can be moved together."""
    study = tmp_path / "moved"
    shutil.copytree(base.parent, study / base.parent.name)
    there = shutil.copytree(adapted.folder.parent, study / adapted.folder.parent.name) / adapted.folder.name
    hidden = base.rename(base.with_name("hidden"))
    try:
        assert load_model_folder(there).base == study / base.parent.name / base.name
        with pytest.raises(
            ModelError, match=r"is an adapter of .*, which is not there; put back the model whose weights"
        ):
            load_model_folder(adapted.folder)
    finally:
        hidden.rename(base)


# What refuses


def test_an_adapter_on_another_base_is_refused(adapted, base, tiny, make_model, tmp_path):
    study = tmp_path / "study"
    make_model(study / base.parent.name / base.name, tiny("partition.stride=16"), seed=5)
    there = shutil.copytree(adapted.folder.parent, study / adapted.folder.parent.name) / adapted.folder.name
    hidden = base.rename(base.with_name("hidden"))
    try:
        with pytest.raises(ModelError, match="is an adapter of another base"):
            load_model(there, "cpu")
    finally:
        hidden.rename(base)


def test_adapters_are_not_stacked_and_not_passed_on_alone(adapted, base, scans, tmp_path):
    with pytest.raises(ModelError, match=r"adapted already, and adapters are not stacked.*--merge"):
        adapt_model(adapted.folder, scans, tmp_path / "b", device="cpu")
    with pytest.raises(ModelError, match="cannot be passed on alone; merge them first"):
        export_bundle(adapted.folder, tmp_path / "bundle")
    with pytest.raises(ModelError, match="no adapted model: there is nothing to merge"):
        merge_adapter(base, tmp_path / "m")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("rank", "message"), [(4000, "larger than every layer"), (300, "larger than every layer")])
def test_a_rank_that_is_too_large_is_refused_before_anything_is_written(base, scans, tmp_path, rank, message):
    with pytest.raises(ConfigError, match=message):
        adapt_model(base, scans, tmp_path / "a", rank=rank, device="cpu")
    assert not (tmp_path / "a").exists()


def test_too_few_subjects_and_methods_without_a_network_are_refused(base, scans, tiny, tmp_path):
    for seed in range(2):
        (tmp_path / "few").mkdir(exist_ok=True)
        shutil.copy(scans / f"s{seed}.nii.gz", tmp_path / "few")
    with pytest.raises(InputError, match="2 subjects are too few to adapt to; give healthy scans of 3 or more"):
        adapt_model(base, tmp_path / "few", tmp_path / "a", device="cpu")
    save_model(tmp_path / "bright", {}, tiny("method=intensity"), None, "# A model\n")
    with pytest.raises(ConfigError, match="'intensity' has no network to adapt"):
        adapt_model(tmp_path / "bright", scans, tmp_path / "a", device="cpu")


def test_lesions_among_the_healthy_are_named(tiny, scans, tmp_path, caplog):
    """A network of zeros draws everyone grey, so that a bright spot stands out."""
    config = tiny("method=dae", "data.spacing_mm=4.0")
    zeros = {name: torch.zeros_like(value) for name, value in build_network(config).state_dict().items()}
    save_model(tmp_path / "grey", zeros, config, None, "# A model\n")
    folder = shutil.copytree(scans, tmp_path / "scans")
    image = nib.load(folder / "s3.nii.gz")
    data = image.get_fdata()
    data[13:19, 17:22, 5:7] = 6000
    nib.save(nib.Nifti1Image(data.astype(np.float32), image.affine, image.header), folder / "s3.nii.gz")
    quick = Schedule(max_steps=1, every=1)
    with caplog.at_level(logging.WARNING):
        found = adapt_model(tmp_path / "grey", folder, tmp_path / "a", rank=2, schedule=quick, device="cpu")
    assert found.suspects == ("s3",)
    assert "a lesion among the healthy scans is learned as healthy" in caplog.text


def test_a_folder_of_scans_unlike_the_healthy_ones_of_the_base_is_pointed_out(scans, caplog):
    """Compared with each other alone, scans that all hold lesions would pass."""

    def base(percentile, healthy):
        result = SimpleNamespace(score=0.5, score_percentile=percentile, healthy_scans=healthy)
        data = SimpleNamespace(channel_count=1)
        return SimpleNamespace(config=SimpleNamespace(data=data), predict=lambda *_: result)

    cases = find_cases(scans)
    for known, said in (
        (base(1.0, 20), True),
        (base(0.9, 20), False),
        (base(1.0, 4), False),
        (base(None, None), False),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert suspicious(known, cases) == ()
        assert ("scored above every healthy scan of the base's calibration" in caplog.text) == said
        assert not said or f"{len(cases)} of {len(cases)} healthy scans" in caplog.text


def test_a_model_of_label_maps_keeps_removing_lesions(tiny):
    config = tuning_config(tiny("heads.enabled=true", "lesions.share=0"), 3)
    assert config.lesions.share == 0.8
    assert not config.heads.enabled
    assert tuning_config(tiny("lesions.share=0.3"), 3).lesions.share == 0.3


def test_only_what_learned_from_label_maps_is_rehearsed(base, tiny, make_model, tmp_path):
    """Other models have seen real scans with pseudo-lesions, and learn on as they have learned."""
    settings = ("heads.enabled=true", "lesions.share=0")
    from_maps = make_model(tmp_path / "maps", tiny(*settings))
    other = make_model(tmp_path / "ddpm", tiny(*settings, "method=ddpm"))
    config = tuning_config(tiny(*settings), 0)
    assert rehearsal_of(load_model(from_maps, "cpu"), config) is not None
    assert rehearsal_of(load_model(base, "cpu"), config) is None
    assert rehearsal_of(load_model(other, "cpu"), config) is None


def test_what_is_rehearsed_costs_the_base_nothing(random_network, tiny, discs):
    """At the start only healthy tissue has a loss; slices that are lesion or exchanged throughout have none."""
    config = tiny("lesions.share=1", "diffusion.objective=x0", "diffusion.loss=x0_l2", "train.batch_size=4")
    network = random_network(config)
    found = tune(
        network,
        [torch.nn.Parameter(torch.zeros(1))],
        (discs(), discs(seed=1)),
        config,
        Schedule(max_steps=1),
        rehearsal=lambda batch, number: Rehearsal(network, config)({**batch, "clean": batch["clean"] + 1e-3}, number),
    )
    plain = tune(network, [torch.nn.Parameter(torch.zeros(1))], (discs(), discs(seed=1)), config, Schedule(max_steps=1))
    assert found.loss_before < 1e-3 < plain.loss_before


def test_a_guide_stays_as_it_is_and_the_rest_is_rehearsed_as_without_one(random_network, tiny):
    config = tiny("diffusion.objective=x0", "diffusion.loss=x0_l2")
    generator = torch.Generator().manual_seed(0)
    size, count = config.data.size, 5
    clean = torch.rand((count, 2, *size), generator=generator) * 2 - 1
    image = clean.clone()
    image[:, 0, 8:12, 8:12] += 0.3
    both = {
        "image": image,
        "clean": clean,
        "noise": torch.randn(clean.shape, generator=generator),
        "mask": torch.ones(count, 1, *size),
        "t": torch.full((count,), 30),
    }
    own = {name: value[:, :1] if name in {"image", "clean", "noise"} else value for name, value in both.items()}
    rehearsal = Rehearsal(random_network(config), config)
    found, alone = rehearsal(both, 3), rehearsal(own, 3)
    for name in ("image", "clean"):
        assert torch.equal(found[name][:, :1], alone[name])
        assert torch.equal(found[name][:, 1:], both[name][:, 1:])
    assert not torch.equal(found["image"][0, 0], image[0, 0])  # its intensities were exchanged
    assert not torch.equal(found["clean"][-1, 0, 8:12, 8:12], clean[-1, 0, 8:12, 8:12])


# The short training


def test_tuning_stops_when_nothing_is_gained_and_keeps_the_best(tiny, discs):
    network = build_network(tiny())
    start = {name: value.clone() for name, value in network.state_dict().items()}
    schedule = Schedule(max_steps=50, lr=1.0, every=1, patience=3)
    steps = []
    found = tune(
        network,
        list(network.parameters()),
        (discs(), discs(seed=1)),
        tiny(),
        schedule,
        on_step=lambda k, _: steps.append(k),
    )
    assert found.steps == steps[-1] == found.best_step + 3
    if found.best_step == 0:
        assert all(torch.equal(value, start[name]) for name, value in network.state_dict().items())


# The command


def run(*arguments):
    return CliRunner().invoke(app, ["adapt", *map(str, arguments)])


def test_the_command_adapts_and_merges(base, scans, tmp_path):
    out = tmp_path / "a"
    result = run("-m", base, "-i", scans, "-o", out, "--rank", 2, "--steps", 2, "-d", "cpu")
    assert result.exit_code == 0, result.output
    assert read_json(out / "calibration.json")["n_scans"] == 1
    assert run("-m", out, "--merge", "-o", tmp_path / "m").exit_code == 0
    assert load_model_folder(tmp_path / "m").base is None
    assert run("-m", base, "-o", out).exit_code == 2
    assert run("-m", out, "--merge", "-i", scans, "-o", tmp_path / "m").exit_code == 2
