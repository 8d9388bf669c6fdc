"""Compute the anomaly map of one scan in memory."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maediff.calibration import Calibration, Form
from maediff.card import Scope
from maediff.config import Config, config_hash
from maediff.errors import InputError, ModelError
from maediff.findings import preparation_notes
from maediff.hardware import check_not_forked, use_bf16, usual_defaults
from maediff.images import as_image, as_mask
from maediff.inference.asymmetry import asymmetry_weight, fluid_of
from maediff.inference.reading import Reading, Steps, find_brain, read_sign
from maediff.inference.result import WORKING_UNITS, AnomalyResult
from maediff.inputcheck import HealthyScan, MapMeasures, check_scan, compare, measure_scan, refuse, refuse_ct
from maediff.methods.base import Engine, Healthy, Method
from maediff.normative import UNITS, Locations
from maediff.scoring import agreement, anomaly_mask, case_score, eroded, postprocess
from maediff.typing import BoolArray, FloatMap
from maediff.volume import Volume, check_common_space, from_image, image_like, read_channel, read_mask
from maediff.working import WorkingScan, is_volumetric, prepare, turned
from maediff.working.brainmask import WHOLE_HEAD
from maediff.working.foreground import Surroundings
from maediff.working.hemispheres import axial_axes

Image = Any
"""A path, a nibabel image, a `Volume`, an array with an affine, or an image of MONAI, SimpleITK or TorchIO."""
Images = Any
"""A scan, or its channels in the order of the model's `data.channels`."""


@dataclass(frozen=True)
class LoadedScan:
    """A scan that was read and brought to its working grid, ready for :meth:`Predictor.score`.

    Attributes:
        volume: The scan.
        prepared: Its working slices, with the transform back to native space.
        seconds: Time taken.
        reading: Sign of the residual, and the contrast whose calibration applies.
        steps: Automatic steps, such as brain extraction.
        turned: The scan cut in the further orientations of `infer.orientations`; empty for a stack of thick slices.
        form: Whether the scan is scored as a stack, in the first orientation alone, or as a volume, in all; empty if
            the model has one orientation.
    """

    volume: Volume
    prepared: WorkingScan
    seconds: float
    reading: Reading = field(default_factory=lambda: Reading("abs"))
    steps: Steps = field(default_factory=Steps)
    turned: tuple[WorkingScan, ...] = ()
    form: Form = ""


@dataclass(frozen=True)
class Predictor:
    """A trained model that is ready to score scans.

    Attributes:
        config: Configuration, overrides included.
        network: The network of `config.method`, in eval mode on `device`.
        calibration: Threshold from healthy scans, or None.
        model_hash: Hash of the model folder.
        device: Where it computes.
        locations: Healthy residuals by place, the reference of maps if `score.locations` is on.
        threshold_given: Requested threshold that replaces the calibrated one, or None.
        accept: Codes of input checks that do not refuse a scan, see :data:`maediff.inputcheck.ACCEPTABLE`.
        suspended: Why the model's calibration does not apply; empty if it applies or if there is none.
        scope: What the model's card says it was trained on, finds and misses.
        adapted_to: Contrasts of the scans that the model was adapted to; empty if none, or if they were not read.
    """

    config: Config
    network: Method
    calibration: Calibration | None
    model_hash: str
    device: torch.device
    locations: Locations | None = None
    threshold_given: float | None = None
    accept: frozenset[str] = frozenset()
    suspended: str = ""
    scope: Scope = field(default_factory=Scope)
    adapted_to: tuple[str, ...] = ()

    @cached_property
    def healthy(self) -> tuple[HealthyScan, ...]:
        """Measurements of the healthy scans of the calibration; empty if an earlier version made it.

        Raises:
            ModelError: It is damaged.
        """
        try:
            return tuple(HealthyScan.from_dict(scan) for scan in (self.calibration.healthy if self.calibration else ()))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"the healthy scans of the calibration are damaged ({type(error).__name__}: {error}); run `maediff "
                "calibrate` again"
            ) from None

    @cached_property
    def config_hash(self) -> str:
        """Hash of the configuration, overrides included."""
        return config_hash(self.config)

    @cached_property
    def reconstruct(self) -> Engine:
        """The engine that reconstructs healthy slices: by sliding windows, or whole, as the method requires."""
        bf16 = use_bf16(self.device, self.config.infer.precision)
        return self.network.engine(self.config, self.device, bf16=bf16)

    @usual_defaults()
    def predict(
        self,
        image: Images,
        mask: Image | None = None,
        seed: int = 0,
        on_batch: Callable[[int, int], None] | None = None,
        *,
        affine: npt.ArrayLike | None = None,
    ) -> AnomalyResult:
        """Score one scan.

        Args:
            image: Path, nibabel image, :class:`~maediff.volume.Volume`, NumPy array or PyTorch tensor (X, Y, Z), MONAI
                MetaTensor, SimpleITK image or TorchIO image; for a model of several channels a list of them in the
                order of its `data.channels`, on one voxel grid.
            mask: Brain mask on the same grid. Without one, the brain is all but the background of a skull-stripped
                scan, or the result of the packaged brain extraction for a whole head (`infer.strip`).
            seed: Seed of the noise. The result depends only on it and on the scan's content and geometry, not on the
                file name or the storage order of the voxels.
            on_batch: Progress callback, called with (windows done, windows in total).
            affine: Voxel to RAS mm (4, 4) of an array or a tensor.

        Returns:
            Maps on the voxel grid of `image`.

        Raises:
            InputError: The scan or the mask cannot be used (such as a CT, a whole head or an empty scan), or the model
                expects another number of channels.
            GeometryError: Scan and mask have no usable geometry or different grids, or the model measures by place
                and the scan is not in a template's space.
            ModelError: The maps are not finite.
        """
        return self.score(self.prepare(image, mask, affine), seed, on_batch)

    @usual_defaults()
    def prepare(self, image: Images, mask: Image | None = None, affine: npt.ArrayLike | None = None) -> LoadedScan:
        """Read a scan and bring it to the working grid: the part of :meth:`predict` that needs no network.

        For cohorts, this runs in a thread while the network processes the previous scan. Arguments and errors are
        those of :meth:`predict`.
        """
        start = time.perf_counter()
        first, *rest = (as_image(channel, affine) for channel in self._channels(image))
        volume = from_image(first)
        if self.config.score.locations:
            check_common_space(volume, "score.locations")
        others = [read_channel(channel, volume) for channel in rest]
        refuse_ct(volume, self.accept)
        surroundings = Surroundings(volume)
        brain: BoolArray | None
        if mask is not None:
            found: tuple[BoolArray | None, Steps] = _mask(as_mask(mask), volume), Steps()
        else:
            found = (None, Steps()) if WHOLE_HEAD in self.accept else find_brain(volume, self.config, surroundings)
        brain, stripping = found
        prepared = prepare(
            volume,
            brain,
            self.config.data,
            others,
            accept=self.accept,
            orientation=self.config.infer.orientations[0],
            surroundings=surroundings,
        )
        refuse(volume, prepared.native_mask, self.accept)
        reconstructed = others[: self.config.reconstructed_channels - 1]  # a guide decides neither sign nor threshold
        reading = read_sign(volume, reconstructed, prepared, self.config, self._contrasts)
        told = dict.fromkeys(note for channel in (volume, *others) for note in preparation_notes(channel))
        if self.adapted_to and reading.contrast and reading.contrast not in self.adapted_to:
            told[
                f"the model was adapted to {', '.join(self.adapted_to).upper()} scans, and this one reads as "
                f"{reading.contrast.upper()}, where it may find less than its base (--set infer.adapter=false)"
            ] = None
        further, cutting = self._turned(prepared, (volume, *others))
        steps = Steps(notes=tuple(told)) + stripping + reading.steps + cutting
        form: Form = "volume" if further else "stack" if len(self.config.infer.orientations) > 1 else ""
        return LoadedScan(volume, prepared, time.perf_counter() - start, reading, steps, further, form)

    def _turned(self, prepared: WorkingScan, channels: Sequence[Volume]) -> tuple[tuple[WorkingScan, ...], Steps]:
        """Cut a scan in the further orientations, into slices as far apart as their pixels are wide."""
        first, *further = self.config.infer.orientations
        if not further:
            return (), Steps()
        # Residuals by place are of one orientation.
        if self.config.score.locations or not is_volumetric(channels[0], prepared.native_mask):
            return (), Steps({"orientations": [first]})
        data = self.config.data
        data = data.model_copy(update={"slice_spacing_mm": data.slice_spacing_mm or data.spacing_mm})
        cuts = tuple(turned(prepared, channels, data, one) for one in further)
        return cuts, Steps({"orientations": [first, *further]})

    def _channels(self, image: Images) -> list[Image]:
        """List the channels of a scan; their number must be that of the model."""
        given = list(image) if isinstance(image, (list, tuple)) else [image]
        data = self.config.data
        if len(given) != data.channel_count:
            wanted = f"the {data.channel_count} channels {', '.join(data.channels)}" if data.channels else "one channel"
            raise InputError(f"the model sees {wanted} and was given {len(given)}; give them in this order")
        return given

    @usual_defaults()
    def score(
        self,
        scan: LoadedScan,
        seed: int = 0,
        on_batch: Callable[[int, int], None] | None = None,
        maps: tuple[FloatMap, FloatMap, FloatMap | None] | None = None,
    ) -> AnomalyResult:
        """Score a prepared scan: the rest of :meth:`predict`.

        Args:
            scan: From :meth:`prepare`.
            seed: Seed of the noise.
            on_batch: Progress callback, called with (windows done, windows in total).
            maps: Anomaly map, reconstruction and uncertainty that this model computed for the scan earlier; computed if
                None.
        """
        start = time.perf_counter()
        volume, prepared = scan.volume, scan.prepared
        made = maps or self._maps(scan, (seed, content_key(scan)), on_batch)
        anomaly, reconstruction, deviation = made
        calibrated = self.calibration_of(scan)
        score = case_score(anomaly, prepared.native_mask)
        if not (np.isfinite(score) and np.isfinite(anomaly).all() and np.isfinite(reconstruction).all()):
            raise ModelError(
                f"the maps of {volume.name} are not finite: the model is damaged, or was not trained to its end"
            )
        measures = self.measured(prepared, anomaly, calibrated)
        checks = (
            *check_scan(measures.scan),
            *compare(measures.scan, measures.map, self.healthy),
        )
        return AnomalyResult(
            volume=volume,
            anomaly=anomaly,
            reconstruction=reconstruction,
            brain_mask=prepared.native_mask,
            anomaly_mask=self._mask(anomaly, volume, calibrated),
            uncertainty=deviation,
            score=score,
            score_percentile=calibrated.percentile_of(score) if calibrated and calibrated.case_scores else None,
            threshold=calibrated.threshold if calibrated else None,
            threshold_origin=calibrated.origin if calibrated else None,
            notes=(*prepared.notes, *scan.steps.notes, *(note.text for note in checks)),
            seconds=scan.seconds + time.perf_counter() - start,
            units=self._units,
            background=prepared.background,
            steps=scan.steps.record,
            checks=checks,
            measures=measures,
            contrast=scan.reading.contrast,
            form=scan.form,
            healthy_scans=len(calibrated.case_scores) if calibrated and calibrated.case_scores else None,
            suspended=self.suspended,
            scope=self.scope,
            min_size_mm3=self.config.score.min_size_mm3,
        )

    @property
    def _units(self) -> str:
        units = WORKING_UNITS if self.locations is None else UNITS
        score = self.config.score
        weighed = {
            "less near the brain's surface": score.half_depth_mm,
            "more amid others": score.support_mm,
            "more where the hemispheres differ": score.asymmetry_mm,
            "less where passes disagree": score.mahalanobis,
        }
        return ", ".join([units, *(how for how, setting in weighed.items() if setting)])

    @cached_property
    def _contrasts(self) -> tuple[str, ...]:
        return tuple(self.calibration.contrasts) if self.calibration else ()

    def calibration_of(self, scan: LoadedScan) -> Calibration | None:
        """Return the calibration that applies to a scan: that of its contrast and form, else a wider one."""
        return self.calibration and self.calibration.of_contrast(scan.reading.contrast, scan.form)

    def measured(self, prepared: WorkingScan, anomaly: FloatMap, calibrated: Calibration | None = None) -> HealthyScan:
        """Measure a scan and its map (X, Y, Z), for the input check and the calibration's record of healthy scans."""
        slices = prepared.slices[:, 0] if prepared.slices.ndim == 4 else prepared.slices
        threshold = calibrated.threshold if calibrated else None
        return HealthyScan(
            measure_scan(slices, prepared.mask, prepared.grid.spacing_mm, axial_axes(prepared.grid.affine)),
            MapMeasures.of(anomaly, prepared.native_mask, threshold),
        )

    @usual_defaults()
    def residual(self, scan: LoadedScan, seed: int = 0) -> FloatMap:
        """Reconstruct a prepared scan in the first orientation; return its residual on the working grid (S, H, W).

        It is weighed by `score.asymmetry_mm`; see :mod:`maediff.inference.asymmetry`.
        """
        healthy = self._healthy(scan.prepared, (seed, content_key(scan)))
        return self.compare(scan.prepared, healthy, scan.reading)

    def compare(self, prepared: WorkingScan, healthy: Healthy, reading: Reading) -> FloatMap:
        """Compare slices with their healthy version (S, H, W), weighed by asymmetry and by how far passes agree.

        The weights are those of `score.asymmetry_mm` and `score.mahalanobis`.
        """
        own, sign = prepared, reading.sign
        if prepared.slices.ndim == 4:
            own = replace(prepared, slices=prepared.slices[:, : self.config.reconstructed_channels])
        mean = healthy.mean.numpy()
        fluid = fluid_of(mean[:, 0] if mean.ndim == 4 else mean, reading.contrast)
        weight = asymmetry_weight(own, sign, self.config.score.asymmetry_mm, fluid)
        if self.config.score.mahalanobis and healthy.deviation is not None:
            weight = weight * agreement(_over_channels(healthy.deviation).numpy(), self.config.score.mahalanobis)
        return healthy.residual(prepared.slices, sign) * weight

    def _healthy(
        self, prepared: WorkingScan, key: tuple[object, ...], on_batch: Callable[[int, int], None] | None = None
    ) -> Healthy:
        check_not_forked()
        slices, inside = torch.from_numpy(prepared.slices), torch.from_numpy(prepared.mask)
        return self.reconstruct(slices, inside, key, on_batch)

    def _maps(
        self, scan: LoadedScan, key: tuple[object, ...], on_batch: Callable[[int, int], None] | None
    ) -> tuple[FloatMap, FloatMap, FloatMap | None]:
        """Compute anomaly map, reconstruction and uncertainty in native space."""
        volume, prepared = scan.volume, scan.prepared
        score = self.config.score.model_copy(update={"sign": scan.reading.sign})
        direct = self.network.scan_maps(volume, prepared.native_mask, score)
        if direct is not None:
            anomaly, healthy = direct
            if score.asymmetry_mm:
                weight = asymmetry_weight(prepared, scan.reading.sign, score.asymmetry_mm)
                anomaly = anomaly * np.maximum(prepared.to_native(weight), 1)
            return anomaly, healthy, None
        cuts = (prepared, *scan.turned)
        made = [
            self._maps_of(cut, scan.reading, key, _part(on_batch, index, len(cuts))) for index, cut in enumerate(cuts)
        ]
        count: FloatMap = np.sum([cut.reached for cut in cuts], axis=0, dtype=np.float32)
        anomaly = _mean([maps[0] for maps in made], count)
        drawn = _mean([maps[1] for maps in made], count)
        if score.mahalanobis and len(cuts) > 1:
            square = [cut.reached * (maps[1] - drawn) ** 2 for cut, maps in zip(cuts, made, strict=True)]
            variance = np.sum(square, axis=0) / np.maximum(count - 1, 1)
            anomaly = anomaly * agreement(np.sqrt(variance), score.mahalanobis)
        reconstruction = prepared.scale.inverse(drawn)
        reconstruction[count == 0] = volume.data[count == 0]
        deviations = [maps[2] for maps in made if maps[2] is not None]
        return anomaly, reconstruction, _mean(deviations, count) if deviations else None

    def _maps_of(
        self,
        prepared: WorkingScan,
        reading: Reading,
        key: tuple[object, ...],
        on_batch: Callable[[int, int], None] | None,
    ) -> tuple[FloatMap, FloatMap, FloatMap | None]:
        """Compute map, reconstruction in working units and uncertainty from slices of one orientation, native space."""
        healthy = self._healthy(prepared, key, on_batch)
        mean, deviation = healthy.mean, healthy.deviation
        reconstruction = prepared.to_native((mean[:, 0] if mean.ndim == 4 else mean).numpy())
        uncertainty = None if deviation is None else prepared.to_native(_over_channels(deviation).numpy())
        return self.map_of(prepared, self.compare(prepared, healthy, reading)), reconstruction, uncertainty

    @usual_defaults()
    def map_of(self, prepared: WorkingScan, residual: FloatMap) -> FloatMap:
        """Compute the anomaly map from a residual: measure by place, filter, and resample to native space.

        Erosion is repeated in native space to keep the edge sharp.

        Args:
            prepared: The scan.
            residual: From :meth:`residual` (S, H, W).

        Returns:
            Map (X, Y, Z).
        """
        config, spacing = self.config.score, prepared.grid.spacing_mm
        if self.locations is not None:
            residual = self.locations.standardised(residual, prepared.mask, prepared.grid)
        working = postprocess(residual, prepared.mask, spacing, config)
        native = prepared.to_native(np.maximum(working, 0, out=working))
        if config.erode_mm:
            native[prepared.to_native(eroded(prepared.mask, spacing, config.erode_mm), order=0) == 0] = 0
        return native

    def _mask(self, anomaly: FloatMap, volume: Volume, calibrated: Calibration | None) -> BoolArray | None:
        if calibrated is None:
            return None
        return anomaly_mask(anomaly, calibrated.threshold, volume.spacing_mm, self.config.score.min_size_mm3)


def content_key(scan: LoadedScan) -> str:
    """Return a key of a scan's content that seeds its noise: a hash of the sorted intensities of its brain.

    The file name and the order of the voxels do not matter: a renamed scan, or the same scan stored along other axes,
    gets the same noise on its working grid. Two scans of equal content get equal noise.
    """
    values = np.sort(scan.volume.data[scan.prepared.native_mask])
    return hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()


def _over_channels(deviation: torch.Tensor) -> torch.Tensor:
    """Average a deviation (S, H, W) or (S, C, H, W) over channels."""
    return deviation.mean(1) if deviation.ndim == 4 else deviation


def _mean(maps: Sequence[FloatMap], count: FloatMap) -> FloatMap:
    """Average native maps, each 0 where its cut does not reach, over the `count` of cuts that reach a voxel."""
    total: FloatMap = np.sum(maps, axis=0) / np.maximum(count, 1)
    return total


def _part(on_batch: Callable[[int, int], None] | None, index: int, count: int) -> Callable[[int, int], None] | None:
    """Return a progress callback for part `index` of `count` parts that are taken to be equally long."""
    if on_batch is None or count == 1:
        return on_batch
    return lambda done, total: on_batch(index * total + done, count * total)


def _mask(mask: Any, volume: Volume) -> BoolArray:
    source = image_like(mask.data, mask) if isinstance(mask, Volume) else mask
    found: BoolArray = read_mask(source, volume, "brain mask")
    return found
