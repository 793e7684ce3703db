"""What all tests share."""

from collections.abc import Iterator

import pytest

from fxprune import quiet, stopwatch, turns


@pytest.fixture(scope="session", autouse=True)
def little_measuring() -> Iterator[None]:
    """Tests ask how latencies are used, not how exact they are: measure less, and hardly wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "MOST_SECONDS", 0.5)
        patch.setattr(turns, "LEAST_TURNS", 2)
        patch.setattr(stopwatch, "LOOK_SECONDS", 0.05)
        patch.setattr(stopwatch, "LEAST_LOOKS", 2)
        patch.setattr(quiet, "RATION", 0.05)
        yield
