import numpy as np
import pytest

from tests.support import plans
from tests.support.plans import DAY, HOUR, MINUTE, Wanted, WantedOfOthers
from unskew.features.warming import is_warming

T = 1_500_000_000 * plans.SECOND // DAY * DAY + 90 * MINUTE
WINDOWS = [
    Wanted("sliding", "count", plans.sliding(DAY, HOUR)),
    Wanted("running", "count", plans.tumbling(HOUR)),
    Wanted("whole", "count", plans.closed(HOUR)),
    Wanted("today", "count", plans.calendar("day")),
    Wanted("ever", "count", plans.lifetime()),
    Wanted("visit", "count", plans.session(20 * MINUTE, MINUTE)),
]
DERIVED = (WantedOfOthers("both", "sliding + running"), WantedOfOthers("young", "running + ever"))
# At 01:30 a window must have been watched from these instants on.
EDGES = {
    "sliding": T - 30 * MINUTE - DAY,
    "running": T - 30 * MINUTE,
    "whole": T - 90 * MINUTE,
    "today": T - 90 * MINUTE,
    "ever": T,
    "visit": T - 20 * MINUTE,
    "both": T - 30 * MINUTE - DAY,
    "young": T - 30 * MINUTE,
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize(("gap_us", "hop_us"), [(0, 0), (HOUR, 5 * MINUTE)], ids=["events", "sessions"])
def test_a_value_is_warming_until_its_earliest_window_was_watched_whole(name, gap_us, hop_us):
    sessions = plans.sessions(gap_us, hop_us) if gap_us else None
    view = plans.view(*WINDOWS, derived=DERIVED, sessions=sessions).published
    edge = EDGES[name] - gap_us - hop_us

    warming = is_warming(view, [view.feature(name)], np.array([T, T]), np.array([edge, edge + 1]))

    assert warming.tolist() == [False, True]


def test_of_several_features_the_earliest_window_counts():
    view = plans.view(*WINDOWS).published
    asked = [view.feature("running"), view.feature("sliding")]

    assert is_warming(view, asked, np.array([T]), EDGES["sliding"] + 1).tolist() == [True]
    assert is_warming(view, asked[:1], np.array([T]), EDGES["sliding"] + 1).tolist() == [False]
