"""The training loop: AdamW with warm-up and cosine decay, averaged weights, validation, exact resume.

Hugging Face accelerate places the model, chooses precision, accumulates gradients and joins processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader

from maediff.config import Config, config_hash
from maediff.data.slices import SliceSet
from maediff.errors import MAEDiffError, ModelError, TrainingInterrupted
from maediff.hardware import channels_last, kept_random_state, mixed_precision, usual_defaults
from maediff.heads.headset import HeadSet
from maediff.methods.base import Method
from maediff.methods.build import build_network
from maediff.training import processes
from maediff.training.checkpoint import TrainState, Weights, checkpoint_path, load_state, save_state
from maediff.training.losslog import LossLog
from maediff.training.pace import Pace, Stopwatch
from maediff.training.pictures import Pictures
from maediff.training.shares import Shares, share_count
from maediff.training.stream import Sample, Span, sample_stream
from maediff.training.trackers import Trackers, check_tracker

log = logging.getLogger(__name__)
_VALIDATION_SAMPLES = 64


@dataclass(frozen=True)
class Progress:
    """Progress of a run; `val_loss` is None between validations."""

    step: int
    max_steps: int
    loss: float
    val_loss: float | None
    images_per_second: float
    eta_seconds: float


@dataclass(frozen=True)
class FitResult:
    """Best averaged weights of a run and how it went; `pace` is None if no steps were left."""

    weights: Weights
    best_loss: float
    steps: int
    pace: Pace | None


class Losses(nn.Module):
    """A method whose forward pass computes its losses, as the wrapper of distributed training needs it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.network = build_network(config)

    def forward(self, batch: Sample) -> tuple[Tensor, Tensor]:
        """Compute the loss and the auxiliary loss, see :meth:`maediff.methods.base.Method.losses`."""
        return self.network.losses(batch)


def learning_rate(step: int, config: Config) -> float:
    """Return the learning rate: linear warm-up, then half a cosine down to 1 % of `train.lr` at `train.max_steps`."""
    train = config.train
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    share = (step - train.warmup_steps) / max(1, train.max_steps - train.warmup_steps)
    return train.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def fit(
    config: Config,
    training: SliceSet | HeadSet,
    validation: SliceSet | HeadSet,
    run_dir: Path,
    *,
    device: torch.device,
    resume: bool = False,
    initial: Weights | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Train the network of `config.method`.

    Args:
        config: Configuration.
        training: Healthy slices to learn from.
        validation: Healthy slices of other subjects, which choose the best averaged weights.
        run_dir: Gets `log.csv`, `checkpoints/last.pt` and `pictures/`.
        device: Where to compute (one process); with several processes, each places itself.
        resume: Continue from `checkpoints/last.pt` if there is one.
        initial: Weights to start from, of the same network; random ones if None.
        on_progress: Called at the first step and at every logged one.

    Returns:
        Best averaged weights.

    Raises:
        TrainingInterrupted: On SIGINT or SIGTERM, once the state is saved.
        ModelError: The checkpoint cannot be resumed.
        MAEDiffError: The loss is not finite.
    """
    with usual_defaults(), kept_random_state(device):
        run = _Run(config, run_dir, device, resume, _data_hash(training, validation))
        if initial is not None and run.state.step == 0:
            run.start_from(initial)
        return run.go(training, validation, on_progress)


def with_other_side(weights: Weights, wanted: Weights, config: Config) -> dict[str, Tensor]:
    """Let a network that did not see the other hemisphere start as one that does: its new inputs have weights 0.

    Args:
        weights: Of the trained network.
        wanted: Of a network of `config`, for their shapes.
        config: With or without `model.mirror`.

    Returns:
        Weights in full precision; those of the same shape, and all without `model.mirror`, are as they were.
    """
    pixels = config.model.patch**2
    first, new = pixels * (config.reconstructed_channels + config.neighbour_channels), pixels * config.mirror_channels
    full = {name: value.float() for name, value in weights.items()}
    for name, value in full.items():
        narrow = new and name in wanted and value.ndim > 1 and value.shape[1] + new == wanted[name].shape[1]
        if narrow and value.shape[1] >= first:
            full[name] = torch.cat([value[:, :first], torch.zeros_like(wanted[name][:, :new]), value[:, first:]], 1)
    return full


class _Run:
    """One training run: its state, its files and its steps."""

    def __init__(self, config: Config, run_dir: Path, device: torch.device, resume: bool, data_hash: str) -> None:
        self.config = config
        self.run_dir = run_dir
        self.checkpoint = checkpoint_path(run_dir)
        torch.manual_seed(config.train.seed)
        losses = Losses(config)
        every = losses.network.uses_every_parameter
        losses = losses.to(memory_format=channels_last(len(config.shape)))  # type: ignore[call-overload]
        self.accelerator = _accelerator(config, device, run_dir, every_parameter=every)
        fused = self.accelerator.device.type in {"cpu", "cuda"}
        optimizer = torch.optim.AdamW(
            losses.parameters(), config.train.lr, weight_decay=config.train.weight_decay, fused=fused
        )
        self.losses, self.optimizer = self.accelerator.prepare(losses, optimizer)
        self.network: Method = self.accelerator.unwrap_model(self.losses).network
        self.ema = _copy(self.network)
        self.state = TrainState(0, {}, {}, {}, config_hash(config), data_hash)
        if resume and self.checkpoint.is_file():
            self._restore()
        self.batch = config.train.batch_size * self.accelerator.num_processes * config.train.accumulate
        self.log = LossLog(run_dir / "log.csv", self.state.step, self.accelerator.is_main_process)

    def start_from(self, weights: Weights) -> None:
        """Load the weights of a trained network, which may have been trained without the other hemisphere.

        Raises:
            ModelError: They belong to another network.
        """
        try:
            self.network.load_state_dict(with_other_side(weights, self.network.state_dict(), self.config))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ModelError(
                f"train.init = {self.config.train.init}: its weights fit another network ({reason}); "
                "use the same model section, partition.cell, data.channels and data.neighbours, or leave train.init "
                "empty"
            ) from error
        self.ema = _copy(self.network)

    def go(
        self,
        training: SliceSet | HeadSet,
        validation: SliceSet | HeadSet,
        on_progress: Callable[[Progress], None] | None,
    ) -> FitResult:
        """Train to the last step."""
        train = self.config.train
        start_step, watch = self.state.step, Stopwatch()
        pictures = self._pictures(validation)
        trackers = Trackers(self.accelerator, self.config, self.run_dir)
        with _signals() as stop, self.log, trackers, self._shares() as shares:
            for batches in watch.watch(self._batches(training)):
                loss, mae_loss, norm, stopped = self._step(batches, bool(stop), shares)
                step = self.state.step = self.state.step + 1
                due = step % train.val_every == 0 or step == train.max_steps
                val_loss = self._validate(validation, pictures, trackers) if due else None
                logged = step % train.log_every == 0 or val_loss is not None
                speed = (step - start_step) * self.batch / max(watch.seconds, 1e-9)
                left = (train.max_steps - step) * self.batch / speed
                if on_progress and self.accelerator.is_main_process and (logged or step == start_step + 1):
                    on_progress(Progress(step, train.max_steps, float(loss), val_loss, speed, left))
                if logged:
                    self.log.write(step, float(loss), float(mae_loss), val_loss, self._lr(), float(norm), speed)
                    trackers.log(step, float(loss), val_loss, self._lr())
                stopped = stopped or (bool(stop) and not processes.several())
                if step % train.checkpoint_every == 0 or step == train.max_steps or stopped:
                    self._save()
                if stopped and step < train.max_steps:
                    raise TrainingInterrupted(f"stopped by {_first(stop)} after step {step}; continue with --resume")
        if not self.state.best:
            raise MAEDiffError("the validation loss was never finite; lower train.lr or set train.precision=fp32")
        pace = self._pace(watch, self.state.step - start_step, training)
        return FitResult(self.state.best, self.state.best_loss, self.state.step, pace)

    def _pace(self, watch: Stopwatch, steps: int, training: SliceSet | HeadSet) -> Pace | None:
        """Measure the speed of this run's steps, and log it."""
        if not steps:
            return None

        def step() -> None:
            sample = sample_stream(training, self.config, 1, augmented=False)[0]
            batch = {name: value[None].to(self.accelerator.device) for name, value in sample.items()}
            loss, mae_loss = self.accelerator.unwrap_model(self.losses)(batch)
            (loss + self.config.model.mae_loss_weight * mae_loss).backward()

        half = self.accelerator.mixed_precision != "no"
        count, device = self.accelerator.num_processes, self.accelerator.device
        pace = watch.pace(steps * self.batch, count, device, step, half=half)
        if self.accelerator.is_main_process:
            log.info("trained %d steps: %s", steps, pace)
        return pace

    def _batches(self, training: SliceSet | HeadSet) -> Iterator[list[Sample]]:
        """Yield the micro-batches of each step that is left to do; samples are numbered over the whole run."""
        train = self.config.train
        stream = sample_stream(training, self.config, train.max_steps * self.batch, augmented=True)
        span = Span(self.state.step * self.batch, len(stream))
        loader = DataLoader(
            stream, train.batch_size, sampler=span, num_workers=train.workers, worker_init_fn=_leave_signals
        )
        loader = self.accelerator.prepare_data_loader(loader)
        micro: list[Sample] = []
        for batch in loader:
            micro.append(batch)
            if len(micro) == train.accumulate:
                yield micro
                micro = []

    def _shares(self) -> contextlib.AbstractContextManager[Shares | None]:
        """Divide batches among the threads of a CPU; None on a GPU, and in one of several processes."""
        count = share_count(self.network, self.accelerator.device, self.config.train.batch_size)
        if count == 1 or self.accelerator.num_processes > 1:
            return contextlib.nullcontext()
        return Shares(self.losses, list(self.losses.parameters()), count)

    def _step(self, batches: list[Sample], stop: bool, shares: Shares | None) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Take a step; return both losses, the gradient norm, and whether any process was asked to stop before it."""
        train = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        self.losses.train()
        total = torch.tensor([0.0, 0.0, float(stop)], device=self.accelerator.device)
        for index, batch in enumerate(batches):
            last = index + 1 == len(batches)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.losses):
                loss, mae_loss = self._backward(batch, len(batches), shares)
            total[:2] += torch.stack([loss, mae_loss]) / len(batches)
        norm = self.accelerator.clip_grad_norm_(self.losses.parameters(), train.grad_clip)
        total = self.accelerator.reduce(total, "mean")
        if not bool(torch.isfinite(total).all()):
            raise MAEDiffError(
                f"the loss is {total[:2].tolist()} at step {self.state.step + 1}; lower train.lr (now {train.lr:g}) "
                "or set train.precision=fp32, and resume from the last checkpoint"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._average()
        return total[0], total[1], norm, bool(total[2] > 0)

    def _backward(self, batch: Sample, count: int, shares: Shares | None) -> tuple[Tensor, Tensor]:
        """Add the gradient of one of `count` micro-batches; return its losses."""
        weight = self.config.model.mae_loss_weight
        if shares is not None:
            return shares.backward(batch, weight=1 / count, auxiliary_weight=weight)
        loss, mae_loss = self.losses(batch)
        self.accelerator.backward((loss + weight * mae_loss) / count)
        return loss.detach(), mae_loss.detach()

    def _lr(self) -> float:
        return learning_rate(self.state.step, self.config)

    @torch.no_grad()
    def _average(self) -> None:
        """Update the averaged weights; the decay rises with the step, so that early weights fade quickly."""
        step = self.state.step + 1
        decay = min(self.config.train.ema_decay, (1 + step) / (10 + step))
        for name, value in self.network.state_dict().items():
            self.ema[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def _validate(self, validation: SliceSet | HeadSet, pictures: Pictures | None, trackers: Trackers) -> float:
        """Compute the loss of the averaged weights on fixed samples, draw what they reconstruct, and keep the best."""
        here = _copy(self.network)
        self.network.load_state_dict(self.ema)
        self.losses.eval()
        stream = sample_stream(validation, self.config, _VALIDATION_SAMPLES, augmented=False)
        module = self.accelerator.unwrap_model(self.losses)
        losses = []
        for batch in DataLoader(stream, min(self.config.train.batch_size, _VALIDATION_SAMPLES)):
            moved = {name: value.to(self.accelerator.device) for name, value in batch.items()}
            with self.accelerator.autocast():
                losses.append(float(module(moved)[0]) * len(moved["t"]))
        if pictures is not None:
            trackers.show(self.state.step, pictures.draw(self.network, self.accelerator.device, self.state.step))
        self.network.load_state_dict(here)
        loss = sum(losses) / _VALIDATION_SAMPLES
        if loss < self.state.best_loss:
            self.state.best_loss = loss
            self.state.best = {name: value.detach().cpu().clone() for name, value in self.ema.items()}
        return loss

    def _pictures(self, validation: SliceSet | HeadSet) -> Pictures | None:
        """Choose the slices to draw at each validation; None in all processes but the main one."""
        if not (self.config.train.pictures and self.accelerator.is_main_process):
            return None
        return Pictures(validation, self.config, self.run_dir / "pictures", self.state.step)

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        self.state.model = self.network.state_dict()
        self.state.ema = self.ema
        self.state.optimizer = self.optimizer.state_dict()
        if self.accelerator.scaler is not None:  # fp16
            self.state.scaler = self.accelerator.scaler.state_dict()
        save_state(self.checkpoint, self.state)

    def _restore(self) -> None:
        self.state = load_state(self.checkpoint, self.state.config_hash, self.state.data_hash)
        self.network.load_state_dict(self.state.model)
        self.ema = {name: value.to(self.accelerator.device) for name, value in self.state.ema.items()}
        self.optimizer.load_state_dict(self.state.optimizer)
        if self.accelerator.scaler is not None and self.state.scaler:
            self.accelerator.scaler.load_state_dict(self.state.scaler)
        log.info("resumed after step %d", self.state.step)


def _data_hash(*parts: SliceSet | HeadSet) -> str:
    """Hash whose slices, and how many of each, are learned from and validated on."""
    return hashlib.sha256(json.dumps([part.subjects for part in parts]).encode()).hexdigest()


def _accelerator(config: Config, device: torch.device, run_dir: Path, *, every_parameter: bool) -> Accelerator:
    check_tracker(config.train.report_to)
    precision = mixed_precision(device, config.train.precision)
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in {"no", precision}:
        log.warning("precision %s of accelerate launch is not used; set train.precision=%s instead", asked, asked)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        AcceleratorState._reset_state(reset_partial_state=True)  # else a process keeps its first run's precision
    with processes.alone_unless_launched():
        return Accelerator(
            mixed_precision=precision,
            cpu=device.type == "cpu",
            log_with=None if config.train.report_to == "none" else config.train.report_to,
            project_dir=str(run_dir),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=not every_parameter)],
        )


def _first(stop: list[str]) -> str:
    """Name the signal that stopped this process; another process may have received it instead."""
    return stop[0] if stop else "a signal to another process"


def _copy(network: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _leave_signals(_worker: int) -> None:
    """Let only the main process answer SIGTERM and SIGINT, which schedulers and terminals send to the whole group."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _signals() -> Iterator[list[str]]:
    """Note SIGINT and SIGTERM in a list instead of dying; outside the main thread, leave signals alone."""
    caught: list[str] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(signal.Signals(number).name)

    previous: dict[int, Any] = {}
    try:
        for wanted in (signal.SIGINT, signal.SIGTERM):
            previous[wanted] = signal.signal(wanted, note)
    except ValueError:
        pass
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
