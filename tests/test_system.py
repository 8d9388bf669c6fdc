from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maediff import system

OURS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def control_group(root, files):
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu.max": "rubbish"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_containers_quota_limits_the_cores(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(system, "_affinity", lambda: range(8))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert system.usable_cores(control_group(tmp_path, files)) == cores


@pytest.mark.parametrize(("granted", "cores"), [("3", 3), ("64", 8), ("", 8), ("0", 8), ("many", 8)])
def test_what_slurm_granted_limits_the_cores(tmp_path, monkeypatch, granted, cores):
    monkeypatch.setattr(system, "_affinity", lambda: range(8))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
    assert system.usable_cores(tmp_path) == cores


def test_only_the_cores_of_this_process_count_as_idle(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "_affinity", lambda: {0, 1, 2, 3})
    stat = tmp_path / "proc/stat"
    stat.parent.mkdir()

    def after(busy):  # ten ticks of each core: user, nice, system, idle, iowait, irq, softirq, steal
        ticks = {True: "90 0 0 100 0", False: "80 0 0 103 7"}
        lines = [f"cpu{core} {ticks[core in busy]} 0 0 0" for core in range(8)]
        stat.write_text("\n".join(["cpu 1 1 1 1 1 1 1 1", *lines]))

    after(busy=range(8))
    stat.write_text("\n".join(f"cpu{core} 80 0 0 100 0 0 0 0" for core in range(8)))
    monkeypatch.setattr(system.time, "sleep", lambda _: after(busy={0, 5, 6, 7}))
    assert system.idle_cores(tmp_path) == pytest.approx(3)


def test_a_system_that_does_not_tell_counts_as_idle(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "_affinity", lambda: range(4))
    assert system.idle_cores(tmp_path) == 4


@pytest.mark.parametrize(
    ("idle", "given", "threads"), [(0.2, {}, "1"), (2.0, {}, "2"), (0.2, {"OMP_NUM_THREADS": "2"}, "2")]
)
def test_a_command_leaves_busy_cores_to_others_and_says_so(tmp_path, idle, given, threads):
    (tmp_path / "sitecustomize.py").write_text(
        f"from maediff import system\nsystem.usable_cores = lambda: 2\nsystem.idle_cores = lambda: {idle}\n"
        "import atexit, os, sys\natexit.register(lambda: print('threads', os.environ.get('OMP_NUM_THREADS')))\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    }
    environment |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(system.__file__).parents[1]}"} | given
    command = [
        sys.executable,
        "-m",
        "maediff",
        "infer",
        "-m",
        "phantom",
        "-i",
        "absent.nii",
        "-o",
        str(tmp_path / "out"),
    ]
    found = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.stdout.split()[-2:] == ["threads", threads]
    assert ("computing on 1" in found.stderr) == (threads == "1")
