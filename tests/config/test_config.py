"""A configuration is whole and possible, or refused with the reason."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from maediff.config import Config, config_hash, dump_yaml, load_config, parse_config, presets
from maediff.errors import ConfigError

KEYS = [f"{section}.{key}" for section, model in Config().model_dump(exclude={"method"}).items() for key in model]


@pytest.mark.parametrize("name", presets())
def test_presets_load_and_come_back(name, tmp_path):
    config = load_config(name)
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config))
    assert load_config(path) == config
    assert config_hash(load_config(path)) == config_hash(config)


def test_documented_presets_and_sections():
    assert {"tiny", "base", "paper"} <= set(presets())
    assert set(Config.model_fields) - {"method"} == {
        "data",
        "partition",
        "diffusion",
        "model",
        "train",
        "lesions",
        "infer",
        "score",
        "baselines",
        "heads",
        "structure",
    }


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("train.lrr=1", "train.lr"), ("partition.windw=3", "partition.window"), ("trian.lr=1", "did you mean train")],
)
def test_unknown_key_names_the_nearest(wrong, right):
    with pytest.raises(ConfigError, match=right):
        load_config("tiny", [wrong])


@pytest.mark.parametrize(
    "override",
    [
        "train.lr=0",
        "train.lr=fast",
        "train.batch_size=0",
        "train.max_steps=1.5",
        "partition.stride=49",
        "partition.window=128",
        "partition.cell=7",
        "data.size=[97, 96]",
        "data.spacing_mm=-1",
        "data.spacing_mm=.nan",
        "diffusion.test_timesteps=[1001]",
        "diffusion.test_timesteps=[]",
        "diffusion.train_timesteps=[500, 100]",
        "lesions.size=[0.3, 0.1]",
        "lesions.size=[0, 0.1]",
        "lesions.size=[0.1, 1.5]",
        "infer.context=-1",
        "infer.context=9223372036854775808",
        "diffusion.objective=noise",
        "model.attention=[true]",
        "model.norm_groups=7",
        "score.false_positive_rate=0",
        "train=3",
        "train.lr",
        "lr=3",
        "=",
        "train.lr=[1",
        "train.lr={a: 1}",
    ],
)
def test_impossible_values(override):
    with pytest.raises(ConfigError):
        load_config("tiny", [override])


def test_every_finding_is_listed():
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", ["train.lrr=1", "train.seed=-1", "score.sign=up"])
    assert all(key in str(caught.value) for key in ("lrr", "seed", "sign"))


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3", "1E-3"])
def test_numbers_as_people_write_them(text):
    assert load_config("tiny", [f"train.lr={text}"]).train.lr == 1e-3


@pytest.mark.parametrize(
    "content", [b"[1, 2]", b"train: [", b"\xff\xfe\x00", b"text", b"{1: 2}", b"train: null", b"!!x"]
)
def test_files_that_are_no_configuration(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_config(path)


def test_yaml_cannot_run_code(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(f"train: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    with pytest.raises(ConfigError):
        load_config(path)
    assert not (tmp_path / "made").exists()


def test_missing_file_and_preset(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="tiny"):
        load_config("tinny")


def test_frozen():
    config = load_config("tiny")
    with pytest.raises(ValueError, match="frozen"):
        config.train.lr = 1.0


def test_hash_changes_with_every_section():
    overrides = [
        "method=ddpm",
        "data.clip=2",
        "partition.stride=12",
        "diffusion.noise=simplex",
        "diffusion.variance=beta",
        "model.mask_channel=false",
        "train.seed=5",
        "infer.draws=2",
        "infer.context=brain",
        "score.locations=true",
        "baselines.latent=7",
    ]
    hashes = {config_hash(load_config("tiny", [override])) for override in overrides}
    assert len(hashes | {config_hash(load_config("tiny"))}) == len(overrides) + 1


def test_schema_describes_every_key():
    schema = Config.model_json_schema()
    assert json.loads(json.dumps(schema)) == schema
    sections = {
        name: schema["$defs"][model.annotation.__name__]
        for name, model in Config.model_fields.items()
        if name != "method"
    }
    assert sorted(f"{name}.{key}" for name, section in sections.items() for key in section["properties"]) == sorted(
        KEYS
    )


def test_reading_a_configuration_needs_no_torch():
    code = (
        "import sys, maediff.config as c; c.load_config('tiny'); sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def config_or_error(make, *arguments) -> Config | str:
    """The configuration, or what its ConfigError says; any other exception passes."""
    try:
        return make(*arguments)
    except ConfigError as error:
        return str(error)


def assert_sound(outcome: Config | str) -> None:
    assert outcome  # an error says something
    if isinstance(outcome, Config):
        assert parse_config(yaml.safe_load(dump_yaml(outcome))) == outcome


@pytest.mark.parametrize("override", ["train.max_steps=true", "train.lr=yes", "data.slice_spacing_mm=off"])
def test_true_and_false_are_no_numbers(override):
    with pytest.raises(ConfigError, match="not true or false"):
        load_config("tiny", [override])


@given(st.dictionaries(st.sampled_from([*Config.model_fields, "trian", ""]), values, max_size=4))
def test_any_tree_is_a_config_or_a_config_error(tree):
    assert_sound(config_or_error(parse_config, tree))


@given(st.sampled_from(KEYS), values)
def test_any_value_is_taken_or_a_config_error(key, value):
    section, name = key.split(".")
    outcome = config_or_error(parse_config, {section: {name: value}})
    assert_sound(outcome)
    if isinstance(outcome, str):
        assert section in outcome or "configuration" in outcome


@given(st.text(max_size=30) | st.builds("{}={}".format, st.sampled_from(KEYS), st.text(max_size=12)))
def test_any_override_is_taken_or_a_config_error(override):
    assert_sound(config_or_error(load_config, "tiny", [override]))
