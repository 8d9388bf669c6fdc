"""An unknown setting is answered by what was meant, or by what there is; never by a far-fetched guess."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maediff.config import Config, load_config, parse_config
from maediff.config.suggest import RENAMED, explain_sectionless, explain_unknown, owners, sections
from maediff.errors import ConfigError

SETTINGS = {section: list(fields) for section, fields in Config().model_dump(exclude={"method"}).items()}


def message(*overrides):
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", overrides)
    return str(caught.value)


def test_sections_are_those_of_the_schema():
    assert sections() == tuple(SETTINGS)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("peer.x=1", "unknown key peer: it is called baselines now"),
        ("train.tensorboard=true", "unknown key train.tensorboard: it is called train.report_to now"),
        ("trian.lr=1", "did you mean train.lr?"),
        ("trian.nothing=1", "did you mean train?"),
        ("zebra.x=1", f"the sections are {', '.join(SETTINGS)}"),
        ("train.lrr=1", "did you mean train.lr?"),
        ("train.window=48", "did you mean train.windows or partition.window?"),  # the nearest, and the same of another
        ("train.draws=4", "did you mean infer.draws?"),
        ("train.zebra=1", "section train has max_steps"),
        ("lr=1e-4", "override 'lr=1e-4' names no section; did you mean train.lr?"),
        ("windw=48", "did you mean partition.window?"),
        ("score=1", "score is a section; its settings are score.sign"),
        ("zebra=1", "write section.key=value; the sections are data"),
    ],
)
def test_what_is_said(override, said):
    assert said in message(override)


def test_a_setting_without_section_in_a_file(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key lr: did you mean train\.lr\?"):
        parse_config({"lr": 1e-4})


def test_a_setting_of_several_sections_names_them_all():
    shared = {name for fields in SETTINGS.values() for name in fields if len(owners(name)) > 1}
    assert shared  # else this test says nothing
    for name in shared:
        assert set(owners(name)) == {f"{section}.{name}" for section, fields in SETTINGS.items() if name in fields}
        assert owners(name)[1] in explain_sectionless(name)


def test_former_names_are_gone_and_present_ones_exist():
    known = {*SETTINGS, *(f"{section}.{name}" for section, fields in SETTINGS.items() for name in fields)}
    assert not known & set(RENAMED)
    assert set(RENAMED.values()) <= known


@given(st.text(max_size=300))
def test_whatever_is_asked_is_answered_shortly(text):
    for said in (explain_unknown(text), explain_unknown(f"train.{text}"), explain_sectionless(text)):
        assert said
        assert len(said) < 2000


def test_the_setting_without_a_section_is_suggested():
    assert explain_sectionless("methods") == "did you mean method?"
    assert explain_unknown("methodology") == "did you mean method?"
