"""What all tests share."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from fxprune import quiet, stopwatch


@pytest.fixture(scope="session", autouse=True)
def little_measuring() -> Iterator[None]:
    """Tests ask how latencies are used, not how exact they are: measure less, and hardly wait."""
    quick = replace(stopwatch.NETWORK_TIMING, max_seconds=0.4, warm_up=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "NETWORK_TIMING", quick)
        patch.setattr(stopwatch, "MOST_TIMES", 6)
        patch.setattr(stopwatch, "LEAST_TURNS", 2)
        patch.setattr(quiet, "RATION", 0.05)
        yield
