"""`unskew export feast`: what it writes, and what it says of that; that Feast reads it is tested with Feast."""

import ast
from pathlib import Path
from typing import Any

import msgspec
import yaml
from click.testing import CliRunner, Result

from tests.support.plans import DAY, HOUR, Wanted, WantedOfOthers, republished, sliding, view
from unskew.cli import main
from unskew.features.plan import ViewPlan
from unskew.sinks.tables.layout import view_root
from unskew.sinks.tables.parquet import record_shards

WINDOW = sliding(DAY, HOUR)


def a_view(name: str, *features: str, version: int = 1, **more: Any) -> ViewPlan:
    made = view(*(Wanted(feature, "sum", WINDOW, "x") for feature in features), name=name, **more)
    return republished(made, version=version)


def logged(root: Path, *views: ViewPlan) -> Path:
    for one in views:
        record_shards(view_root(root, one.name, one.version), ["h0"], view=one)
    return root


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", "feast", *map(str, arguments)])


def calls(text: str) -> dict[str, dict[str, Any]]:
    """The variables of a module that hold what a function made, with the arguments that are literals."""
    found: dict[str, dict[str, Any]] = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
            (target,) = statement.targets
            assert isinstance(target, ast.Name)
            found[target.id] = {}
            for keyword in statement.value.keywords:
                assert keyword.arg is not None
                try:
                    found[target.id][keyword.arg] = ast.literal_eval(keyword.value)
                except ValueError:
                    found[target.id][keyword.arg] = ast.unparse(keyword.value)
    return found


def test_a_repository_is_written_from_what_the_log_says_of_itself(tmp_path):
    derived = (WantedOfOthers("inverse", "1 / spend", default=-0.5),)
    log = logged(tmp_path / "log", a_view("orders", "spend", derived=derived))

    done = export(tmp_path / "new" / "repo", "--log", log, "--server", "https://features:8443/", "--project", "shop")

    written = tmp_path / "new" / "repo"
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{written / name} is written" for name in ("feature_store.yaml", "unskew_features.py")
    ]
    configured = yaml.safe_load((written / "feature_store.yaml").read_text())
    assert configured["project"] == "shop"
    assert configured["online_store"] == {"type": "remote", "path": "https://features:8443"}
    assert configured["offline_store"] == {"type": "duckdb"}
    found = calls((written / "unskew_features.py").read_text("utf-8"))
    assert list(found) == ["entity_entity", "orders_view"]
    assert found["entity_entity"] == {"name": "entity", "join_keys": ["user"], "value_type": "ValueType.STRING"}
    orders = found["orders_view"]
    assert orders["entities"] == "[entity_entity]"
    assert f"path='{log}/orders/v1/day=*/*.parquet'" in orders["source"]
    assert "timestamp_field='available_at'" in orders["source"]
    assert "'null_means': '0.0'" in orders["schema"]
    assert "'null_means': '-0.5'" in orders["schema"]


def test_what_is_there_is_replaced_only_by_force(tmp_path):
    log = logged(tmp_path / "log", a_view("orders", "spend"))
    mine = tmp_path / "repo" / "feature_store.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")

    refused = export(mine.parent, "--log", log)

    assert refused.exit_code == 1
    assert f"error: {mine}: already there; give another DIR, or --force to replace it" in refused.stderr
    assert [path.name for path in mine.parent.iterdir()] == ["feature_store.yaml"]
    assert mine.read_text() == "mine"
    assert export(mine.parent, "--log", log, "--force").exit_code == 0
    assert "project: unskew" in mine.read_text()


def test_what_feast_will_not_read_is_said(tmp_path):
    views = [a_view("orders", "spend", version=1), a_view("orders", "spend", version=2), a_view("stays", "x_y")]
    definitions = tmp_path / "definitions.py"
    definitions.write_text("""if True:
        from unskew import Entity, Feature, FeatureView, Service, Sliding, Stream, agg
        user = Entity("user", key="user")
        clicks = Stream("clicks", topic="clicks", schema={"type": "record", "name": "c", "fields": [
            {"name": "user", "type": "string"}, {"name": "x", "type": "double"},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        ]}, event_time="at")
        def view(name, version, feature, **more):
            made = Feature(feature, agg.sum("x"), Sliding("1d", hop="1h"))
            return FeatureView(name, entity=user, stream=clicks, version=version, features=[made], **more)
        orders, orders_2 = view("orders", 1, "spend"), view("orders", 2, "spend", serving=True)
        stays = view("stays", 1, "x_y")
        old = Service("old", ["stays:x_y", "orders@1:spend"])
        checkout = Service("checkout", ["stays:x_y", "orders:spend"], owner="risk")
    """)
    log = logged(tmp_path / "log", *views)

    several = export(tmp_path / "unclear", "--log", log)
    done = export(tmp_path / "repo", "--log", log, "--definitions", definitions)

    assert several.exit_code == 1
    assert "view 'orders' has several versions" in several.stderr
    assert not (tmp_path / "unclear").exists()
    assert done.exit_code == 0, done.stderr
    left_out, dropped, service = done.stderr.splitlines()
    assert left_out.startswith(
        "note: orders@1 is left out, because Feast has one version of a view, and orders@2 serves"
    )
    assert dropped.startswith("note: stays: historical reads of x_y fail")
    assert service == "note: service old is left out, because it reads orders@1"
    text = (tmp_path / "repo" / "unskew_features.py").read_text()
    assert "/orders/v2/" in text
    written = calls(text)
    assert "old_service" not in written
    assert written["checkout_service"]["features"] == "[stays_view[['x_y']], orders_view[['spend']]]"
    assert written["checkout_service"]["owner"] == "risk"


def test_columns_that_feast_would_read_from_the_names_of_folders_are_refused_all_at_once(tmp_path):
    log = logged(tmp_path / "log", a_view("orders", "Day"), a_view("stays", "x", keys={"day": "int64"}))

    done = export(tmp_path / "repo", "--log", log)

    assert done.exit_code == 1
    first, second, last = done.stderr.splitlines()
    assert first.startswith("error: orders@1: Feast would read the column Day from the names of the log's folders")
    assert second.startswith("error: stays@1: Feast would read the column day ")
    assert last == "2 faults"
    assert not (tmp_path / "repo").exists()


def test_keys_are_one_entity_each_and_names_that_differ_in_case_alone_are_told_apart(tmp_path):
    both = a_view("stays", "x", keys={"user": "string", "Hotel": "int64"})
    alone = a_view("hotels", "x", keys={"id": "int64"})
    hotels = republished(alone, entity=msgspec.structs.replace(alone.entity, name="ENTITY_hotel"))
    log = logged(tmp_path / "log", both, hotels)

    assert export(tmp_path / "repo", "--log", log).exit_code == 0

    found = calls((tmp_path / "repo" / "unskew_features.py").read_text())
    entities = {name: (made["name"], made["join_keys"]) for name, made in found.items() if "join_keys" in made}
    assert entities == {
        "entity_ENTITY_hotel": ("ENTITY_hotel", ["id"]),
        "entity_entity_user": ("entity_user", ["user"]),
        "entity_entity_Hotel_2": ("entity_Hotel_2", ["Hotel"]),
    }
    assert found["stays_view"]["entities"] == "[entity_entity_user, entity_entity_Hotel_2]"
