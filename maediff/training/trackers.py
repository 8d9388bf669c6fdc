"""Reports of a training to TensorBoard or Weights & Biases, through accelerate's trackers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator

from maediff.config import Config
from maediff.errors import ConfigError
from maediff.extras import install_hint

_PROJECT = {"tensorboard": "tensorboard", "wandb": "maediff"}
"""Name under which a tracker keeps a run: TensorBoard's folder inside the run folder, or the project on W&B."""
_IMAGES = {"tensorboard": {"dataformats": "NHWC"}}


def check_tracker(name: str) -> None:
    """Check that the package of `train.report_to` is installed.

    Raises:
        ConfigError: It is not.
    """
    if name != "none" and find_spec(name) is None:
        raise ConfigError(f"train.report_to={name} needs a package that is not installed: {install_hint(name)}")


class Trackers:
    """Report values and pictures of a run to the tracker that `train.report_to` names; the main process does so.

    Args:
        accelerator: Made with `log_with` of the same name.
        config: Configuration of the run, which W&B shows.
        run_dir: Both trackers write below it; W&B also sends, unless `WANDB_MODE=offline` is set.
    """

    def __init__(self, accelerator: Accelerator, config: Config, run_dir: Path) -> None:
        self.accelerator = accelerator
        name = config.train.report_to
        if name != "none":
            facts = {"dir": str(run_dir), "name": run_dir.name, "config": config.model_dump(mode="json")}
            accelerator.init_trackers(_PROJECT[name], init_kwargs={"wandb": facts})

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self.accelerator.trackers:  # end_training() would also leave the other processes
            tracker.finish()

    def log(self, step: int, loss: float, val_loss: float | None, lr: float) -> None:
        """Report the losses and the learning rate of a step."""
        values = {"loss": loss, "lr": lr}
        self.accelerator.log(values if val_loss is None else {**values, "val_loss": val_loss}, step=step)

    def show(self, step: int, picture: npt.NDArray[np.uint8]) -> None:
        """Report a grey picture (H, W)."""
        for tracker in self.accelerator.trackers:
            image = picture[None, :, :, None].repeat(3, -1)
            tracker.log_images({"validation": image}, step=step, **_IMAGES.get(tracker.name, {}))
