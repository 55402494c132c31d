"""Every fault of definition files is reported at once, each with the file and the line of what is wrong."""

import json
from pathlib import Path

import pytest
import yaml

from tests.support.definitions import SCHEMA
from unskew.features.definitions.enums import never_equal
from unskew.features.definitions.load import load, with_places
from unskew.features.definitions.places import located
from unskew.features.errors import DefinitionError

SOUND = """
from unskew import Entity, Feature, FeatureView, Service, Sliding, Stream, agg

user = Entity("user", key="user_id")
transactions = Stream(
    "transactions",
    topic="transactions",
    schema="transaction.avsc",
    event_time="event_time",
)
n = Feature("n", agg.count(), Sliding("1h"))
purchases = FeatureView(
    "purchases",
    entity=user,
    stream=transactions,
    features=[
        n,
        Feature(
            "spend",
            agg.sum("amount"),
            Sliding("1h", hop="5min"),
        ),
    ],
)
"""
SOUND_YAML = """
---
---
name: clicks
entity: user
source: transactions
features:
  - name: a
    aggregation:
      function: count
      window: 1h
      hop: 5min
---
entity:
  name: shop
  key: shop_id
"""


@pytest.fixture
def found(tmp_path):
    """The places and texts of all faults of one Python and one YAML file, with some texts replaced."""

    def faults(*changes: tuple[str, str], schema=True):
        texts = {"views.py": SOUND, "views.yaml": SOUND_YAML}
        for old, new in changes:
            (name,) = (name for name, text in texts.items() if old in text)
            texts[name] = texts[name].replace(old, new, 1)
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        if schema:
            (tmp_path / "transaction.avsc").write_text(json.dumps(SCHEMA))
        with pytest.raises(DefinitionError) as caught:
            load(tmp_path)
        return [fault.replace(f"{tmp_path}/", "").split(": ", 1) for fault in caught.value.faults]

    return faults


@pytest.mark.parametrize(
    ("change", "place", "said"),
    [
        (('hop="5min"', 'hop="7min"'), "views.py:21", "purchases.spend: hop 7min does not divide"),
        (('agg.sum("amount")', 'agg.sum("amuont")'), "views.py:18", "did you mean 'amount'"),
        (('agg.count(), Sliding("1h")', 'agg.count(), Sliding("1g")'), "views.py:11", "'1g' is not a duration"),
        (('event_time="event_time"', 'event_time="at"'), "views.py:9", "event_time"),
        (('key="user_id"', 'key="nobody"'), "views.py:14", "entity user: key"),
        (("stream=transactions", 'stream="transaction"'), "views.py:15", "no stream is called 'transaction'"),
        (("    features=[\n        n,", "    version=0,\n    features=[\n        n,"), "views.py:16", "version"),
        (("      hop: 5min", "      hop: 7min"), "views.yaml:12", "clicks.a: hop 7min does not divide"),
        (("      hop: 5min", "      hopp: 5min"), "views.yaml:12", "unknown key 'hopp'"),
        (("source: transactions", "source: nothing"), "views.yaml:6", "no stream is called 'nothing'"),
        (("  key: shop_id", "  kye: shop_id"), "views.yaml:16", "unknown key 'kye'"),
        (("function: count", "function: cuont"), "views.yaml:10", "cuont"),
        (("name: clicks", "name: clicks\nname: b"), "views.yaml:5", "appears twice"),
    ],
    ids=lambda each: each[1].strip()[:30] if isinstance(each, tuple) else "",
)  # fmt: skip
def test_a_fault_has_the_line_of_the_key_or_the_argument(found, change, place, said):
    faults = found(change)

    assert faults[0][0] == place, faults
    assert said in faults[0][1]


def test_faults_of_all_files_come_at_once_beside_a_missing_schema_and_a_document_of_another_form(found):
    faults = found(
        ('hop="5min"', 'hop="7min"'), ('event_time="event_time"', 'event_time="event_time", max_age="x"'), ("      hop: 5min", "      hopp: 1min"),
        schema=False,
    )  # fmt: skip

    assert [place for place, _ in faults] == ["views.yaml:12", "views.py:8", "views.py:9", "views.py:21"]


def test_a_missing_schema_file_hides_no_other_fault(found):
    faults = found(('hop="5min"', 'hop="7min"'), ("      hop: 5min", "      hop: 8min"), schema=False)

    assert [place for place, _ in faults] == ["views.py:8", "views.py:21", "views.yaml:12"]
    assert "transaction.avsc cannot be read" in faults[0][1]


def test_a_file_that_cannot_be_read_hides_no_fault_of_others_and_makes_none(found):
    faults = found(("user = Entity", "user = Entity("), ("      hop: 5min", "      hop: 8min"))

    assert [place for place, _ in faults] == ["views.py:4", "views.yaml:12"]


def test_a_definition_that_a_function_makes_has_its_file(tmp_path):
    (tmp_path / "made.py").write_text("from unskew import Stream\ndef make(name):\n    return Stream(name, topic='t', schema={}, event_time='t')\ns = make('s' + '1')\n")  # fmt: skip

    with pytest.raises(DefinitionError) as caught:
        load(tmp_path)

    assert caught.value.faults[0].startswith(f"{tmp_path}/made.py: stream s1: ")


@pytest.mark.parametrize(
    ("where", "texts"),
    [
        ("status = 'complete'", ["complete"]),
        ("'x' <> status", ["x"]),
        ("status in ('completed', 'done') or status not in ('gone')", ["done", "gone"]),
        ("case when status = 'open' then amount > 1 else false end", ["open"]),
        ("status = 'completed' and lower(status) = 'x' and status > 'a'", []),
    ],
)
def test_a_comparison_with_a_value_that_an_enum_does_not_have_is_told_with_its_line(tmp_path, where, texts):
    (tmp_path / "transaction.avsc").write_text(json.dumps(SCHEMA))
    (tmp_path / "views.py").write_text(SOUND.replace("    features=[", f'    where="{where}",\n    features=['))

    told = with_places(never_equal(load(tmp_path)), [tmp_path])

    assert all(one.startswith(f"{tmp_path}/views.py:16: purchases: where: status is compared with ") for one in told)
    assert sorted(one.split("'")[1] for one in told) == texts


@pytest.mark.parametrize("nullable", [False, True])
def test_an_enum_of_a_json_schema_is_one_too(tmp_path, nullable):
    schema = {
        "type": "object",
        "properties": {
            "user_id": {"type": "string"},
            "status": {"type": ["string", "null"] if nullable else "string", "enum": ["a", "b"]},
            "event_time": {"type": "string", "format": "date-time"},
        },
        "required": ["user_id", "event_time"],
    }
    text = SOUND.replace('event_time="event_time"', 'event_time="event_time", format="json"')
    text = text.replace('agg.sum("amount")', "agg.count()").replace(
        "    features=[", "    where=\"status = 'c'\",\n    features=["
    )
    (tmp_path / "transaction.avsc").write_text(json.dumps(schema))
    (tmp_path / "views.py").write_text(text)

    assert "its values are a, b" in "".join(never_equal(load(tmp_path)))


def test_a_yaml_file_is_read_once_for_the_lines_of_all_its_faults(tmp_path, monkeypatch):
    documents = [f"name: v{n}\nentity: user\nsource: events\ncolour: red\n" for n in range(50)]
    (tmp_path / "views.yaml").write_text("---\n".join(documents))
    composed, compose = [], yaml.compose_all
    monkeypatch.setattr(yaml, "compose_all", lambda *given, **more: composed.append(1) or compose(*given, **more))

    with pytest.raises(DefinitionError) as caught:
        load(tmp_path)

    lines = [line for line in caught.value.faults if "unknown key 'colour'" in line]
    assert [line.partition(": ")[0] for line in lines] == [f"{tmp_path}/views.yaml:{5 * n + 4}" for n in range(50)]
    # Once for the lines of their form, and once for those of what is compiled.
    assert len(composed) <= 2


def test_no_file_is_read_for_the_lines_of_no_fault():
    assert located([], (pytest.fail("a file was asked for") for _ in range(1)), {}) == []


def test_a_fault_is_about_the_longest_name_with_which_it_begins():
    homes = {"a": Path("a.py"), "a.b": Path("b.py"), "a.b: c": Path("c.py")}

    faults = ["a: x", "a.b: x", "a.b.f: x: a.b: c: y", "a.b: c: x", "view a.c: x", "ab: x", ": x", "a"]

    assert located(faults, [], homes) == [
        *("a.py: a: x", "b.py: a.b: x", "b.py: a.b.f: x: a.b: c: y", "c.py: a.b: c: x", "a.py: view a.c: x"),
        *("ab: x", ": x", "a"),
    ]
