"""``maediff doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from . import EXIT_ERROR
from ._options import Command, device_option, examples, json_option, talk


@click.command(cls=Command, epilog=examples("maediff doctor", "maediff doctor --device cuda --json"))
@device_option
@click.option("--thorough", is_flag=True, help="Also import every package; takes several seconds.")
@json_option
@talk
def command(*, device: str, thorough: bool, as_json: bool) -> None:
    """Check that this machine can run MAEDiff.

    Checks Python, packages, device and precision, cores, memory, disk space and the packaged models. Paste the output
    into a bug report: it names no user, host or scan. The exit code is 1 if there is a problem.
    """
    from maediff.doctor import diagnose

    checks = diagnose(device, thorough=thorough)
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            click.echo(f"{check.status:<8} {check.name:<12} {check.detail}")
    if any(check.status == "problem" for check in checks):
        click.get_current_context().exit(EXIT_ERROR)
