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
    told = rf"sheared by {degrees:g} degrees .* takes at most 0\.5.*--register none, and --no-align"
    with pytest.raises(InputError, match=rf"grid of scan is {told}"):
        itk.register(np.ones((8, 8, 8)), sheared, None, "scan")
    straight = np.diag([2.0, 2.0, 2.0, 1.0])
    channels = {"scan": (straight, sheared), "the first channel of scan": (sheared, straight)}
    for name, (first, second) in channels.items():
        target = itk.Target(np.ones((8, 8, 8)), np.ones((8, 8, 8), bool), first)
        with pytest.raises(InputError, match=rf"grid of {name} is {told}"):
            itk.register_rigid(target, np.ones((8, 8, 8)), second, "scan")
    sheared[0, 1] = 2 * np.tan(np.radians(0.3))
    itk.check_shear(sheared, "scan")
