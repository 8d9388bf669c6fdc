"""``maediff hub push|pull``."""

from __future__ import annotations

from pathlib import Path

import click

from ._completion import complete_model
from ._options import Group, examples, output_option, talk


@click.group(cls=Group, name="hub", epilog=examples("maediff hub pull OWNER/NAME -o models/name"))
def command() -> None:
    """Send a model to the Hugging Face Hub, or fetch one."""


@command.command(epilog=examples("maediff hub push runs/first/model OWNER/NAME"))
@click.argument("model", shell_complete=complete_model)
@click.argument("repo")
@click.option("--public", is_flag=True, help="Make a new repository public; by default it is private.")
@talk
def push(*, model: str, repo: str, public: bool) -> None:
    """Send a model folder to the Hub.

    The folder is verified first, and only the model's own files are sent. REPO is OWNER/NAME. Log in first with
    Hugging Face's command, hf auth login.
    """
    from maediff.hub import push_model

    from ._console import say

    say(f"sent model {push_model(model, repo, private=not public)} to {repo}")


@command.command(epilog=examples("maediff hub pull OWNER/NAME -o models/name"))
@click.argument("repo")
@output_option("Folder for the model; it must not exist or be empty.")
@click.option("--revision", help="Branch, tag or commit; by default the main branch.")
@talk
def pull(*, repo: str, out: Path, revision: str | None) -> None:
    """Fetch a model folder from the Hub and verify it.

    Compare the hash with the one that the model's author names: the checksums in the folder detect damage, not forgery.
    """
    from maediff.hub import pull_model

    from ._console import say

    say(f"model {pull_model(repo, out, revision=revision)}: {out}")
