from __future__ import annotations

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: threads only get in each other's way


@pytest.fixture
def cohort(tmp_path):
    """An infer output folder of five small scans (one failed) and its reference table, as files."""
    rng = np.random.default_rng(5)
    affine = np.diag([-2.0, -1.5, 3.0, 1.0])
    affine[:3, 3] = [20, 15, -10]
    shape, threshold = (16, 14, 10), 0.6
    brain = np.zeros(shape, bool)
    brain[2:-2, 2:-2, 1:-1] = True
    out = tmp_path / "out"
    out.mkdir()

    def save(path, data):
        nib.save(nib.Nifti1Image(data, affine), path)

    save(tmp_path / "brain.nii.gz", brain.astype(np.uint8))
    scans = {}
    rows = ["image,mask,label,subject,lesion"]
    table = ["case\tstatus\tscore\tanomalous_volume_ml\tseconds\tmessage"]
    for case, kind in (("a_T2w", "tumour"), ("b_T2w", "ms"), ("c_T2w", ""), ("d_T2w", "")):
        label = np.zeros(shape, bool)
        if kind:
            label[4:7, 5:8, 3:6] = True
        anomaly = np.where(brain, rng.gamma(2.0, 0.1, shape) + 0.4 * label, 0).astype(np.float32)
        scan = np.where(brain, 100 + rng.normal(0, 10, shape), 0).astype(np.float32)
        save(tmp_path / f"{case}.nii.gz", scan)
        save(tmp_path / f"{case}_lesion.nii.gz", label.astype(np.uint8))
        save(out / f"{case}_anomaly.nii.gz", anomaly)
        save(out / f"{case}_reconstruction.nii.gz", scan * 0.9)
        save(out / f"{case}_anomaly-mask.nii.gz", (anomaly > threshold).astype(np.uint8))
        score = float(anomaly.max())
        sidecar = {
            "case": case,
            "image": str(tmp_path / f"{case}.nii.gz"),
            "model_hash": "ab" * 32,
            "threshold": threshold,
            "score": score,
            "score_percentile": 0.75,
            "units": "residual",
            "notes": [],
        }
        (out / f"{case}_anomaly.json").write_text(json.dumps(sidecar))
        table.append(f"{case}\tdone\t{score}\t1.25\t2.0\t")
        rows.append(f"{case}.nii.gz,brain.nii.gz,{case + '_lesion.nii.gz' if kind else ''},{case[0]},{kind}")
        scans[case] = SimpleNamespace(map=anomaly, label=label, kind=kind)
    table.append("e_T2w\tfailed\t\t\t0.1\te_T2w.nii.gz holds <NaN>")
    (out / "cases.tsv").write_text("\n".join(table) + "\n")
    reference = tmp_path / "cases.csv"
    reference.write_text("\n".join(rows) + "\n")
    return SimpleNamespace(
        root=tmp_path, out=out, reference=reference, brain=brain, scans=scans, threshold=threshold, affine=affine
    )
