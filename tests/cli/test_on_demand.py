"""On-demand features at the command line: check, describe, get, train, audit, plan and apply."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from tests.support.on_demand import EPOCH, oracle, some_events, some_labels, write
from unskew.cli import main
from unskew.features.time import format_instant

EVENTS = some_events(3)
DEFINITIONS = """
from tests.support.on_demand import CHECKOUT, LOGINS, MODEL, PURCHASES, PURCHASES_2, STORES
"""


@pytest.fixture
def run(tmp_path: Path, redis_url: str, redis_client: Any) -> Any:
    assert redis_client.ping()
    write(tmp_path, redis_url, EVENTS)
    (tmp_path / "views.py").write_text(DEFINITIONS)
    environment = {
        "UNSKEW_REDIS_URL": redis_url,
        "UNSKEW_DEFINITIONS": str(tmp_path / "views.py"),
        "UNSKEW_LOG": str(tmp_path / "log"),
        "UNSKEW_ARCHIVE": str(tmp_path / "archive"),
    }

    def invoked(*arguments: str) -> Result:
        return CliRunner(env=environment).invoke(main, arguments)

    return invoked


def test_get_computes_from_inputs_and_the_views_that_are_read(run):
    label = {
        "user_id": "anna", "chain": "north", "store_id": 1, "lat": 52.1, "lon": 13.0, "query": "a=b ä", "amount": 10.0,
        "event_timestamp": EPOCH.replace(year=2018),
    }  # fmt: skip
    keys = ("user_id=anna", "store_id=1", "chain=north")
    inputs = [f"--input={name}={label[name]}" for name in ("lat", "lon", "query", "amount")]

    shown = run("get", "checkout", *keys, *inputs, "--now", "2018-01-01T00:00:00Z", "--json")
    one = run("get", "checkout@1:query_length", "--input", "query=")
    table = run("get", "checkout", *keys, *inputs)

    assert shown.exit_code == 0, shown.output
    found, expected = json.loads(shown.output), oracle(EVENTS, label)
    assert found["features"].pop("distance_km") == pytest.approx(expected.pop("distance_km"))
    assert found["features"] == {**expected, "last_login": format_instant(expected["last_login"])}
    assert (found["on_demand"], found["now"]) == ("checkout@1", "2018-01-01T00:00:00.000000Z")
    assert set(found["views"]) == {"user_logins", "store", "user_purchases", "user_purchases@2"}
    assert found["views"]["store"] | {"as_of": 0} == {"as_of": 0, "status": "present", "provisional": False}
    assert "query_length" in one.output
    for text in ("checkout@1", "now 20", "lat 52.1", "user_logins as of 2017-07-", "seconds_between", "distance_km"):
        assert text in table.output


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("checkout", "anna"), "checkout takes the keys user_id, chain, store_id; give user_id=VALUE"),
        (("checkout:query_length", "anna", "--input", "query=a"), "checkout:query_length reads no view, so it takes no KEY; 1 given"),
        (("checkout:query_length",), "checkout takes the input 'query' (string), which is not among the given columns"),
        (("checkout:share", "--input", "amount=x"), "--input amount: 'x' is not of type float64"),
        (("checkout:share", "--input", "amont=1"), "--input amont: checkout takes no such input; did you mean 'amount'?"),
        (("checkout:share", "--input", "amount"), "--input amount: write NAME=VALUE"),
        (("checkout:share", "--input", "amount=1", "--now", "noon"), "now: 'noon' is not an instant"),
        (("checkout:shore", "--input", "amount=1"), "checkout has no feature 'shore'; did you mean 'share'?"),
        (("checkout@2:share", "--input", "amount=1"), "on-demand 'checkout' has no version '2'; there is checkout@1"),
        (("store", "north", "1", "--input", "lat=1"), "store is neither the name of on-demand features"),
        (("store",), "Missing argument 'KEY...'"),
    ],
)  # fmt: skip
def test_get_says_what_is_wrong(run, arguments, fault):
    shown = run("get", *arguments)

    assert shown.exit_code != 0
    assert fault in " ".join(shown.output.split())
    assert "Traceback" not in shown.output


def test_check_describe_and_audit_name_them(run):
    checked, described, audited = run("check"), run("describe"), run("audit", "--samples", "20")

    assert "ok  checkout@1        8 features   on demand  " in checked.output
    for text in ("on demand, from lat float64, lon float64", "char_length(query)", "tags team=checkout"):
        assert text in described.output
    assert audited.exit_code == 0, audited.output
    assert "on demand: checkout@1: no value is stored, so none is compared" in audited.output
    assert json.loads(run("audit", "--samples", "20", "--json").output)["on_demand"] == ["checkout@1"]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_train_takes_inputs_from_columns_of_the_labels_and_reproduces(run, tmp_path, suffix):
    labels = pl.DataFrame(some_labels(4, 60)).with_columns(pl.col("lat").fill_nan(None))
    path, output = tmp_path / f"labels.{suffix}", tmp_path / "train.parquet"
    if suffix == "csv":
        # A search for digits is a text all the same, and a CSV file has no empty texts.
        labels = labels.with_columns(query=pl.when(pl.col("query") == "").then(pl.lit("007")).otherwise("query"))
        labels.write_csv(path)
    else:
        labels.write_parquet(path)

    trained = run("train", str(path), "-f", "checkout", "-f", "store:lat", "--full-feature-names", "-o", str(output))
    again = run(
        "train", str(path), "--reproduce", str(tmp_path / "train.manifest.json"), "-o", str(tmp_path / "b.parquet")
    )

    assert trained.exit_code == 0, trained.output
    assert again.exit_code == 0, again.output
    found = pl.read_parquet(output)
    assert found.equals(pl.read_parquet(tmp_path / "b.parquet"))
    for row, label in zip(found.to_dicts(), labels.to_dicts(), strict=True):
        expected = oracle(EVENTS, label)
        assert row["checkout__query_length"] == expected["query_length"]
        assert row["checkout__amount_to_mean"] == expected["amount_to_mean"]
        assert row["checkout__since_login_s"] == expected["since_login_s"]


def test_a_service_trains_and_serves_what_it_pinned(run, tmp_path):
    path = tmp_path / "labels.parquet"
    pl.DataFrame(some_labels(4, 20)).write_parquet(path)

    trained = run("train", str(path), "--service", "checkout_model", "-o", str(tmp_path / "train.parquet"))

    assert trained.exit_code == 0, trained.output
    columns = pl.read_parquet(tmp_path / "train.parquet").columns[-3:]
    assert columns == ["distance_km", "mean_amount_30d", "amount_to_mean"]


def test_plan_and_apply_record_them_and_say_what_changes(run, tmp_path):
    record = ("--registry", str(tmp_path / "registry"))
    first = run("plan", *record)
    applied = run("apply", *record, "--yes")
    same = run("plan", *record)
    changed = {}
    for version in (1, 2):
        (tmp_path / "views.py").write_text(
            f"{DEFINITIONS}import msgspec\nfrom unskew import Derived\nCHECKOUT = msgspec.structs.replace(CHECKOUT, version={version}, "
            "features=[*CHECKOUT.features, Derived('longitude', 'lon')])\n"
        )
        changed[version] = run("plan", *record)

    assert "+ on-demand checkout" in first.output
    assert applied.exit_code == 0, applied.output
    assert same.exit_code == 0, same.output
    assert changed[1].exit_code == 1
    assert (
        "on-demand checkout@1 would compute something else under the same version; give it version 2"
        in changed[1].output
    )
    assert changed[2].exit_code == 2, changed[2].output
    assert "~ on-demand checkout" in changed[2].output
    assert "longitude" in changed[2].output
    revision = json.loads(run("registry", "show", *record, "--json").output)
    assert "checkout" in json.dumps(revision)
