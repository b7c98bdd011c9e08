"""One zygote for all tests here; they need strace, and say so where it is missing."""

from collections.abc import Iterator

import pytest

from tests.faults.stage import Stage
from tests.faults.tracer import CAN_TRACE


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    if not CAN_TRACE:
        pytest.skip("needs strace")
    one = Stage()
    yield one
    one.close()
