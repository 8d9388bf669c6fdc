"""The training in a report: its loss as a curve, and the pictures of its validation."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest
from click.testing import CliRunner
from maediff.cli import app
from PIL import Image

from maediff.errors import InputError
from maediff.report.charts import line_chart
from maediff.report.training import PICTURES, read_training

HEADER = "step,loss,mae_loss,val_loss,lr,grad_norm,images_per_second\n"


@pytest.fixture
def run_dir(tmp_path):
    rows = [f"{step},{1 / step},0.1,{2 / step if step % 20 == 0 else ''},1e-3,0.5,60" for step in range(10, 110, 10)]
    (tmp_path / "log.csv").write_text(HEADER + "\n".join(rows) + "\n")
    (tmp_path / "pictures").mkdir()
    for step in range(10, 110, 10):
        Image.fromarray(np.full((3, 4), step, np.uint8)).save(tmp_path / "pictures" / f"step-{step:06d}.png")
    return tmp_path


def points(svg, number):
    (found,) = re.findall(rf'class="curve c{number}" points="([^"]*)"', svg)
    return np.array([[float(value) for value in point.split(",")] for point in found.split()])


def test_a_training_is_its_log_and_its_pictures(run_dir):
    found = read_training(run_dir)
    assert found.steps == 100
    assert found.val_loss == pytest.approx(0.02)
    assert len(points(found.chart, 0)) == 10
    assert len(points(found.chart, 1)) == 5
    steps = [step for step, _ in found.pictures]
    assert len(steps) == PICTURES
    assert steps[0] == 10
    assert steps[-1] == 100
    assert steps == sorted(set(steps))
    for step, uri in found.pictures:
        stored = (run_dir / "pictures" / f"step-{step:06d}.png").read_bytes()
        assert base64.b64decode(uri.removeprefix("data:image/png;base64,")) == stored


def test_a_curve_is_drawn_to_scale_and_early_losses_are_cut_off():
    svg = line_chart({"a": [(0, 9.0), (50, 0.5), (100, 0.25)]}, ("step", "loss <x>"))
    (start, middle, end) = points(svg, 0)
    assert middle[0] - start[0] == pytest.approx(end[0] - middle[0], abs=0.2)
    assert (end[1] - middle[1]) > 0
    floor = float(re.findall(r'text x="[\d.]+" y="(\d+)" text-anchor="end">0<', svg)[0]) - 4
    assert floor - middle[1] == pytest.approx(2 * (floor - end[1]), abs=0.5)  # 0.5 is twice as high as 0.25
    assert start[1] == pytest.approx(min(middle[1], start[1]))
    assert start[1] >= 0
    assert "loss &lt;x&gt;" in svg


def test_nonsense_is_no_training(tmp_path):
    with pytest.raises(InputError, match=r"log\.csv is no log of a training .*FileNotFoundError.*maediff train -o"):
        read_training(tmp_path)
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="is no log of a training"):
        read_training(tmp_path)
    (tmp_path / "log.csv").write_text(HEADER)
    with pytest.raises(InputError, match="holds no step yet"):
        read_training(tmp_path)


def test_losses_that_are_no_numbers_are_left_out(run_dir):
    with (run_dir / "log.csv").open("a") as log:
        log.write("110,nan,0.1,nan,1e-3,0.5,60\n")
    found = read_training(run_dir)
    assert (found.steps, found.val_loss) == (100, pytest.approx(0.02))


def test_the_page_shows_the_training_of_a_run_folder(cohort, run_dir):
    page = cohort.root / "page.html"
    done = CliRunner().invoke(app, ["report", "-i", str(cohort.out), "-o", str(page), "--run", str(run_dir)])
    assert done.exit_code == 0, done.output
    section = page.read_text(encoding="utf-8").split('<section id="training">')[1].split("</section>")[0]
    assert "100 steps, validation loss 0.0200." in section
    assert section.count("<figure>") == PICTURES
    assert '<a href="#training">' in page.read_text(encoding="utf-8")
    done = CliRunner().invoke(app, ["report", "-i", str(cohort.out), "-o", str(page), "--run", str(cohort.out)])
    assert done.exit_code == 1
    assert "no log of a training" in done.output
