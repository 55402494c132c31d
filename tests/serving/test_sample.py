"""A sample of what was served: every value as it was, bounded, and never in the way of a reader."""

import logging

import polars as pl
import pytest

from tests.support.typed import DEFAULTS, EMPTY, FULL, NAMES, ORDERS
from unskew.features.errors import LayoutError
from unskew.features.on_request import Wanted
from unskew.features.references import resolve
from unskew.features.versions import Versions
from unskew.serving import sample
from unskew.serving.clocks import UNKNOWN, Placed
from unskew.serving.request import How, Pipelines, Request, ViewAnswer
from unskew.serving.sample import Sampler, read_served
from unskew.sinks.redis.texts import json_of, stored

VIEW = ORDERS.published


def offered(sampler, *rows, provisional=False, as_of=7_000_001, as_json=False):
    """Offer answers of one row each."""
    asked = resolve([f"orders:{name}" for name in NAMES], Versions.of({"orders": VIEW}), full_feature_names=False)
    request = Request(Wanted(asked, None), Pipelines("unskew", ["main"]), {VIEW.id: ["h0"]}, How(as_json=as_json))
    placed = Placed.of([(UNKNOWN if as_of is None else as_of, 0, 0, provisional, 0)])
    for row in rows:
        values = [[stored(row.get(one.feature.name), one.feature.dtype)] for one in asked]
        if as_json:
            both = zip(values, asked, strict=True)
            values = [[None if value is None else json_of(value, one.feature.dtype)] for (value,), one in both]
        sampler.offer(request, [ViewAnswer(["u%201"], values, [], placed, ["present"], [True])])


@pytest.mark.parametrize("as_json", [False, True])
def test_values_of_every_type_come_back_as_they_were_served(tmp_path, monkeypatch, as_json):
    monkeypatch.setattr(sample, "EVERY_S", 0.0)
    sampler = Sampler(tmp_path)
    offered(sampler, FULL, EMPTY, {}, DEFAULTS, as_json=as_json)

    found, n_others = read_served(tmp_path, VIEW)

    assert n_others == 0
    assert [(one.view, one.key, one.as_of_us) for one in found] == [("orders@1", "u%201", 7_000_001)] * 4
    for one, row in zip(found, [FULL, EMPTY, {}, DEFAULTS], strict=True):
        for name in NAMES:
            dtype = VIEW.feature(name).dtype.polars
            came, was = (pl.Series([value], dtype=dtype).to_list() for value in (one.values[name], row.get(name)))
            assert repr(came) == repr(was)


def test_rows_that_may_still_change_are_not_sampled(tmp_path):
    offered(Sampler(tmp_path), FULL, provisional=True)
    offered(Sampler(tmp_path), FULL, as_of=None)

    assert list(tmp_path.iterdir()) == []


def test_a_sample_is_bounded_in_time_and_space(tmp_path, monkeypatch):
    present = [0.0]
    sampler = Sampler(tmp_path, now_s=lambda: present[0])
    for _ in range(50):
        offered(sampler, EMPTY)
        present[0] += 0.25
    assert len(read_served(tmp_path, VIEW)[0]) == 13
    monkeypatch.setattr(sample, "FILE_BYTES", 1)
    monkeypatch.setattr(sample, "MOST_FILES", 4)
    for _ in range(12):
        present[0] += 1
        offered(sampler, EMPTY)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damaged", ['{"view": "broken', "[1, 2]", '{"view": "orders@1"}', "7"])
def test_a_damaged_line_is_named(tmp_path, damaged):
    offered(Sampler(tmp_path), FULL)
    (path,) = tmp_path.iterdir()
    with path.open("a") as file:
        file.write(f"{damaged}\n")

    with pytest.raises(LayoutError, match=rf"{path.name}: line 2 is not one of a sample"):
        read_served(tmp_path, VIEW)


def test_a_disk_that_fails_ends_the_sample_and_not_the_read(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    sampler = Sampler(tmp_path / "file" / "sample")
    with caplog.at_level(logging.WARNING):
        offered(sampler, FULL, FULL)

    assert len(caplog.records) == 1
    assert "no longer sampled" in caplog.text


@pytest.mark.parametrize(("given", "said"), [(True, "give log="), (7, "sample is a folder"), ("s3://b/x", "address")])
def test_a_sample_that_cannot_be_written_is_refused(given, said):
    from unskew import FeatureStore, RequestError

    with pytest.raises(RequestError, match=said):
        FeatureStore(redis_url="redis://127.0.0.1:1/0", sample=given)
