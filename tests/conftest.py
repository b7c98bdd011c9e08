"""What every test rests on: Trio, and Hypothesis with one profile for a laptop and one for the night."""

import os
import signal
from typing import Any

import pytest
import trio.testing
from hypothesis import HealthCheck, settings

_SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "ci", max_examples=50, deadline=None, derandomize=False, print_blob=True, suppress_health_check=_SLOW_IS_FINE
)
settings.register_profile(
    "night", max_examples=5000, deadline=None, derandomize=False, print_blob=True, suppress_health_check=_SLOW_IS_FINE
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# A shell that starts a command with `&` has it ignore Ctrl-C, and all that it starts inherits that:
# the tests that send one would wait for nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """Ask for it, and time passes when everybody sleeps."""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    clock = request.getfixturevalue("autojump_clock") if "autojump_clock" in request.fixturenames else None
    return ("trio", {"clock": clock}) if clock is not None else "trio"
