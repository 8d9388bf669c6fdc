"""run.json says what a run was made of, and names nobody."""

from __future__ import annotations

import getpass
import json
import socket
import subprocess
import sys

import numpy as np

from maediff import provenance


def test_record_is_json_and_complete(tmp_path):
    arguments = {
        "input": tmp_path / "in",
        "shard": (1, 2),
        "seed": np.int64(3),
        "rate": np.float32(0.5),
        "bad": float("inf"),
    }
    record = provenance.run_record("infer", arguments, seed=3, device="cpu", hashes={"model": "ab"}, seconds=1.5)
    path = provenance.write_run(tmp_path, record)
    read = json.loads(path.read_text())
    assert path.name == "run.json"
    assert read["command"] == "infer"
    assert read["arguments"] == {"input": "in", "shard": [1, 2], "seed": 3, "rate": 0.5, "bad": None}
    assert (read["seed"], read["device"], read["hashes"], read["seconds"]) == (3, "cpu", {"model": "ab"}, 1.5)
    assert {"python", "maediff", "torch", "monai", "numpy", "nibabel"} <= read["versions"].keys()
    assert read["machine"]["cores"] >= 1


def test_what_is_true_stays_true_and_a_number_a_number(tmp_path):
    given = {"on": True, "off": False, "none": None, "count": np.int64(2), "share": np.float32(0.5), "lost": np.nan}
    read = json.loads(provenance.write_run(tmp_path, {"arguments": given}).read_text())["arguments"]
    assert read == {"on": True, "off": False, "none": None, "count": 2, "share": 0.5, "lost": None}
    assert read["on"] is True
    assert read["off"] is False


def test_names_no_user_and_no_host(monkeypatch):
    monkeypatch.setenv("USER", "jane-the-user")
    monkeypatch.setenv("LOGNAME", "jane-the-user")
    text = json.dumps(provenance.run_record("infer", {}))
    assert "jane" not in text
    assert getpass.getuser() not in text
    assert socket.gethostname() not in text


def test_peak_memory_is_plausible():
    peak = provenance.peak_rss_mib()
    assert peak is None or 10 < peak < 1e6


def test_the_peak_is_that_of_this_process_not_of_the_one_that_started_it():
    """getrusage hands a parent's peak on to its children, through fork and exec."""
    ballast = bytearray(200 * 2**20)
    ballast[:: 2**12] = b"x" * len(ballast[:: 2**12])
    code = "from maediff.provenance import peak_rss_mib; print(peak_rss_mib())"
    child = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 5 < child < 150
    assert provenance.peak_rss_mib() > 200
