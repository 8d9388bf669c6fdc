"""Settings of every test, the doctests of the library included."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.browser"]

# Times depend on what else runs on the machine; they say nothing about a law.
settings.register_profile("maediff", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
settings.load_profile("maediff")
