"""Configuration: frozen pydantic models, read once from YAML and ``section.key=value`` overrides.

Sizes are in pixels of the working grid, whose in-plane spacing is ``data.spacing_mm``.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Unit = Field(ge=0.0, le=1.0)
Method = Literal[
    "maediff",
    "volumetric",
    "intensity",
    "zscore",
    "ae",
    "vae",
    "dae",
    "ddpm",
    "pddpm",
    "cddpm",
    "latent_diffusion",
    "conditioned_latent_diffusion",
    "autoddpm",
    "disyre",
]
METHODS: tuple[str, ...] = get_args(Method)
Noise = Literal["gaussian", "simplex", "coarse", "none"]
Orientation = Literal["axial", "coronal", "sagittal"]
UNTRAINED = frozenset({"intensity", "zscore"})
"""Methods without a network."""
EDGES = "edges"
"""The guide that is computed from the scan itself."""
_MIRRORING = frozenset({"maediff", "pddpm", "ddpm", "cddpm", "autoddpm", "disyre", "dae"})
"""Methods that restore slices by a U-Net, which may see the other hemisphere."""
_LATENT = ("latent_diffusion", "conditioned_latent_diffusion")
# Upper limits, far above usual values: larger ones are slips or attacks and are refused before memory is allocated.
# Whether a network of allowed size fits into memory is checked when it is built.
_MANY, _STEPS, _WIDTH, _DEPTH = 2**16, 2**40, 8192, 64
Percent = Annotated[float, Field(ge=0, le=100)]
Side = Annotated[int, Field(ge=4, le=2048)]
Width = Annotated[int, Field(ge=1, le=_WIDTH)]
Spacing = Annotated[float, Field(ge=0.02, le=50)]
Channel = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.+-]*$", max_length=40)]


class Section(BaseModel):
    """A frozen part of the configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for a number: pydantic takes them for 1 and 0, and YAML reads yes and no as them."""
        kinds = _plain_types(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("a number is needed here, not true or false (YAML reads yes, no, on and off as these)")
        return value


def _plain_types(annotation: Any) -> set[Any]:
    """Collect the types that an annotation is made of."""
    parts = get_args(annotation)
    return set().union(*(_plain_types(part) for part in parts)) if parts else {annotation}


class DataConfig(Section):
    """Settings from a scan to its working slices."""

    channels: tuple[Channel, ...] = Field(
        (),
        max_length=8,
        description="Co-registered channels that the network sees together (columns image_<channel> of a table), the "
        "first one gives grid and brain; empty: one channel.",
    )
    neighbours: int = Field(
        0,
        ge=0,
        le=64,
        description="Slices before and after each slice that the network also sees (methods maediff and ddpm, trained "
        "from scans); see docs/method.md.",
    )
    size: tuple[Side, Side] = Field((96, 96), description="Working slice (x, y), pixels; grows if a brain is larger.")
    spacing_mm: Spacing = Field(2.0, description="In-plane spacing of the working grid, mm.")
    slice_spacing_mm: Spacing | None = Field(
        None, description="Spacing between slices, mm; null keeps that of the scan."
    )
    align: Literal["voxel", "world"] = Field(
        "voxel",
        description="voxel: slices as acquired, turned to the closest canonical axes; "
        "world: slices across the scanner axes, for scans that are registered to a template.",
    )
    scaling: Literal["percentile", "contralateral", "median"] = Field(
        "percentile",
        description="percentile: in-mask percentiles to -1 and 1; contralateral: the same with the upper one of the "
        "hemisphere where it is lower, so that a large bright lesion does not darken healthy tissue; median: 0 to -1, "
        "in-mask median to 0.",
    )
    percentiles: tuple[Percent, Percent] = Field((1.0, 99.0), description="In-mask percentiles mapped to -1 and 1.")
    clip: float = Field(1.5, ge=1.0, le=1000, description="Upper limit of scaled intensities (the lower is -1).")
    min_brain_fraction: float = Field(
        0.02, ge=0.0, lt=1.0, description="Training leaves out slices with a smaller share of brain pixels."
    )
    validation_fraction: float = Field(
        0.15, gt=0.0, lt=1.0, description="Share of subjects held out for validation if no split is given."
    )

    @model_validator(mode="after")
    def _rises(self) -> DataConfig:
        low, high = self.percentiles
        if low >= high:
            raise ValueError(f"percentiles {low:g} and {high:g} must rise")
        return self

    @model_validator(mode="after")
    def _names_several(self) -> DataConfig:
        names = self.channels
        if len(names) == 1:
            raise ValueError(f"one channel needs no name here: leave channels empty and choose --channel {names[0]}")
        if len(set(names)) < len(names):
            raise ValueError(f"channels {', '.join(names)} name one twice; name each once")
        return self

    @property
    def channel_count(self) -> int:
        """Number of channels of a slice."""
        return max(1, len(self.channels))

    @property
    def offsets(self) -> tuple[int, ...]:
        """Distance of each neighbour from the slice, in slices: -n to -1, then 1 to n."""
        return (*range(-self.neighbours, 0), *range(1, self.neighbours + 1))


class PartitionConfig(Section):
    """Hierarchical patch partition: upper-level windows and sub-level cells."""

    window: int = Field(48, ge=4, le=2048, description="Side p of the upper-level window.")
    stride: int = Field(24, ge=1, le=2048, description="Step s of the sliding window at test time.")
    cell: int = Field(
        8, ge=2, le=2048, description="Side of a sub-level cell; the grid has r = size / cell cells per side."
    )

    @model_validator(mode="after")
    def _covers(self) -> PartitionConfig:
        if self.stride > self.window:
            raise ValueError(f"stride {self.stride} leaves gaps between windows of {self.window}; use stride <= window")
        return self


class DiffusionConfig(Section):
    """Forward process, training objective and the timesteps used at test time."""

    timesteps: int = Field(1000, ge=2, le=_MANY, description="Length T of the chain.")
    schedule: Literal["linear", "scaled_linear", "cosine"] = "cosine"
    objective: Literal["eps", "x0", "v", "mu"] = Field("v", description="What the network predicts.")
    loss: Literal["x0_l1", "x0_l2", "simple"] = Field(
        "x0_l1", description="x0_l1, x0_l2: distance of the x0 estimate; simple: squared error of the prediction."
    )
    train_timesteps: tuple[int, int] = Field((1, 1000), description="First and last timestep drawn in training.")
    hidden_share: float = Field(
        0.0, ge=0, le=1, description="Share of training slices whose patch is hidden: their timestep is T."
    )
    test_timesteps: tuple[int, ...] = Field(
        (500,), min_length=1, max_length=1000, description="Timesteps averaged at test time."
    )
    noise: Noise = "gaussian"
    sampler: Literal["single_step", "ddim", "ancestral"] = "single_step"
    sampler_steps: int = Field(10, ge=1, le=_MANY, description="Steps of the ddim sampler; ancestral takes them all.")
    variance: Literal["posterior", "beta", "learned"] = Field(
        "posterior", description="Variance of ancestral steps: beta~, beta, or learned between them (method ddpm)."
    )
    bound_weight: float = Field(
        0.0, ge=0.0, description="Weight of the variational bound beside the loss (method ddpm); 0: none."
    )

    @model_validator(mode="after")
    def _within_chain(self) -> DiffusionConfig:
        first, last = self.train_timesteps
        if not 1 <= first <= last <= self.timesteps:
            raise ValueError(f"train_timesteps {first}, {last} must rise within 1 to timesteps = {self.timesteps}")
        for t in self.test_timesteps:
            if not 1 <= t <= self.timesteps:
                raise ValueError(f"test timestep {t} is outside 1 to timesteps = {self.timesteps}")
        return self


class ModelConfig(Section):
    """Denoising U-Net and the MAE condition."""

    channels: tuple[Width, ...] = Field(
        (128, 256, 256), min_length=2, max_length=8, description="U-Net channels, one entry per level."
    )
    patch: int = Field(
        1, ge=1, le=64, description="Pixels folded into channels before the U-Net (1: none); 2 is 4x faster."
    )
    num_res_blocks: int = Field(3, ge=1, le=16)
    attention: tuple[bool, ...] = Field((False, False, False), description="Self-attention, one entry per level.")
    norm_groups: int = Field(32, ge=1, le=_WIDTH)
    input_skip: bool = Field(False, description="The network predicts the change of its input (objective x0 only).")
    gate: bool = Field(
        False,
        description="The change of the input is a gate from 0 to 1 times a difference; pseudo-lesions teach the gate "
        "where to be 1 (methods maediff, pddpm, ddpm, cddpm, autoddpm).",
    )
    mirror: bool = Field(
        False,
        description="The U-Net also sees the slice mirrored at its midline: the other hemisphere, except in sagittal "
        "slices, whose mirror image tells nothing (methods maediff, pddpm, ddpm, cddpm, autoddpm, disyre and dae; "
        "others do not look at it).",
    )
    mask_channel: bool = Field(True, description="The U-Net sees the mask of the window as an input channel.")
    condition: Literal["residual", "cross_attention", "none"] = Field(
        "residual", description="How MAE features enter the U-Net; none is the ablation."
    )
    mae_width: int = Field(192, ge=8, le=_WIDTH, multiple_of=8)
    mae_depth: int = Field(4, ge=1, le=_DEPTH)
    mae_heads: int = Field(4, ge=1, le=_WIDTH)
    mae_decoder_depth: int = Field(1, ge=1, le=_DEPTH)
    mae_loss_weight: float = Field(0.1, ge=0.0, description="Weight of the auxiliary MAE loss; 0 turns it off.")

    @model_validator(mode="after")
    def _divides(self) -> ModelConfig:
        if len(self.attention) != len(self.channels):
            raise ValueError(f"attention has {len(self.attention)} entries for {len(self.channels)} levels")
        for width in self.channels:
            if width % self.norm_groups:
                raise ValueError(f"channels {width} cannot be split into norm_groups = {self.norm_groups}")
        if self.mae_width % (2 * self.mae_heads):
            raise ValueError(f"mae_width {self.mae_width} must be a multiple of 2 x mae_heads = {2 * self.mae_heads}")
        return self


class HeadsConfig(Section):
    """Synthetic slices drawn on the fly from label maps of whole heads, see :mod:`maediff.heads`."""

    enabled: bool = Field(False, description="Train on label maps of whole heads instead of scans.")
    white_matter_masks: str | None = Field(
        None, description="Folder of masks of white-matter lesions in MNI space, for shapes."
    )
    lesion_masks: str | None = Field(None, description="Folder of masks of other lesions in MNI space, for shapes.")
    random_contrasts: float = Field(
        0.27,
        ge=0,
        le=1,
        description="Share of slices whose structures have random intensities; the others are physical.",
    )
    faintest: float = Field(
        0.2, gt=0, le=1, description="Lowest opacity of lesions, as a share of the highest at their timestep."
    )
    lesions: float = Field(0.9, ge=0, le=1, description="Share of slices with lesions that the network must remove.")
    orientations: tuple[Orientation, ...] = Field(
        ("axial",), min_length=1, description="Orientations of the drawn slices."
    )
    slices: Side = Field(64, description="Slices of a drawn volume (method volumetric).")


class StructureConfig(Section):
    """Side networks that steer the reconstruction by a second image; `maediff adapt` trains them (docs/adapters.md)."""

    kinds: tuple[Literal["controlnet", "t2i"], ...] = Field(
        (), max_length=8, description="Kind of each: a copy of the U-Net's encoder, or a light encoder."
    )
    guides: tuple[Channel, ...] = Field(
        (), max_length=8, description="What each sees: edges of the scan, or a channel of the last data.channels."
    )
    omega: tuple[float, ...] = Field((), max_length=8, description="Factor of each; empty: 1 each; 0 switches one off.")

    @property
    def factors(self) -> tuple[float, ...]:
        """Factor of each side network."""
        return self.omega or (1.0,) * len(self.kinds)

    @property
    def contrasts(self) -> tuple[str, ...]:
        """Channels that only side networks see, each once, in the order of `data.channels`."""
        return tuple(dict.fromkeys(guide for guide in self.guides if guide != EDGES))

    @model_validator(mode="after")
    def _match(self) -> StructureConfig:
        if len(self.guides) != len(self.kinds):
            raise ValueError(f"guides names {len(self.guides)} for {len(self.kinds)} kinds; name one each")
        if self.omega and len(self.omega) != len(self.kinds):
            raise ValueError(f"omega has {len(self.omega)} factors for {len(self.kinds)} side networks; give one each")
        return self


class BaselineConfig(Section):
    """Further settings of the baselines, the methods that MAEDiff is compared with."""

    latent: int = Field(128, ge=1, le=_WIDTH, description="Size of the code of vae, of the embedding of cddpm.")
    latent_channels: int = Field(
        4,
        ge=1,
        le=_WIDTH,
        description="Channels of the latent image of latent_diffusion and conditioned_latent_diffusion.",
    )
    latent_levels: int = Field(2, ge=1, le=8, description="Halvings from the slice to the latent image.")
    kl_weight: float = Field(1e-4, ge=0.0, description="Weight of vae's KL divergence against the mean error.")
    noise_std: float = Field(0.4, gt=0.0, description="Standard deviation of the coarse noise of dae, working units.")
    suspect_quantile: float = Field(
        0.95, gt=0.0, lt=1.0, description="autoddpm: residuals above this quantile of healthy ones are repainted."
    )
    repaint_timestep: int = Field(
        50, ge=1, le=_MANY, description="autoddpm: timestep from which stitched slices are harmonised."
    )
    repaint_rounds: int = Field(5, ge=1, le=1000, description="autoddpm: how often each harmonising step is repeated.")
    severities: int = Field(
        5, ge=1, le=100, description="disyre: severities, evenly spaced, whose residuals are averaged at test time."
    )


class TrainConfig(Section):
    """Optimisation."""

    max_steps: int = Field(100_000, ge=1, le=_STEPS)
    batch_size: int = Field(32, ge=1, le=_MANY, description="Slices per step and process, before accumulation.")
    accumulate: int = Field(1, ge=1, le=_MANY, description="Batches whose gradients are summed for one step.")
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup_steps: int = Field(500, ge=0, le=_STEPS)
    grad_clip: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="auto: bf16 if the hardware supports it; fp16: with a loss scale, on CUDA devices only."
    )
    seed: int = Field(0, ge=0, lt=2**63)
    init: str | None = Field(
        None,
        description="Model folder, heads or phantom: initial weights, of the same network or without mirror.",
    )
    augment: bool = Field(True, description="Flips, small affine changes, brightness, contrast and gamma.")
    lesion_weight: float = Field(
        0.0, ge=0, description="Weight of the x0 error inside pseudo-lesions, averaged per slice; 0: none."
    )
    gate_weight: float = Field(
        0.1, ge=0, description="Weight of the cross-entropy between model.gate and the visible pseudo-lesions."
    )
    outside_weight: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Weight of the x0 error of the brain outside the window; inside it the weight is 1.",
    )
    windows: int = Field(
        1, ge=1, le=1024, description="Most windows that are noised together in a training slice; the number varies."
    )
    workers: int = Field(
        0, ge=0, le=1024, description="Processes that prepare batches; 0: the main process prepares them."
    )
    val_every: int = Field(500, ge=1, le=_STEPS)
    checkpoint_every: int = Field(500, ge=1, le=_STEPS)
    log_every: int = Field(50, ge=1, le=_STEPS)
    pictures: int = Field(
        4, ge=0, le=64, description="Slices drawn at each validation, into RUN/pictures and the tracker; 0: none."
    )
    report_to: Literal["none", "tensorboard", "wandb"] = Field(
        "none", description="Tracker that losses and pictures are also reported to (extras: tensorboard, wandb)."
    )


class LesionsConfig(Section):
    """Pseudo-lesions of training slices, see :mod:`maediff.training.pseudo_lesions`."""

    share: float = Field(
        0.0, ge=0, le=1, description="Share of training slices with random blobs that the network must remove."
    )
    sign: Literal["any", "bright", "dark"] = Field(
        "any",
        description="any: pseudo-lesions of any appearance; bright or dark: only brighter or darker than the tissue.",
    )
    size: tuple[float, float] = Field(
        (0.015, 0.25), description="Smallest and largest half axis of large pseudo-lesions, as shares of the slice."
    )
    spots: float = Field(
        0.5, ge=0, le=1, description="Share of slices with pseudo-lesions that get small spots instead of large ones."
    )

    @model_validator(mode="after")
    def _sizes_rise(self) -> LesionsConfig:
        least, most = self.size
        if not 0 < least <= most <= 1:
            raise ValueError(f"size {least:g}, {most:g} must rise within 0 to 1, parts of the slice")
        return self


class InferConfig(Section):
    """Sliding-window inference, and preparation of the scan."""

    strip: Literal["auto", "never"] = Field(
        "auto",
        description="auto: the packaged brain extraction finds the brain of a whole head that comes without a mask; "
        "never: such a scan is refused.",
    )
    batch_size: Annotated[int, Field(ge=1, le=_MANY)] | Literal["auto"] = Field(
        "auto", description="Windows per forward pass; auto: as many as fit into memory. The maps do not depend on it."
    )
    draws: int = Field(1, ge=1, le=1000, description="Noise draws averaged for each timestep.")
    blend: Literal["uniform", "gaussian"] = "gaussian"
    orientations: tuple[Orientation, ...] = Field(
        ("axial",),
        min_length=1,
        description="Orientations of the slices that are reconstructed; their maps are averaged. A stack of thick "
        "slices, and any scan with score.locations, is reconstructed in the first orientation only.",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 if the hardware supports it.")
    context: Annotated[int, Field(ge=0, le=2048)] | Literal["slice", "brain"] = Field(
        "slice",
        description="What the U-Net sees around a window: the whole slice, the box of the slice's brain, or this many "
        "pixels within that box. Less is faster (docs/speed.md).",
    )
    adapter: bool = Field(
        True, description="false: use the base of an adapted model, with the base's calibration (docs/own-site.md)."
    )
    together: int = Field(
        1,
        ge=1,
        le=64,
        description="Windows of a slice that are hidden in one pass. They do not overlap, and half of the slice stays "
        "visible. More is faster if they fit (docs/speed.md).",
    )


class ScoreConfig(Section):
    """Settings from residual to map and mask. Lengths are in mm, volumes in mm3."""

    sign: Literal["abs", "bright", "dark", "auto"] = Field(
        "abs",
        description="abs: |x - x^|; bright or dark: only voxels brighter or darker than healthy; auto: as for lesions "
        "on the contrast that is read from the scan (bright on T2 and FLAIR, dark on T1, abs if unsure).",
    )
    median_mm: float = Field(0.0, ge=0, le=100, description="Width of the in-plane median filter; 0 turns it off.")
    erode_mm: float = Field(0.0, ge=0, le=100, description="In-plane erosion of the brain mask.")
    half_depth_mm: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Depth below the brain's surface at which residuals count half; less above it, more below. 0: all "
        "count alike.",
    )
    support_mm: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Standard deviation of the Gaussian within which residuals support each other: a voxel amid other "
        "residuals counts more, a lone one as much as before. 0 turns it off.",
    )
    asymmetry_mm: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Standard deviation of the Gaussian that smooths the scan's difference from its mirror image: a "
        "residual counts more, up to 2.2 times, where the scan departs from its other hemisphere in the direction of "
        "the sign. 0 turns it off.",
    )
    mahalanobis: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Least standard deviation, in working units, of the reconstructions of several passes: residuals "
        "are divided by their deviation over infer.draws and diffusion.test_timesteps, and over infer.orientations, in "
        "units of this least one, so that they count less where the passes disagree. 0: plain residuals.",
    )
    min_size_mm3: float = Field(0.0, ge=0, description="Smaller components are removed from the anomaly mask.")
    false_positive_rate: float = Field(
        0.01, gt=0, lt=1, description="Share of healthy brain voxels above the calibrated threshold."
    )
    locations: bool = Field(
        False,
        description="Maps in standard deviations above the healthy residual at the same place of the template; set by "
        "`maediff calibrate --locations` (docs/calibration.md).",
    )


class Config(Section):
    """The whole configuration of a model."""

    method: Method = Field("maediff", description="maediff, or a method to compare it with (docs/baselines.md).")
    data: DataConfig = DataConfig()
    partition: PartitionConfig = PartitionConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    lesions: LesionsConfig = LesionsConfig()
    infer: InferConfig = InferConfig()
    score: ScoreConfig = ScoreConfig()
    baselines: BaselineConfig = BaselineConfig()
    heads: HeadsConfig = HeadsConfig()
    structure: StructureConfig = StructureConfig()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what the network restores at once in training: a slice (H, W), or a volume (D, H, W)."""
        return (self.heads.slices, *self.data.size) if self.method == "volumetric" else self.data.size

    @property
    def reconstructed_channels(self) -> int:
        """Number C of channels that are reconstructed; those that only side networks see come after them."""
        return self.data.channel_count - len(self.structure.contrasts)

    @property
    def neighbour_channels(self) -> int:
        """Number K of channels of all neighbours of a slice, which come after its own."""
        return self.reconstructed_channels * len(self.data.offsets)

    @property
    def mirror_channels(self) -> int:
        """Number of channels of a slice's mirror image, which come after those of its neighbours."""
        return self.reconstructed_channels * (self.model.mirror and self.method in _MIRRORING)

    @property
    def guide_channels(self) -> tuple[tuple[int, ...], ...]:
        """What each side network sees, as indices into a slice's channels followed by the edges of the first C."""
        count = self.data.channel_count
        edges = tuple(range(count, count + self.reconstructed_channels))
        return tuple(edges if guide == EDGES else (self.data.channels.index(guide),) for guide in self.structure.guides)

    @property
    def noise(self) -> Noise:
        """Noise of training and inference: `diffusion.noise`, except that the DAE's noise is always coarse."""
        return "coarse" if self.method == "dae" else self.diffusion.noise

    @model_validator(mode="after")
    def _method_allows(self) -> Config:
        kind = self.diffusion
        if self.method in {"vae", *_LATENT} and kind.noise != "gaussian":
            raise ValueError(f"method {self.method} needs diffusion.noise gaussian, not {kind.noise!r}")
        if self.method == "pddpm" and self.train.windows > 1:
            raise ValueError(
                f"train.windows={self.train.windows} does not go with method pddpm, which noises one window of its "
                "grid: set train.windows=1"
            )
        if self.method in UNTRAINED and self.score.locations:
            raise ValueError(f"score.locations goes with methods that reconstruct, not with {self.method!r}")
        if self.method != "maediff" and self.data.channels:
            raise ValueError(
                f"data.channels names {len(self.data.channels)} channels; method {self.method!r} takes one: leave "
                "data.channels empty and choose --channel, or use method maediff"
            )
        if self.method != "ddpm" and (kind.variance == "learned" or kind.bound_weight):
            raise ValueError(
                f"diffusion.variance=learned and diffusion.bound_weight go with method ddpm, not {self.method!r}"
            )
        if kind.variance == "learned" and not kind.bound_weight:
            raise ValueError("diffusion.variance=learned is trained by the bound alone: set diffusion.bound_weight")
        if self.method == "autoddpm" and self.baselines.repaint_timestep > kind.timesteps:
            raise ValueError(
                f"baselines.repaint_timestep {self.baselines.repaint_timestep} is above timesteps {kind.timesteps}"
            )
        return self

    @model_validator(mode="after")
    def _fits_its_code(self) -> Config:
        other = self.baselines
        pixels = math.prod(self.data.size)
        if self.method == "vae" and other.latent > pixels:
            raise ValueError(
                f"baselines.latent {other.latent} exceeds the {pixels} pixels of a slice (data.size), whose noise the "
                "code of method vae takes; use a smaller code"
            )
        if 4 * other.latent_channels > 4**other.latent_levels:
            raise ValueError(
                f"{other.latent_channels} latent channels after {other.latent_levels} halvings exceed a quarter of the "
                "slice; use fewer channels or more levels (baselines.latent_channels, baselines.latent_levels)"
            )
        fold = 2**other.latent_levels
        multiple = fold * 2 ** (len(self.model.channels) - 1)
        padded = [math.ceil(side / multiple) * multiple for side in self.data.size]
        if self.method in _LATENT and 2 * other.latent_channels * math.prod(padded) > pixels * fold**2:
            raise ValueError(
                f"{other.latent_channels} latent channels after {other.latent_levels} halvings exceed half of a slice "
                f"of {pixels} pixels (data.size), whose noise they take, once it is padded to {padded[0]} x "
                f"{padded[1]} for the U-Net's levels; use fewer channels, or a data.size of multiples of {multiple}"
            )
        if self.method == "conditioned_latent_diffusion" and (
            self.partition.window % fold or self.partition.stride % fold
        ):
            raise ValueError(
                f"window {self.partition.window} and stride {self.partition.stride} must be multiples of {fold}, the "
                "pixels along a latent pixel (2 ** baselines.latent_levels), for method conditioned_latent_diffusion"
            )
        return self

    @model_validator(mode="after")
    def _is_a_volume(self) -> Config:
        if self.method != "volumetric":
            return self
        data, infer = self.data, self.infer
        wanted = (
            (self.heads.enabled, "heads.enabled=true, since its training volumes are drawn from label maps"),
            (
                data.slice_spacing_mm == data.spacing_mm,
                f"data.slice_spacing_mm={data.spacing_mm:g}, as data.spacing_mm",
            ),
            (self.diffusion.noise in {"gaussian", "none"}, "diffusion.noise=gaussian or none"),
            (infer.orientations == ("axial",), "infer.orientations=[axial], since it sees all at once"),
            (infer.context == "slice" and infer.together == 1, "infer.context=slice and infer.together=1"),
        )
        for right, said in wanted:
            if not right:
                raise ValueError(f"method volumetric needs {said}")
        return self

    @model_validator(mode="after")
    def _steers(self) -> Config:
        contrasts, names = self.structure.contrasts, self.data.channels
        if self.structure.kinds and self.method != "maediff":
            raise ValueError(f"structure goes with method maediff, not {self.method!r}")
        if contrasts and (len(names) <= len(contrasts) or names[len(names) - len(contrasts) :] != contrasts):
            raise ValueError(
                f"structure.guides {', '.join(contrasts)} must be the last of data.channels ({', '.join(names)}), "
                "after the channels that are reconstructed"
            )
        return self

    @model_validator(mode="after")
    def _sees_neighbours(self) -> Config:
        if not self.data.neighbours:
            return self
        asked = f"data.neighbours={self.data.neighbours}"
        if self.method not in {"maediff", "ddpm"}:
            raise ValueError(f"{asked} goes with methods maediff and ddpm, not {self.method!r}; set data.neighbours=0")
        if self.method == "ddpm" and self.diffusion.sampler != "single_step":
            raise ValueError(
                f"{asked} with method ddpm goes with diffusion.sampler=single_step, not {self.diffusion.sampler!r}: "
                "at the low noise of its last steps the neighbours would show a lesion that the walk has removed"
            )
        if self.heads.enabled:
            raise ValueError(f"{asked} needs scans, and heads.enabled draws single slices: turn one of them off")
        if self.structure.kinds:
            raise ValueError(f"{asked} does not go with side networks: leave structure empty or set data.neighbours=0")
        return self

    @model_validator(mode="after")
    def _sees_the_other_side(self) -> Config:
        if not self.mirror_channels:
            return self
        if isinstance(self.infer.context, int):
            raise ValueError(
                f"model.mirror needs infer.context slice or brain, not {self.infer.context}: so little context does "
                "not show the other side of a window; or train with model.mirror=false"
            )
        return self

    @model_validator(mode="after")
    def _passes(self) -> Config:
        passes = len(self.diffusion.test_timesteps) * self.infer.draws
        if passes > 1000:
            raise ValueError(f"{passes} passes (diffusion.test_timesteps x infer.draws) exceed 1000; use fewer draws")
        if self.score.mahalanobis and passes == len(self.infer.orientations) == 1:
            raise ValueError(
                "score.mahalanobis compares passes, and there is only one: ask for several infer.draws, "
                "diffusion.test_timesteps or infer.orientations, or set score.mahalanobis=0"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.model.input_skip and self.diffusion.objective != "x0":
            raise ValueError(f"model.input_skip goes with objective x0, not {self.diffusion.objective!r}")
        if self.model.gate and not self.model.input_skip:
            raise ValueError("model.gate goes with model.input_skip: it gates the change of the input")
        if self.heads.enabled and self.data.channels:
            raise ValueError("heads.enabled draws one contrast per slice: leave data.channels empty")
        for name in ("outside_weight", "lesion_weight"):
            if getattr(self.train, name) and self.diffusion.loss == "simple":
                raise ValueError(f"train.{name} goes with diffusion.loss x0_l1 or x0_l2, not 'simple'")
        factor = self.model.patch * 2 ** (len(self.model.channels) - 1)
        named = {"size": self.data.size} | ({"heads.slices": self.shape[:1]} if len(self.shape) == 3 else {})
        for name, side in ((name, side) for name, sides in named.items() for side in sides):
            if side % factor or side % self.partition.cell:
                raise ValueError(
                    f"{name} {side} must be a multiple of {factor} (patch and U-Net levels) "
                    f"and of cell = {self.partition.cell}"
                )
            if self.partition.window > side:
                raise ValueError(f"window {self.partition.window} is larger than {name} {side}")
        return self
