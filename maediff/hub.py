"""Model folders on the Hugging Face Hub: only when asked, verified on the way out and on the way in.

Needs the extra ``hub``. Nothing else in MAEDiff reaches the network.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from pathlib import Path
from typing import Any, Protocol

from maediff.errors import ConfigError, InputError, ModelError, OutputError
from maediff.extras import install_hint
from maediff.files import cannot_write
from maediff.model_folder import model_files, resolve_model, verify_model_folder
from maediff.staging import CHECKSUMS, FILES, LOCATIONS

log = logging.getLogger(__name__)
_NAMES = [*FILES, LOCATIONS, CHECKSUMS]


class HubApi(Protocol):
    """The methods of ``huggingface_hub.HfApi`` that are used."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Create a repository, if it does not exist yet."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str) -> Any:
        """Upload files of a folder."""
        ...

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, local_dir: str, allow_patterns: list[str]
    ) -> Any:
        """Download files into a folder."""
        ...


def push_model(model: str | Path, repo: str, *, private: bool = True, api: HubApi | None = None) -> str:
    """Upload a model folder to the Hugging Face Hub.

    The folder is verified first. Only the files of the model are uploaded, whatever else the folder holds.

    Args:
        model: Model folder, a training run or the name of a packaged model.
        repo: ``OWNER/NAME`` on the Hub.
        private: Whether a new repository is private; an existing one keeps its visibility.
        api: Client that is logged in to the Hub; by default a new ``HfApi``.

    Returns:
        The hash of the uploaded model.

    Raises:
        ModelError: The folder is not a valid model.
        OutputError: The upload failed.
        ConfigError: ``huggingface_hub`` is not installed.
    """
    folder = resolve_model(model)
    model_hash = verify_model_folder(folder)
    api = api or _default_api()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=str(folder),
            allow_patterns=list(model_files(folder)),
            commit_message=f"MAEDiff model {model_hash[:12]}",
        )
    except Exception as error:  # whatever the client or the network says
        raise OutputError(f"cannot push to {repo}: {_told(error)}; check the name and `hf auth login`") from error
    return model_hash


def check_target(repo: str) -> None:
    """Check what :func:`push_model` needs before anything is computed: the client, and a name of the right form.

    Raises:
        ConfigError: ``huggingface_hub`` is not installed, or ``repo`` is not ``OWNER/NAME``.
    """
    _default_api()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ConfigError(f"{repo!r} is not the name of a repository; give OWNER/NAME")


def pull_model(repo: str, folder: str | Path, *, revision: str | None = None, api: HubApi | None = None) -> str:
    """Download a model folder from the Hugging Face Hub; it appears only once it is complete and verified.

    Args:
        repo: ``OWNER/NAME`` on the Hub.
        folder: Where to write; it must not exist yet, or be empty.
        revision: Branch, tag or commit; the main branch if None.
        api: As for :func:`push_model`.

    Returns:
        The model's hash. Compare it with the one that its author published: the checksums inside detect damage, not
            forgery.

    Raises:
        OutputError: ``folder`` is not empty or cannot be written.
        InputError: The download failed.
        ModelError: The downloaded folder is not a valid model.
        ConfigError: ``huggingface_hub`` is not installed.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is there already; choose a folder that does not exist yet or is empty")
    api = api or _default_api()
    staging = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        model_hash = _fetch(api, repo, revision, staging)
        staging.replace(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return model_hash


def _fetch(api: HubApi, repo: str, revision: str | None, folder: Path) -> str:
    try:
        api.snapshot_download(repo, revision=revision, local_dir=str(folder), allow_patterns=list(_NAMES))
    except Exception as error:  # whatever the client or the network says
        raise InputError(f"cannot pull {repo}: {_told(error)}; check the name, access and network") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own notes
    try:
        return verify_model_folder(folder)
    except ModelError as error:
        raise ModelError(f"{repo} holds no sound MAEDiff model: {str(error).replace(str(folder), repo)}") from error


def _default_api() -> HubApi:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ConfigError(f"the Hugging Face Hub needs its client: {install_hint('hub')}") from error
    api: HubApi = HfApi(library_name="maediff")
    return api


def _told(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
