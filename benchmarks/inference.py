"""How fast inference is: our engine against the way pDDPM runs its network, and a whole scan from file to file.

python -m benchmarks.inference [--device cpu] [--recommended PRESET] [--json FILE]

The pDDPM way is the harness's own network of its configuration (`paper`) in float32, memory laid out as channels first,
one window after another, and background included: every window of every slice of the volume. Ours is the engine of
`maediff infer`. `speedup_same_network` compares a slice of the volume in the same network and windows;
`speedup_recommended` compares with the preset recommended for CPUs. `seconds_per_slice` is that of the recommended
preset, as are `seconds_per_volume` and `peak_rss_mib`, measured in a process of its own that does what `maediff infer`
does on a 182 x 218 x 182 scan of 1 mm, native space in to native space out. `share_of_ceiling` is the paper network's
share of the measured matrix product in the engine's precision. Windows of the slow network are sampled, not computed
for the whole volume; both sides of each ratio are timed in turns, so that other programs disturb both alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._common import ROOT, add_common, run, say, table
from benchmarks._speed import load, matmul_flops, precision, random_predictor, write_scan
from maediff.config import load_config
from maediff.hardware import resolve_device
from maediff.inference.cost import synchronize, time_batch, window_flops, window_inputs
from maediff.inference.memory import choose_batch, window_bytes
from maediff.inference.predictor import Predictor
from maediff.store import save_model

_CHILD = """
import json, sys, time
from maediff import infer
from maediff.provenance import peak_rss_mib
start = time.perf_counter()
summary = infer(sys.argv[1], sys.argv[2], sys.argv[3], device=sys.argv[4], overwrite=True)
assert summary.failed == 0, summary
print(json.dumps({"process_seconds": time.perf_counter() - start, "seconds_per_volume": summary.cases[0].seconds,
                  "peak_rss_mib": peak_rss_mib()}))
"""


@torch.inference_mode()
def one_by_one(predictor: Predictor) -> float:
    """Time one window the pDDPM way, seconds: float32, channels first, alone in its batch."""
    config, device = predictor.config, predictor.device
    network = predictor.network.to(memory_format=torch.contiguous_format)
    inputs = window_inputs(network, config.data.size, config.partition.window, 1)
    synchronize(device)
    start = time.perf_counter()
    network(*inputs)
    synchronize(device)
    seconds = time.perf_counter() - start
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return seconds


def windows(predictor: Predictor, scan: Path) -> tuple[int, int, int]:
    """Count slices, all windows, and windows that are computed, of a scan on the working grid."""
    mask = torch.from_numpy(predictor.prepare(scan).prepared.mask)
    layout = predictor.reconstruct.layout(mask)
    return len(mask), len(mask) * len(layout.corners), len(layout.windows)


def seconds_per_window(predictors: dict[str, Predictor], rounds: int) -> tuple[dict[str, float], float]:
    """Time the presets' engines and the pDDPM way in turns; the fastest round of each, seconds a window."""
    found: dict[str, list[float]] = {name: [] for name in (*predictors, "pDDPM way")}
    one_by_one(predictors["paper"])
    for index in range(rounds):
        found["pDDPM way"].append(one_by_one(predictors["paper"]))
        for name, predictor in predictors.items():
            shape = predictor.config.data.size
            size = window_bytes(predictor.config, shape, bf16=predictor.reconstruct.bf16)
            batch = choose_batch(size, predictor.device)
            inputs = window_inputs(predictor.network, shape, predictor.config.partition.window, batch)
            found[name].append(time_batch(predictor.network, inputs, bf16=predictor.reconstruct.bf16))
        say(f"round {index + 1}: " + ", ".join(f"{name} {values[-1]:.4f} s" for name, values in found.items()))
    slow = min(found.pop("pDDPM way"))
    return {name: min(values) for name, values in found.items()}, slow


def bf16_difference(predictor: Predictor) -> float:
    """Mean absolute difference of the reconstructions in float32 and the engine's precision, working units."""
    side = predictor.config.data.size
    rows, columns = np.indices(side)
    image = np.sin(rows / 7) * np.cos(columns / 9) * 0.8
    slices, mask = torch.tensor(image, dtype=torch.float32)[None], torch.ones(1, *side, dtype=torch.bool)
    exact = random_predictor(predictor.config.model_copy(deep=True), predictor.device)
    exact.reconstruct.bf16 = False
    here, there = (p.reconstruct(slices, mask, (0,)).mean for p in (predictor, exact))
    return float((here - there).abs().mean())


def whole_scan(model: Path | str, scan: Path, out: Path, device: str) -> dict[str, Any]:
    """Run ``maediff infer`` on the scan in a process of its own, so that its peak of memory is its own."""
    command = [sys.executable, "-c", _CHILD, str(model), str(scan), str(out), device]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time, print and return."""
    device = resolve_device(options.device)
    predictors = {name: random_predictor(load_config(name), device) for name in ("paper", options.recommended)}
    paper, ours = predictors["paper"], predictors[options.recommended]
    with tempfile.TemporaryDirectory() as folder:
        scan = write_scan(Path(folder) / "scan.nii.gz")
        counts = {name: windows(predictor, scan) for name, predictor in predictors.items()}
        model = Path(folder) / "model"
        save_model(model, ours.network.state_dict(), ours.config, None, "# Random weights\n")
        volume = whole_scan(model, scan, Path(folder) / "out", options.device)
    fast, slow = seconds_per_window(predictors, options.rounds)
    top = matmul_flops(device, precision(paper))
    theirs = slow * counts["paper"][1] / counts["paper"][0]
    per_slice = {name: fast[name] * computed / slices for name, (slices, _, computed) in counts.items()}
    flops = {
        name: window_flops(p.network, p.config.data.size, p.config.partition.window) for name, p in predictors.items()
    }
    results = {
        "device": str(device),
        "recommended": options.recommended,
        "precision": str(precision(paper)),
        "seconds_per_slice": per_slice[options.recommended],
        "seconds_per_slice_paper": per_slice["paper"],
        "seconds_per_slice_pddpm_way": theirs,
        "speedup_same_network": theirs / per_slice["paper"],
        "speedup_recommended": theirs / per_slice[options.recommended],
        "share_of_ceiling": flops["paper"] / fast["paper"] / top,
        "share_of_ceiling_recommended": flops[options.recommended] / fast[options.recommended] / top,
        "ceiling_gflops": top / 1e9,
        "speedup_of_a_window": slow / fast["paper"],
        "windows": {name: dict(zip(("slices", "all", "computed"), c, strict=True)) for name, c in counts.items()},
        "difference_of_precision": bf16_difference(ours),
        **volume,
        **load(),
    }
    print(table(["measure", "value"], [[key, value] for key, value in results.items() if not isinstance(value, dict)]))
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser)
    parser.add_argument("--recommended", default="small", help="preset recommended for this device (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of timing; the fastest counts (%(default)s)")
    options = parser.parse_args(arguments)
    return run(lambda: measure(options), options.json)


if __name__ == "__main__":
    sys.exit(main())
