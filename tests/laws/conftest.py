"""The laws run with the smallest buffers, so that small histories fill them and make them grow."""

import pytest

from unskew.features import shard_state as shard
from unskew.features.kernel import directory


@pytest.fixture(autouse=True, scope="module")
def _smallest_buffers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard, "_MIN_ROWS", 1)
        patch.setattr(shard, "_MIN_TILES", 1)
        patch.setattr(directory, "_MIN_CAPACITY", 1)
        patch.setattr(directory, "_MIN_POOL", 1)
        yield
