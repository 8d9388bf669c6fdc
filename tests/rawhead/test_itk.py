"""What SimpleITK can and cannot represent."""

from __future__ import annotations

import numpy as np
import pytest

from maediff.errors import InputError
from maediff.rawhead import itk


@pytest.mark.parametrize("degrees", [1.0, 10.0])
def test_a_sheared_grid_is_not_registered_since_its_shear_would_be_lost(degrees):
    sheared = np.diag([2.0, 2.0, 2.0, 1.0])
    sheared[0, 1] = 2 * np.tan(np.radians(degrees))
    with pytest.raises(InputError, match=r"sheared.*--register none"):
        itk.register(np.ones((8, 8, 8)), sheared, None, "scan")
    sheared[0, 1] = 2 * np.tan(np.radians(0.3))
    itk.check_shear(sheared, "scan")
