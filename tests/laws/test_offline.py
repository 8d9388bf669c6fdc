"""Nothing is downloaded, ever: the demo runs where every way out is blocked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

BLOCK = """
import sys

def refuse(event, arguments):
    if event in {"socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"} or (
        event == "socket.connect" and not isinstance(arguments[1], str)  # a path is a socket of this machine
    ):
        sys.stderr.write(f"BLOCKED {event} {arguments[1:]}\\n")
        raise OSError("the network is blocked")

sys.addaudithook(refuse)
"""

SMALLER = """
import sys
from maediff.cli import app
from maediff import demo

demo.QUICK = demo.Scale(8, 8.0, "quick")  # the quick form, on fewer and coarser brains
app(["demo", "--quick", "-o", sys.argv[1]])
"""


@pytest.fixture
def python(tmp_path):
    """Run Python where no process, child or not, can reach the network."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)

    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)

    return run


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('127.0.0.1', 9))",
        "socket.socket().connect(('127.0.0.1', 9))",
        "socket.getaddrinfo('example.org', 443)",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "__import__('urllib.request').request.urlopen('http://127.0.0.1:9')",
        "__import__('subprocess').run([sys.executable, '-c', 'import socket; socket.gethostbyname(\"a.b\")'])",
    ],
)
def test_the_block_holds(python, attempt):
    assert "BLOCKED socket." in python("-c", f"import socket, sys; {attempt}").stderr


@pytest.mark.slow
def test_the_demo_needs_no_network(python, tmp_path):
    done = python("-c", SMALLER, tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert "BLOCKED" not in done.stderr
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert {"maediff", "intensity", "zscore"} <= set(summary["methods"])
    page = re.sub(r"data:image/[^\"]*", "", (tmp_path / "demo" / "report.html").read_text())  # base64 spells anything
    assert "http" not in page.replace("http://www.w3.org/", "")
