"""Doors for Slicer and XNAT: their descriptions fit the programs that they call."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
from maediff.cli.infer import command

from maediff.calibration import Calibration
from maediff.inference.load import load_model

FOLDER = Path(__file__).resolve().parents[2] / "integrations"
AFFINE = np.array([[8.0, 0, 0, -64], [0, 8, 0, -76], [0, 0, 10, -55], [0, 0, 0, 1]])


@pytest.fixture
def slicer():
    spec = importlib.util.spec_from_file_location("slicer_maediff", FOLDER / "slicer" / "MAEDiff.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_form_and_script_of_slicer_have_the_same_parameters(slicer):
    root = ElementTree.parse(FOLDER / "slicer" / "MAEDiff.xml").getroot()
    head = ["category", "title", "description", "version", "documentation-url", "license", "contributor"]
    assert [child.tag for child in root] == [*head, "parameters", "parameters"]  # the order that Slicer's schema wants
    placed = sorted(root.iter("image"), key=lambda image: int(image.findtext("index")))
    options = {
        node.findtext("longflag"): node.findtext("default") for node in root.iter() if node.find("longflag") is not None
    }
    source = inspect.getsource(slicer.main)
    assert re.findall(r'add_argument\("(\w+)"\)', source) == [image.findtext("name") for image in placed]
    assert set(re.findall(r'add_argument\("--(\w+)"', source)) == set(options)
    assert options == {"model": "heads", "threshold": "0"}


def test_the_script_of_slicer_writes_what_predict_returns(slicer, make_model, make_scan, tiny, tmp_path, capsys):
    calibration = Calibration(0.5, 0.01, 3, 300, {}, (0.2,), "a test").to_dict()
    model = make_model(tmp_path / "model", tiny("partition.stride=16"), calibration)
    scan, where = tmp_path / "scan.nii.gz", [str(tmp_path / name) for name in ("map.nii.gz", "mask.nii.gz")]
    nib.save(make_scan(AFFINE, (17, 20, 12)), scan)
    assert slicer.main([str(scan), *where, "--model", str(model), "--threshold", "0.1"]) == 0
    result = load_model(model, threshold=0.1).predict(scan)
    for path, expected in zip(where, (result.anomaly, result.anomaly_mask), strict=True):
        np.testing.assert_allclose(nib.load(path).get_fdata(), expected, atol=1e-5)
    assert "<filter-progress>1.000</filter-progress>" in capsys.readouterr().out
    assert slicer.main([str(tmp_path / "absent.nii.gz"), *where, "--model", str(model)]) == 1


def test_the_command_of_xnat_is_one_that_maediff_takes():
    content = json.loads((FOLDER / "xnat" / "command.json").read_text(encoding="utf-8"))
    inputs = {item["name"]: item for item in content["inputs"]}
    line = content["command-line"]
    assert set(re.findall(r"#(\w+)#", line)) == set(inputs)
    for name, item in inputs.items():
        flag = item.get("command-line-flag", "")
        line = line.replace(f"#{name}#", f"{flag} {item.get('default-value', '0.5')}".strip())
    program, name, *arguments = shlex.split(line)
    assert (program, name) == ("maediff", "infer")
    # click keeps the names of the help option that a command was first called with
    found = command.make_context("infer", arguments, help_option_names=["-h", "--help"]).params
    mounts = {item["name"]: item["path"] for item in content["mounts"]}
    assert (str(found["source"]), str(found["out"])) == (mounts["in"], mounts["out"])
    assert found["threshold"] == 0.5
    (wrapper,) = content["xnat"]
    assert {item["provides-files-for-command-mount"] for item in wrapper["derived-inputs"]} <= set(mounts)
    assert {item["accepts-command-output"] for item in wrapper["output-handlers"]} == {
        o["name"] for o in content["outputs"]
    }
    assert {item["mount"] for item in content["outputs"]} <= set(mounts)
