"""The command line: help, exit codes, messages without tracebacks, and a start without heavy imports."""

from __future__ import annotations

import importlib
import json
import logging
import shlex
import subprocess
import sys
from pathlib import Path

import click
import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from maediff.cli import COMMANDS, SECTIONS, app

import maediff
from maediff import model_folder
from maediff.config import load_config
from maediff.errors import ConfigError, InputError, ModelError, TrainingInterrupted
from maediff.inference import plan as planning
from maediff.inference.cohort import CaseOutcome, InferSummary, PlannedCase
from maediff.inference.cost import Cost
from maediff.jobs.infer import InferJob
from maediff.notes import Information

HEAVY = {"torch", "numpy", "scipy", "monai", "nibabel", "nilearn", "pandas", "matplotlib", "pydantic", "rich", "yaml"}

NETWORK = {"torch", "monai", "sklearn", "accelerate", "einops", "nilearn", "matplotlib", "skimage"}
"""What is imported to compute, to draw or to measure."""


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments], prog_name="maediff")


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "run" / "model"
    model_folder.save_model(folder, {"a": torch.ones(3)}, load_config("tiny"), None, "# Card\n")
    return folder


@pytest.fixture(autouse=True)
def _plain_logging():
    logger, nibabel = logging.getLogger("maediff"), logging.getLogger("nibabel.global")
    before = (logger.handlers, logger.propagate, logger.level, nibabel.level)
    yield
    logger.handlers, logger.propagate, logger.level, nibabel.level = before


def subcommands():
    for name, (module, _) in COMMANDS.items():
        command = importlib.import_module(f"maediff.cli.{module}").command
        yield (name,), command
        if isinstance(command, click.Group):
            yield from (((name, inner), child) for inner, child in command.commands.items())


ALL = [pytest.param(path, command, id=" ".join(path)) for path, command in subcommands()]


class TestHelp:
    def test_group_lists_every_command(self, run):
        result = run("--help")
        assert result.exit_code == 0
        assert all(name in result.output for name in COMMANDS)
        assert "research use only" in result.output.lower()

    @pytest.mark.parametrize(("path", "command"), ALL)
    def test_says_purpose_and_example(self, run, path, command):
        for flag in ("--help", "-h"):
            result = run(*path, flag)
            assert result.exit_code == 0
        assert f"maediff {' '.join(path)}" in result.output.split("Example")[1]

    def test_every_command_has_a_section(self):
        placed = [name for names in SECTIONS.values() for name in names]
        assert len(placed) == len(set(placed))
        assert set(COMMANDS) <= set(placed)

    @pytest.mark.parametrize(("path", "command"), ALL)
    def test_examples_are_valid_calls_of_the_command(self, path, command):
        lines = [line.strip() for line in (command.epilog or "").splitlines()]
        own = [line.partition(" > ")[0] for line in lines if line.startswith(f"maediff {' '.join(path)}")]
        assert own
        for line in own:
            with click.Context(app, info_name="maediff") as context:
                arguments = shlex.split(line)[1 + len(path) :]
                if not isinstance(command, click.Group):
                    command.make_context(path[-1], arguments, parent=context).close()

    def test_options_are_grouped(self, run):
        text = run("infer", "--help").output
        order = [text.index(f"{title}:") for title in ("Input and output", "Result", "Run", "Messages")]
        assert order == sorted(order)
        assert order[0] < text.index("--input") < order[1] < text.index("--threshold") < order[2]
        assert text.index("--help") > order[3]

    @pytest.mark.parametrize(("path", "command"), ALL)
    def test_every_option_is_explained(self, path, command):
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, parameter.name
                longs = [name for name in parameter.opts if name.startswith("--")]
                assert longs, parameter.opts
                assert all("_" not in name for name in longs)

    @pytest.mark.parametrize("name", COMMANDS)
    def test_short_help_is_that_of_the_command(self, name):
        command = importlib.import_module(f"maediff.cli.{COMMANDS[name][0]}").command
        assert COMMANDS[name][1] == command.get_short_help_str(limit=200) or name == "synth"
        assert command.help.startswith(COMMANDS[name][1])

    def test_shared_options_are_the_same_everywhere(self):
        shared = {"-i", "-o", "-m", "-c", "-d", "-j", "-q", "-v", "-r"}
        found: dict[str, set[str]] = {}
        for parameter in (p for item in ALL for p in item.values[1].params if isinstance(p, click.Option)):
            for short in shared & set(parameter.opts):
                found.setdefault(short, set()).update(name for name in parameter.opts if name.startswith("--"))
        assert found == {
            "-i": {"--input"}, "-o": {"--output"}, "-m": {"--model"}, "-c": {"--config"}, "-d": {"--device"},
            "-j": {"--jobs"}, "-q": {"--quiet"}, "-v": {"--verbose"}, "-r": {"--reference"},
        }  # fmt: skip

    def test_version(self, run):
        assert maediff.__version__ in run("--version").output


class TestStart:
    @pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonsense"]])
    def test_imports_nothing_heavy(self, arguments):
        code = (
            "import sys\nfrom maediff.cli import app\n"
            f"try:\n    app({arguments!r})\nexcept SystemExit:\n    pass\nprint('MODULES', *sys.modules)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        modules = result.stdout.split("MODULES")[1].split()
        assert HEAVY.isdisjoint(modules)
        library = {name for name in modules if name.startswith("maediff.") and not name.startswith("maediff.cli")}
        assert library <= {"maediff._version", "maediff.system"}  # neither imports anything heavy

    @pytest.mark.parametrize("name", COMMANDS)
    def test_help_of_a_command_needs_no_torch(self, name):
        module = COMMANDS[name][0]
        code = f"import sys, maediff.cli.{module}; sys.exit(not {{'torch', 'numpy'}}.isdisjoint(sys.modules))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    @pytest.mark.parametrize(
        ("arguments", "code", "wanted"),
        [
            (["info"], 0, set()),
            (["info", "phantom"], 0, set()),
            (["config", "show", "-c", "tiny"], 0, set()),
            (["doctor", "-d", "cpu"], 0, {"torch"}),  # whose version and devices it tells
            (["infer", "-m", "phantom", "-i", "SCANS", "-o", "OUT", "--dry-run"], 1, set()),
        ],
    )
    def test_what_computes_no_map_imports_no_network(self, arguments, code, wanted, tmp_path):
        (tmp_path / "scans").mkdir()
        (tmp_path / "scans" / "a.nii.gz").write_bytes(b"this is no scan")
        places = {"SCANS": str(tmp_path / "scans"), "OUT": str(tmp_path / "out")}
        line = [places.get(word, word) for word in arguments]
        source = (
            f"import sys\nfrom maediff.cli import app\ntry:\n    app({line!r})\nexcept SystemExit as end:\n"
            "    print('MODULES', end.code or 0, *sys.modules)"
        )
        result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
        ended, *modules = result.stdout.split("MODULES")[1].split()
        assert int(ended) == code, result.stderr
        assert NETWORK & set(modules) <= wanted

    def test_doctor_imports_neither_the_configuration_nor_rich(self):
        """Nearly all of its time is torch's own import; the schema and rich would add a tenth."""
        source = (
            "import sys\nfrom maediff.cli import app\n"
            "try:\n    app(['doctor', '-d', 'cpu'])\nfinally:\n    print(*sys.modules)"
        )
        result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
        modules = set(result.stdout.splitlines()[-1].split())
        assert "torch" in modules
        assert {"maediff.config", "pydantic", "rich"}.isdisjoint(modules)

    def test_python_m(self):
        command = [sys.executable, "-m", "maediff", "--version"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout.strip() == f"maediff, version {maediff.__version__}"


@pytest.mark.parametrize(("flags", "told"), [((), False), (("-v",), True)])
def test_nibabel_tells_of_mended_headers_only_if_verbose(run, flags, told):
    run("doctor", *flags)
    assert logging.getLogger("nibabel.global").isEnabledFor(logging.ERROR) is told


class TestUsage:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_unknown_option_is_2(self, run, name):
        result = run(name, "--nonsense")
        assert result.exit_code == 2
        assert "--nonsense" in result.output

    def test_unknown_command_names_the_nearest(self, run):
        result = run("infre")
        assert result.exit_code == 2
        assert "did you mean 'infer'" in result.output

    @pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
    def test_shard(self, run, shard):
        result = run("infer", "-m", "x", "-i", "y", "-o", "z", "--shard", shard)
        assert result.exit_code == 2
        assert "K/N" in result.output

    @pytest.mark.parametrize("lesions", ["ms,stroke", "", ","])
    def test_lesions(self, run, tmp_path, lesions):
        result = run("synth", "-o", tmp_path / "x", "--lesions", lesions)
        assert result.exit_code == 2
        assert "tumour" in result.output

    @pytest.mark.parametrize("arguments", [("infer",), ("train",), ("evaluate", "-r", "x"), ("calibrate", "-m", "x")])
    def test_missing_option(self, run, arguments):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Missing option" in result.output

    def test_nothing_shows_help(self, run):
        assert "From scans to maps:" in run().output


class TestErrors:
    """Every failure is a message and the documented exit code."""

    @staticmethod
    def message(result, code):
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        return result.stderr

    def test_missing_model(self, run):
        assert "no/model" in self.message(run("info", "no/model"), 1)

    def test_damaged_model(self, run, model):
        (model / "README.md").write_text("edited")
        assert "checksum" in self.message(run("info", model), 1)

    def test_newer_schema(self, run, model):
        (model / "model.json").write_text('{"schema": 2}')
        assert "upgrade" in self.message(run("info", model), 1)

    def test_unknown_key_is_2(self, run):
        assert "train.lr" in self.message(run("config", "show", "-c", "tiny", "--set", "train.lrr=1"), 2)

    def test_missing_configuration(self, run, tmp_path):
        assert "none.yaml" in self.message(run("config", "validate", tmp_path / "none.yaml"), 2)

    def test_missing_outputs(self, run, tmp_path):
        result = run("evaluate", "-i", tmp_path / "none", "-r", tmp_path / "none.csv", "-o", tmp_path / "metrics")
        self.message(result, 1)

    @pytest.mark.parametrize(
        ("error", "code", "text"),
        [
            (InputError("the scan holds NaN"), 1, "the scan holds NaN"),
            (ConfigError("impossible"), 2, "impossible"),
            (TrainingInterrupted("saved"), 130, "saved"),
            (RuntimeError("a bug"), 1, "unexpected RuntimeError: a bug"),
            (PermissionError(13, "no"), 1, "unexpected PermissionError"),
            (MemoryError(), 1, "out of memory"),
            (torch.OutOfMemoryError("CUDA"), 1, "out of memory"),
        ],
    )
    def test_any_exception(self, run, monkeypatch, error, code, text):
        def fail(_name):
            raise error

        monkeypatch.setattr(model_folder, "resolve_model", fail)
        assert text in self.message(run("info", "x"), code)

    def test_interrupt_is_130(self, run, monkeypatch):
        def interrupt(_name):
            raise KeyboardInterrupt

        monkeypatch.setattr(model_folder, "resolve_model", interrupt)
        result = run("info", "x")
        assert result.exit_code == 130
        assert "interrupted" in result.stderr

    def test_verbose_shows_the_traceback(self, run, monkeypatch):
        def fail(_name):
            raise ModelError("broken")

        monkeypatch.setattr(model_folder, "resolve_model", fail)
        result = run("info", "x", "-v")
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert "error: broken" in result.stderr


class TestInfo:
    def test_model_as_json(self, run, model):
        for name in (model, model.parent):
            facts = json.loads(run("info", name, "--json").stdout)
            assert facts["hash"] == model_folder.load_model_folder(model).hash
            assert facts["parameters"] == 3

    def test_model_as_text(self, run, model):
        result = run("info", model)
        assert result.exit_code == 0
        assert "parameters:" in result.stdout
        assert result.stdout.endswith("\n# Card\n")

    def test_lists_what_is_packaged(self, run):
        facts = json.loads(run("info", "--json").stdout)
        assert facts["maediff"] == maediff.__version__
        assert "tiny" in facts["presets"]
        assert facts["models"] == list(model_folder.packaged_models())


class TestConfig:
    def test_show_is_what_train_reads(self, run, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text(run("config", "show", "-c", "tiny", "--set", "train.seed=7").stdout)
        assert load_config(path) == load_config("tiny", ["train.seed=7"])
        assert "# In-plane spacing of the working grid, mm.\n" in path.read_text()
        assert "is valid" in run("config", "validate", path).stdout

    def test_schema(self, run):
        assert "partition" in json.loads(run("config", "schema").stdout)["properties"]


class TestDoctor:
    def test_sound(self, run):
        result = run("doctor", "-d", "cpu", "--json")
        checks = {check["name"]: check for check in json.loads(result.stdout)}
        assert result.exit_code == 0
        assert checks["packages"]["status"] == checks["device"]["status"] == "ok"

    def test_missing_device_is_a_problem(self, run):
        result = run("doctor", "-d", "cuda:99")
        assert result.exit_code == 1
        assert "problem" in result.stdout


class TestInfer:
    """One bad scan never stops a cohort; the exit code tells. The library's part is replaced here."""

    @pytest.fixture
    def infer(self, run, monkeypatch):
        def start(*statuses, flags=(), notes=()):
            jobs = []
            outcomes = [
                CaseOutcome(f"s{i}", status, 0.5, 1.5, 0.1, "holds NaN", notes) for i, status in enumerate(statuses)
            ]

            def score(job, on_case, on_batch):
                jobs.append(job)
                for outcome in outcomes:
                    on_batch(outcome.case, 1, 2)
                    on_case(outcome)
                return InferSummary(*(statuses.count(name) for name in ("done", "skipped", "failed")), tuple(outcomes))

            plan = [PlannedCase(outcome.case, Path(f"{outcome.case}.nii.gz"), "infer") for outcome in outcomes]
            monkeypatch.setattr(InferJob, "plan", lambda _job: plan)
            monkeypatch.setattr(InferJob, "run", score)
            monkeypatch.setattr(planning, "check_planned", lambda items: items)
            cost = Cost(2, 120, 180.4, 32, 950.2, 6.4)
            monkeypatch.setattr(InferJob, "estimate", lambda _job, _plan: cost)
            return run("infer", "-m", "x", "-i", "y", "-o", "z", *flags), jobs

        return start

    @pytest.mark.parametrize(
        ("statuses", "code"),
        [
            (("done", "done"), 0),
            (("skipped",), 0),
            (("done", "failed", "done"), 3),
            (("skipped", "failed"), 3),
            (("failed",), 1),
            (("failed", "failed"), 1),
        ],
    )
    def test_exit_code(self, infer, statuses, code):
        result, _ = infer(*statuses)
        assert result.exit_code == code

    def test_one_line_a_scan_without_a_terminal(self, infer):
        result, _ = infer("done", "failed", "skipped")
        lines = result.stderr.splitlines()
        assert [line.split(":")[0] for line in lines[:3]] == ["[1/3] s0", "[2/3] s1", "[3/3] s2"]
        assert "failed: holds NaN" in lines[1]
        assert "1 done, 1 skipped, 1 failed" in lines[3]
        assert result.stdout == ""

    def test_quiet_says_only_what_failed(self, infer):
        result, _ = infer("done", "failed", "skipped", flags=["-q"])
        assert result.stderr == "[2/3] s1: failed: holds NaN\n"

    def test_json(self, infer):
        result, _ = infer("done", "failed", flags=["--json"])
        summary = json.loads(result.stdout)
        assert (summary["done"], summary["failed"], summary["cases"][1]["message"]) == (1, 1, "holds NaN")

    def test_dry_run_does_nothing(self, infer):
        result, jobs = infer("done", "done", flags=["--dry-run"])
        assert jobs == []
        assert result.stdout.splitlines() == ["infer\ts0\ts0.nii.gz", "infer\ts1\ts1.nii.gz"]
        assert (
            "2 scans to compute: 120 windows in batches of 32, 180 GFLOP, 950 MiB of memory, about 6 s" in result.stderr
        )

    def test_options_arrive(self, infer):
        flags = ["--shard", "2/4", "--mask", "m.nii", "--set", "infer.draws=2", "--seed", "5", "-d", "cpu", "--preview"]
        _, jobs = infer("done", flags=flags)
        expected = {"shard": (2, 4), "mask": Path("m.nii"), "overrides": ("infer.draws=2",), "seed": 5, "device": "cpu"}
        assert jobs == [InferJob("x", Path("y"), Path("z"), preview=True, **expected)]

    def test_notes_are_printed_below_the_line(self, infer):
        result, _ = infer("done", "skipped", notes=("looks like noise", Information("read as T1")))
        lines = result.stderr.splitlines()
        assert lines[0].startswith("[1/2] s0: score")
        assert lines[1:3] == ["  warning: looks like noise", "  note: read as T1"]
        assert lines[3].startswith("[2/2] s1: skipped")
        assert lines[4] == lines[1]

    @pytest.fixture
    def scans(self, tmp_path):
        folder = tmp_path / "scans"
        folder.mkdir()
        good = np.arange(512, dtype=np.float32).reshape(8, 8, 8)
        nib.save(nib.Nifti1Image(good, np.eye(4)), folder / "good.nii.gz")
        holed = good.copy()
        holed[0, 0, 0] = np.nan
        nib.save(nib.Nifti1Image(holed, np.eye(4)), folder / "holed.nii.gz")
        (folder / "empty.nii.gz").write_bytes(b"")
        return folder

    def test_dry_run_lists_what_cannot_be_used_and_exits_with_3(self, run, model, scans, tmp_path, monkeypatch):
        monkeypatch.setattr(InferJob, "estimate", lambda _job, _plan: None)
        result = run("infer", "-m", model, "-i", scans, "-o", tmp_path / "out", "--dry-run")
        assert result.exit_code == 3
        actions = dict(reversed(line.split("\t")[:2]) for line in result.stdout.splitlines())
        assert actions == {"good": "infer", "holed": "fail", "empty": "fail"}
        assert "holed cannot be used" in result.stderr
        assert not (tmp_path / "out").exists()

    def test_dry_run_without_a_usable_scan_exits_with_1_as_the_run_would(self, run, model, scans, tmp_path):
        (scans / "good.nii.gz").unlink()
        for flags in (["--dry-run"], []):
            assert run("infer", "-m", model, "-i", scans, "-o", tmp_path / "out", *flags).exit_code == 1

    def test_threshold_and_rate_exclude_each_other(self, run):
        result = run("infer", "-m", "x", "-i", "y", "-o", "z", "--threshold", "1", "--rate", "0.1")
        assert result.exit_code == 2
        assert "exclude" in result.stderr


class TestNames:
    """A name that is nearly right brings up the right one; shells complete models and presets."""

    def test_a_model(self, run):
        assert "did you mean 'phantom'?" in run("info", "fantom").stderr

    def test_a_preset(self, run):
        result = run("config", "show", "-c", "tinny")
        assert result.exit_code == 2
        assert "did you mean 'tiny'?" in result.stderr

    @pytest.mark.parametrize(
        ("words", "expected"), [("infer -m pha", "phantom"), ("train -c sma", "small"), ("exp", "export-bundle")]
    )
    def test_completion(self, run, monkeypatch, words, expected):
        monkeypatch.setenv("COMP_WORDS", f"maediff {words}")
        monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
        result = CliRunner().invoke(app, [], prog_name="maediff", env={"_MAEDIFF_COMPLETE": "bash_complete"})
        assert f"plain,{expected}" in result.output.splitlines()


def test_table_cells():
    from maediff.cli._console import number

    assert [number(value) for value in (0.12345, None, float("nan"), "phantom", 3)] == [
        "0.123",
        "–",
        "–",
        "phantom",
        "3",
    ]
