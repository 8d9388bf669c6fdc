"""Every alias of an array type, named by what the array holds."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
ByteArray: TypeAlias = npt.NDArray[np.uint8]
FloatArray: TypeAlias = npt.NDArray[np.floating]
"""Floats of any precision, as arguments are."""
FloatMap: TypeAlias = npt.NDArray[np.float32]
"""Single precision, as maps and reconstructions are."""
DoubleArray: TypeAlias = npt.NDArray[np.float64]
"""Double precision, as statistics and affines are."""
