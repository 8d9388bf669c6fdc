"""Load a predictor from a model folder, and check which overrides a trained model allows."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from maediff.calibration import Calibration, with_threshold
from maediff.card import scope_of
from maediff.config import UNTRAINED, Config, override
from maediff.errors import ConfigError, ModelError
from maediff.hardware import channels_last, kept_random_state, note_loaded, resolve_device, usual_defaults
from maediff.inference.predictor import Predictor
from maediff.inputcheck import ACCEPTABLE
from maediff.methods.base import Method
from maediff.methods.build import build_network, network_shapes
from maediff.model_folder import StoredModel, load_model_folder, resolve_model
from maediff.normative import Locations
from maediff.working.contrast import KINDS, LESION_SIGNS

log = logging.getLogger(__name__)


@usual_defaults()
def load_model(
    model: str | Path,
    device: str = "auto",
    overrides: tuple[str, ...] = (),
    *,
    threshold: float | None = None,
    rate: float | None = None,
    accept: Collection[str] = (),
) -> Predictor:
    """Load a model folder, verified, ready to score scans.

    Args:
        model: Folder that `maediff train` wrote, or "phantom", the model that ships with the package.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        overrides: Changes such as ``infer.draws=4``. Those that change maps suspend the calibration, whose threshold
            belongs to other maps. Those that need another network are refused, and so are those that change residuals
            while residuals are measured by place; ``score.locations=false`` gives maps in working units.
        threshold: Threshold of the map to use instead of the calibrated one.
        rate: Use the threshold that the calibration records for this false-positive rate.
        accept: Codes of input checks that do not refuse a scan, see :data:`maediff.inputcheck.ACCEPTABLE`.

    Raises:
        ModelError: The folder is missing, damaged or of a newer schema, or its weights fit another network.
        ConfigError: Unknown device or code, or an override that is impossible or not allowed.
    """
    unknown = sorted(set(accept) - set(ACCEPTABLE))
    if unknown:
        raise ConfigError(f"{', '.join(unknown)} cannot be accepted; choose from {', '.join(ACCEPTABLE)}")
    chosen = resolve_device(device)
    stored, config = _configured(model, overrides)
    layout = channels_last(len(config.shape))
    network = _built(config, stored, model).to(chosen).to(memory_format=layout)  # type: ignore[call-overload]
    note_loaded()
    calibration = Calibration.from_dict(stored.calibration) if stored.calibration else None
    suspended = _why_suspended(config, stored.config, calibration, overrides)
    if suspended:
        calibration = None
    given = None
    if threshold is not None or rate is not None:
        calibration = with_threshold(calibration, threshold, rate)
        given = calibration.threshold
    return Predictor(
        config,
        network.eval(),
        calibration,
        stored.hash,
        chosen,
        locations=_locations(config, stored),
        threshold_given=given,
        accept=frozenset(accept),
        suspended=suspended,
        scope=scope_of(stored.card),
        adapted_to=stored.adapted_to,
    )


def _configured(model: str | Path, overrides: tuple[str, ...]) -> tuple[StoredModel, Config]:
    """Read a model folder, or the base of one whose adapter is switched off, and its configuration with overrides.

    Raises:
        ModelError: The folder is missing, damaged or of a newer schema.
        ConfigError: An override that is impossible or not allowed.
    """
    stored = load_model_folder(resolve_model(model))
    if stored.base is not None and not override(stored.config, overrides).infer.adapter:
        stored = load_model_folder(stored.base)
    config = override(stored.config, overrides)
    if _trained_as(config) != _trained_as(stored.config):
        raise ConfigError(
            f"overrides {', '.join(overrides)} change what the network was trained as; "
            "allowed are infer.*, score.*, structure.omega, partition.stride, data.align and "
            f"diffusion.{{{', '.join(sorted(_FREE_DIFFUSION))}}}"
        )
    return stored, config


def _built(config: Config, stored: StoredModel, model: str | Path) -> Method:
    """Build the network of a configuration with stored weights, in full precision.

    Raises:
        ModelError: The weights fit another network.
    """
    _check_shapes(config, stored.weights, model)
    with kept_random_state(torch.device("cpu")):  # random weights, replaced by those of the model below
        network = build_network(config, stored.weights)
    try:
        network.load_state_dict({name: value.float() for name, value in stored.weights.items()})
    except RuntimeError as error:
        raise ModelError(f"the weights of {model} do not fit its config.yaml: {str(error).splitlines()[0]}") from error
    return network


def _why_suspended(config: Config, stored: Config, calibration: Calibration | None, overrides: tuple[str, ...]) -> str:
    """Say, and warn, why a calibrated threshold does not apply under overrides; "" if it does or if there is none."""
    if not calibration or _maps_as(config) == _maps_as(stored, _sign_in_force(config, stored, calibration)):
        return ""
    suspended = f"the overrides {', '.join(overrides)} change the maps"
    log.warning(
        "%s, so the model's calibration is suspended: its threshold does not apply, and there is no anomaly mask",
        suspended,
    )
    return suspended


def _locations(config: Config, stored: StoredModel) -> Locations | None:
    """Read the healthy residuals by place if `score.locations` is on.

    Raises:
        ConfigError: The model has none, or overrides change the residuals.
        ModelError: They are damaged.
    """
    if not config.score.locations:
        return None
    if stored.locations is None:
        raise ConfigError(
            "score.locations=true needs healthy residuals by place, which this model does not have; run `maediff "
            "calibrate --locations` with healthy scans in a template's space"
        )
    if _residuals_as(config) != _residuals_as(stored.config):
        raise ConfigError(
            "the overrides change the residuals, so the model's healthy residuals by place do not apply; add "
            "score.locations=false, or leave the overrides out"
        )
    return Locations.from_bytes(stored.locations)


def _check_shapes(config: Config, weights: Mapping[str, torch.Tensor], model: str | Path) -> None:
    """Compare the shapes of weights with those of the configured network, without allocating it.

    Raises:
        ModelError: They differ; the configured network could be of any size.
    """
    if config.method in UNTRAINED:
        return
    wanted = network_shapes(config)
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    if wrong:
        name = wrong[0][:80]
        raise ModelError(
            f"the weights of {model} do not fit its config.yaml: {len(wrong)} tensors differ, the first is {name} "
            f"(weights {found.get(wrong[0], 'none')}, config {wanted.get(wrong[0], 'none')}); fetch or train it again"
        )


_FREE_DIFFUSION = frozenset({"test_timesteps", "sampler", "sampler_steps", "noise"})
_FREE_BASELINES = frozenset({"repaint_timestep", "repaint_rounds"})


def _trained_as(config: Config) -> dict[str, Any]:
    """Collect the settings that a trained network cannot change."""
    return {
        "data": config.data.model_dump(exclude={"align"}),
        "window": (config.partition.window, config.partition.cell),
        "diffusion": config.diffusion.model_dump(exclude=set(_FREE_DIFFUSION)),
        "model": config.model,
        "method": config.method,
        "baselines": config.baselines.model_dump(exclude=set(_FREE_BASELINES)),
        "structure": (config.structure.kinds, config.structure.guides),
        "training": (config.train, config.lesions, config.heads),
    }


def _sign_in_force(config: Config, stored: Config, calibration: Calibration) -> str:
    """Return the sign that the calibration is for; a sign set instead of auto uses the calibrations per contrast."""
    calibrated = {LESION_SIGNS[kind] for kind in KINDS if kind in calibration.contrasts}
    return config.score.sign if stored.score.sign == "auto" and config.score.sign in calibrated else stored.score.sign


def _maps_as(config: Config, sign: str | None = None) -> dict[str, Any]:
    """Collect the settings that a calibrated threshold depends on."""
    lengths = {"median_mm", "erode_mm", "half_depth_mm", "support_mm", "asymmetry_mm"}
    score = config.score.model_dump(include={*lengths, "locations"})
    return _residuals_as(config) | {"score": score, "sign": sign or config.score.sign}


_SAME_RESIDUALS = {"strip", "batch_size", "precision", "adapter"}
"""Settings of `infer` that a threshold does not depend on; whatever is added there counts until it is listed here."""


def _residuals_as(config: Config) -> dict[str, Any]:
    """Collect the settings, besides those that training fixes, that a residual depends on."""
    return {
        "align": config.data.align,
        "partition": config.partition,
        "diffusion": config.diffusion,
        "baselines": config.baselines,
        "omega": config.structure.factors,
        "infer": config.infer.model_dump(exclude=_SAME_RESIDUALS),
        "sign": config.score.sign,
        "mahalanobis": config.score.mahalanobis,
    }
