"""``maediff calibrate``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ._options import (
    Command,
    channel_option,
    device_option,
    examples,
    input_option,
    jobs_option,
    json_option,
    model_option,
    pattern_option,
    split_option,
    talk,
)


@click.command(
    cls=Command,
    epilog=examples(
        "maediff calibrate -m runs/first/model -i healthy_validation/",
        "maediff calibrate -m runs/first/model -i healthy_validation/ --rate 0.001",
        "maediff calibrate -m runs/first/model -i healthy_in_mni_space/ --locations",
    ),
)
@model_option()
@input_option("Healthy scans that the model was not trained on: a folder, a CSV/TSV table or a BIDS data set.")
@click.option(
    "--rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of healthy brain voxels above the threshold; by default the model's.",
)
@click.option(
    "--locations",
    is_flag=True,
    help="Also store healthy residuals at each place of a template; maps are relative to them from then on.",
)
@split_option
@channel_option
@pattern_option
@device_option
@jobs_option
@json_option
@talk
def command(  # noqa: PLR0913  click passes each option by its name
    *,
    model: str,
    source: Path,
    rate: float | None,
    locations: bool,
    split: str | None,
    channel: str | None,
    pattern: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Set a model's threshold from healthy scans.

    Scores the scans and stores a threshold in the model folder. A share of healthy brain voxels lies above it: the
    model's score.false_positive_rate, or --rate. It needs no lesion mask. With --locations, these and all later scans
    must be in the space of one template; without it, residuals by place of an earlier calibration are removed.
    """
    from maediff import calibrate_model
    from maediff.calibration import count_scans

    from ._console import say

    calibration = calibrate_model(
        model,
        source,
        split=split,
        channel=channel,
        pattern=pattern,
        device=device,
        rate=rate,
        locations=locations,
        on_case=lambda name: say(f"scoring {name}"),
    )
    if as_json:
        click.echo(json.dumps(calibration.to_dict(), indent=2))
    say(
        f"threshold {calibration.threshold:.4g} from {count_scans(calibration.n_scans, 'healthy')}: "
        f"{calibration.false_positive_rate:.2%} of their brain voxels lie above it"
    )
    for line in calibration.promises():
        say(f"  {line}")
    say("Promised for scans like these; check on healthy scans of your own that calibration has not seen.")
