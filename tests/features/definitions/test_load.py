import json
import os
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

import pytest

import unskew
from tests.support.definitions import SCHEMA
from unskew import DefinitionError, load

# DESIGN's examples, word for word.
PYTHON = """\
from unskew import Calendar, Entity, Feature, FeatureView, Sliding, Stream, agg

user = Entity("user", key="user_id")
transactions = Stream(
    "transactions", topic="transactions", schema="schemas/transaction.avsc", partitioned_by="user_id",
    event_time="event_time", event_id="transaction_id", owner="payments",
)
user_purchases = FeatureView(
    "user_purchases", entity=user, stream=transactions, owner="growth-ml-team",
    where="status = 'completed'",
    features=[
        Feature("purchase_count_30d", agg.count(), Sliding("30d"), description="Purchases in the last 30 days"),
        Feature("spend_30d", agg.sum("amount"), Sliding("30d")),
        Feature("avg_amount_today", agg.mean("amount"), Calendar("day", tz="Europe/Berlin")),
    ],
)
"""
YAML = """\
name: user_purchase_count_30d
entity: user_id
type: int64
description: "Number of purchases in the last 30 days"
owner: growth-ml-team
source: transactions_table
aggregation:
  function: count
  window: 30d
  filter: "status = 'completed'"
"""
STREAM = """\
stream:
  name: transactions
  topic: transactions
  schema: schemas/transaction.avsc
  event_time: event_time
  partitioned_by: user_id
  aliases: [transactions_table]
---
entity: {name: user, key: user_id}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "transaction.avsc").write_text(json.dumps(SCHEMA))
    return tmp_path


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(dedent(text))
    return folder


def faults_of(*paths: Path) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        load(*paths)
    return [fault.replace(str(paths[0]), "DIR") for fault in caught.value.faults]


def without_lines(fault: str) -> str:
    return re.sub(r"^(\S+\.ya?ml):\d+: ", r"\1: ", fault)


def test_a_stream_in_yaml_says_which_events_are_repeats(folder):
    told = STREAM.replace("aliases:", "event_id: user_id\n  dedupe_within: 1d\n  aliases:")
    write(folder, streams_yaml=told)

    stream = load(folder / "streams.yaml").streams["transactions"]
    assert (stream.event_id, stream.dedupe_within_us) == ("user_id", 24 * 3600 * 1_000_000)


def test_python_of_the_design_is_a_valid_definition(folder):
    plan = load(write(folder, purchases_py=PYTHON) / "purchases.py")
    view = plan.views["user_purchases"]

    assert view.id == "user_purchases@1"
    assert view.partitioned
    assert view.where is not None
    assert view.where.text == "status = 'completed'"
    assert view.stream.event_id == "transaction_id"
    assert [(f.name, f.function, str(f.dtype), view.windows[f.window].text) for f in view.features] == [
        ("purchase_count_30d", "count", "int64", "sliding(30d,hop=2h)"),
        ("spend_30d", "sum", "float64", "sliding(30d,hop=2h)"),
        ("avg_amount_today", "mean", "float64", "calendar(day,Europe/Berlin)"),
    ]


def test_yaml_of_the_design_is_a_valid_definition(folder):
    plan = load(write(folder, stream_yaml=STREAM, count_yaml=YAML))
    view = plan.views["user_purchase_count_30d"]
    (feature,) = view.features

    assert (view.entity.name, view.stream.name, view.published.owner, view.where) == (
        "user",
        "transactions",
        "growth-ml-team",
        None,
    )
    assert (feature.name, feature.function, str(feature.dtype)) == ("user_purchase_count_30d", "count", "int64")
    assert feature.published.description == "Number of purchases in the last 30 days"
    assert view.filters[feature.filter].text == "status = 'completed'"
    assert view.windows[feature.window].text == "sliding(30d,hop=2h)"


def test_type_of_the_yaml_is_checked(folder):
    write(folder, stream_yaml=STREAM, count_yaml=YAML.replace("int64", "float64"))

    (fault,) = faults_of(folder)
    assert fault.startswith(
        "DIR/count.yaml:3: user_purchase_count_30d.user_purchase_count_30d: its type is declared as 'float64', but count gives"
    )


def test_yaml_and_python_of_the_same_words_have_the_same_fingerprints(folder):
    document = """\
    name: user_purchases
    entity: user
    stream: transactions
    owner: growth-ml-team
    where: status = 'completed'
    features:
      - name: purchase_count_30d
        description: Purchases in the last 30 days
        aggregation: {function: count, window: {sliding: 30d}}
      - name: spend_30d
        aggregation: {function: sum, value: amount, window: 30d, hop: 120min}
      - name: avg_amount_today
        aggregation: {function: mean, value: amount, window: {calendar: day, tz: Europe/Berlin}}
    """
    (folder / "yaml").mkdir()
    by_python = load(write(folder, purchases_py=PYTHON)).views["user_purchases"]
    stream = STREAM.replace("schemas/", "../schemas/")
    by_yaml = load(write(folder / "yaml", stream_yaml=stream, view_yml=document)).views["user_purchases"]

    assert by_yaml.state_fingerprint == by_python.state_fingerprint
    assert by_yaml.presentation_fingerprint == by_python.presentation_fingerprint


def test_definitions_may_be_spread_over_python_and_yaml_files(folder):
    python = PYTHON.replace('owner="payments"', 'owner="payments", aliases=["transactions_table"]')

    assert list(load(write(folder, a_py=python, b_yaml=YAML)).views) == ["user_purchases", "user_purchase_count_30d"]


def test_definition_file_may_import_its_neighbour(folder, tmp_path_factory):
    shared, views = PYTHON.split("user_purchases = ")
    header = "from streams import transactions, user\nfrom unskew import Calendar, Feature, FeatureView, Sliding, agg\n"
    other = write(tmp_path_factory.mktemp("other"), streams_py="# nothing\n")

    plan = load(write(folder, streams_py=shared, views_py=f"{header}user_purchases = {views}"))

    assert list(plan.views) == ["user_purchases"]
    # The neighbour is forgotten: another folder's file of that name is another module.
    assert faults_of(write(other, v_py="from streams import user\n")) == [
        "DIR/v.py:1: ImportError: cannot import name 'user' from 'streams' (DIR/streams.py)"
    ]


def test_files_that_begin_with_an_underscore_are_left_out(folder):
    write(folder, purchases_py=PYTHON, _helpers_py="raise RuntimeError\n")

    assert list(load(folder).views) == ["user_purchases"]


def test_python_that_fails_is_a_fault_with_its_line(folder):
    write(
        folder,
        a_py="import unskew\n1 / 0\n",
        b_py="def\n",
        c_py="from unskew import Entity\nEntity('u', kye='x')\n",
        d_py="exit(3)\n",
    )

    assert [fault.partition(": ")[::2] for fault in faults_of(folder)] == [
        ("DIR/a.py:2", "ZeroDivisionError: division by zero"),
        ("DIR/b.py:1", "SyntaxError: invalid syntax (b.py, line 1)"),
        ("DIR/c.py:2", "TypeError: Unexpected keyword argument 'kye'"),
        ("DIR/d.py:1", "SystemExit: 3"),
    ]


def test_missing_schema_file_is_a_fault_of_the_file_that_names_it(folder):
    write(folder, purchases_py=PYTHON.replace("transaction.avsc", "transactions.avsc"))

    (fault,) = faults_of(folder)
    assert fault.startswith(
        "DIR/purchases.py:5: stream transactions: the schema file DIR/schemas/transactions.avsc cannot be read"
    )


EVERYTHING = """\
from unskew import (
    Calendar, Derived, Entity, Feature, FeatureView, Lifetime, Session, Sessions, Sliding, Stream, Tumbling, agg
)

user = Entity("user", key="user_id")
transactions = Stream(
    "transactions", topic="transactions", schema="schemas/transaction.avsc", partitioned_by="user_id",
    event_time="event_time",
)
month = Sliding("30d")
everything = FeatureView(
    "everything", entity=user, stream=transactions,
    features=[
        Feature("online", agg.count("amount", by="online", keys=2), Tumbling("1h", closed=True)),
        Feature("spread", agg.std("amount", ddof=0), Calendar("week", tz="Europe/Berlin"), default=0.5),
        Feature("kinds", agg.approx_count_distinct("status", error=0.05), Lifetime()),
        Feature("tops", agg.top_k("status", 3), Session("30min", hop="1min")),
        Feature("p90", agg.quantile("amount", 0.9, error=0.02), month),
        Feature("sizes", agg.histogram("amount", [0, 10, 100]), month),
        Feature("warmth", agg.decayed_sum("amount", half_life="7d"), Sliding("30d", hop="1d")),
        Feature("first", agg.first_n("status", 2), Calendar("quarter")),
        Feature("n", agg.count(), month),
        Derived("share", "warmth / n", default=0, description="of each", owner="risk", type="float64"),
    ],
)
visits = Sessions("visits", stream=transactions, gap="30min", hop="1min", where="online", owner="web",
                  values={"spend": agg.sum("amount"), "last_status": agg.last("status")})
user_visits = FeatureView(
    "user_visits", entity=user, stream=visits,
    features=[Feature("spend_p50", agg.quantile("spend", 0.5), month, where="length_s > 60")],
)
"""
EVERYTHING_YAML = """\
stream:
  name: transactions
  topic: transactions
  schema: schemas/transaction.avsc
  event_time: event_time
  partitioned_by: user_id
---
entity: {name: user, key: user_id}
---
name: everything
entity: user
source: transactions
features:
  - name: online
    aggregation: {function: count, value: amount, by: online, keys: 2, window: {tumbling: 1h, closed: true}}
  - name: spread
    default: 0.5
    aggregation: {function: std, value: amount, ddof: 0, window: {calendar: week, tz: Europe/Berlin}}
  - name: kinds
    aggregation: {function: approx_count_distinct, value: status, error: 0.05, window: lifetime}
  - name: tops
    aggregation: {function: top_k, value: status, n: 3, window: {session: 30min, hop: 1min}}
  - name: p90
    aggregation: {function: quantile, value: amount, q: 0.9, error: 0.02, window: 30d}
  - name: sizes
    aggregation: {function: histogram, value: amount, edges: [0, 10, 100], window: {sliding: 30d}}
  - name: warmth
    aggregation: {function: decayed_sum, value: amount, half_life: 1w, window: 30d, hop: 1d}
  - name: first
    aggregation: {function: first_n, value: status, n: 2, window: {calendar: quarter}}
  - name: n
    aggregation: {function: count, window: 30d}
  - {name: share, derived: warmth / n, default: 0, description: of each, owner: risk, type: float64}
---
sessions:
  name: visits
  stream: transactions
  gap: 30min
  hop: 1min
  filter: online
  owner: web
  values:
    spend: {function: sum, value: amount}
    last_status: {function: last, value: status}
---
name: user_visits
entity: user_id
source: visits
features:
  - name: spend_p50
    aggregation: {function: quantile, value: spend, q: 0.5, window: 30d, where: length_s > 60}
"""


def test_all_that_can_be_said_in_python_can_be_said_in_yaml(folder):
    by_python = load(write(folder, everything_py=EVERYTHING) / "everything.py").views
    by_yaml = load(write(folder, everything_yaml=EVERYTHING_YAML) / "everything.yaml").views

    assert list(by_yaml) == list(by_python) == ["everything", "user_visits"]
    for name, view in by_python.items():
        same = by_yaml[name]
        assert (same.state_fingerprint, same.presentation_fingerprint) == (
            view.state_fingerprint,
            view.presentation_fingerprint,
        )
        assert same.features == view.features
        assert [window.text for window in same.windows] == [window.text for window in view.windows]
        assert [(d.name, d.text, d.inputs, d.published.default) for d in same.derived] == [
            (d.name, d.text, d.inputs, d.published.default) for d in view.derived
        ]
    assert by_python["user_visits"].sessions is not None
    assert by_yaml["user_visits"].sessions is not None
    assert by_yaml["user_visits"].sessions.features == by_python["user_visits"].sessions.features


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("half_life: 1w", "half_life: 7"), "view everything: feature warmth: half_life: 7 has no unit; write for"),
        (("window: lifetime", "window: lifetime, hop: 1h"), "feature kinds: a lifetime has no hop; leave it out"),
        (("window: lifetime", "window: {lifetime: 1}"), "feature kinds: the window has no kind; write window: 30d,"),
        (("session: 30min,", "session: 30,"), "feature tops: 30 has no unit; write for example 30d, 5min or 10s"),
        (("closed: true", "close: true"), "window: unknown key 'close'; did you mean 'closed'?"),
        (("ddof: 0", "dof: 0"), "aggregation: unknown key 'dof'; did you mean 'ddof'?"),
        (("by: online", "by: [online]"), "feature online: by: ['online'] is not SQL text; put it in quotes"),
        (("derived: warmth / n", "derived: [n]"), "feature share: derived: ['n'] is not SQL text; put it in quotes"),
        (
            ("derived: warmth / n", "derived: n, aggregation: {}"),
            "share: it has both derived and aggregation; keep one",
        ),
        (("{name: share, ", "{"), "feature 10: it has no name; give it one"),
        (("sessions:\n  name: visits\n", "sessions:\n"), "sessions: it has no name; give it one"),
        (("  gap: 30min\n", ""), "sessions visits: it has no gap; give it one"),
        (("  gap: 30min\n", "  gap: 30\n"), "sessions visits: gap: 30 has no unit; write for example"),
        (("  gap: 30min\n  hop: 1min", "  gap: 30min\n  hop: 60"), "sessions visits: hop: 60 has no unit; write"),
        (("  gap: 30min\n", "  gaps: 30min\n"), "sessions visits: unknown key 'gaps'; did you mean 'gap'?"),
        (
            ("spend: {function: sum, value: amount}", "spend: amount"),
            "visits: spend: 'amount' is not an aggregation; write",
        ),
        (
            ("spend: {function: sum,", "spend: {functon: sum,"),
            "visits: spend: unknown key 'functon'; did you mean 'function'?",
        ),
        (
            ("spend: {function: sum, value: amount}", "spend: {function: sum, value: amount, window: 1h}"),
            "visits: spend: unknown key 'window'; known keys are function,",
        ),
    ],
)
def test_yaml_of_another_form_is_a_fault_for_what_is_new_too(folder, change, fault):
    assert EVERYTHING_YAML.count(change[0]) == 1
    faults = faults_of(write(folder, bad_yaml=EVERYTHING_YAML.replace(*change)))

    assert re.match(r"DIR/bad\.yaml:\d+: ", faults[0])
    assert fault in faults[0]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("n: 3,", "n: 300,"), "everything.tops: n=300 is not a whole number between 1 and 128; write for example n=5"),
        (("closed: true", "closed: maybe"), "everything.online: closed='maybe' is neither true nor false; write one"),
        (("calendar: week", "calendar: weeks"), "everything.spread: Calendar('weeks') is not known; units are day,"),
        (("edges: [0, 10, 100]", "edges: 0"), "everything.sizes: edges=0 is not a list of 1 to 127 ascending numbers"),
        (
            ("default: 0.5", "default: low"),
            "everything.spread: the default 'low' is not of type float64; give a value of type float64",
        ),
        (("function: quantile, value: spend", "function: quantile, value: spent"), "did you mean 'spend'?"),
        (("source: visits", "source: visit"), "user_visits: no stream is called 'visit'; did you mean 'visits'?"),
        (("stream: transactions\n  gap", "stream: transaction\n  gap"), "no stream is called 'transaction'; did you"),
    ],
)
def test_what_compile_finds_in_yaml_it_says_as_for_python(folder, change, fault):
    assert EVERYTHING_YAML.count(change[0]) == 1

    assert fault in faults_of(write(folder, bad_yaml=EVERYTHING_YAML.replace(*change)))[0]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("function: count", "fuction: count"), "aggregation: unknown key 'fuction'; did you mean 'function'?"),
        (("owner:", "onwer:"), "unknown key 'onwer'; did you mean 'owner'?"),
        (("source: transactions_table\n", ""), "it has no source, which names its stream; give it one"),
        (
            ("source:", "stream: transactions\nsource:"),
            "it has both source and stream, which are the same thing; keep one",
        ),
        (("window: 30d", "window: 30"), "30 has no unit; write for example 30d, 5min or 10s"),
        (("  window: 30d\n", ""), "aggregation: it has no window; give it one"),
        (
            ("window: 30d", "window: {rolling: 30d}"),
            "the window has no kind; write window: 30d, {tumbling: 1h}, {calendar",
        ),
        (("window: 30d", "window: {tumbling: 1h, hop: 1min}"), "window: unknown key 'hop'; known keys are tumbling"),
        (("window: 30d", "window: {sliding: 30d}\n  hop: 1d"), "hop is beside a window that is written out"),
        (("name: user_purchase_count_30d\n", ""), "it has no name; give it one"),
        (("filter: \"status = 'completed'\"", "filter: [1]"), "filter: [1] is not SQL text; put it in quotes"),
        (("owner:", "features: []\nowner:"), "it has both features and aggregation"),
    ],
)
def test_yaml_of_another_form_is_a_fault_that_says_where(folder, change, fault):
    write(folder, stream_yaml=STREAM, view_yaml=YAML.replace(*change))
    faults = faults_of(folder)

    assert without_lines(faults[0]).startswith("DIR/view.yaml: view")
    assert fault in faults[0]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name: a\nname: b\n", "DIR/bad.yaml: it is not YAML: the key 'name' appears twice"),
        (
            "name: [",
            "DIR/bad.yaml: it is not YAML: while parsing a flow node expected the node content, but found '<stream end>' in line 1,",
        ),
        ("!!python/object/apply:os.system ['true']", "DIR/bad.yaml: it is not YAML: could not determine a constructor"),
        ("just text", "DIR/bad.yaml: 'just text' is not a definition; write a view"),
        ("entity: {name: user}", "DIR/bad.yaml: entity user: it has no key; give it one"),
        (
            "entity: {name: user, keys: user_id}",
            "DIR/bad.yaml: entity user: unknown key 'keys'; did you mean 'key'?",
        ),
        ("stream: {name: s}", "DIR/bad.yaml: stream s: it has no topic; give it one"),
        (
            "entity: user\nkey: user_id\n",
            "DIR/bad.yaml: entity: its words stand below it, indented; write entity: {name: user, ...}",
        ),
        ("stream: {name: s}\ntopic: t\n", "DIR/bad.yaml: stream: there is more beside it (topic); indent it"),
        ("view:\n  name: v\n", "DIR/bad.yaml: view: a view has no word above it; write its words at the top"),
        ("entity: user\nsource: t\nfeatures: []\n", "DIR/bad.yaml: view: it has no name; give it one"),
        (
            STREAM.replace("aliases:", "settle: 500\n  aliases:"),
            "DIR/bad.yaml: stream transactions: settle: 500 has no unit",
        ),
        (
            STREAM.replace("aliases:", "dedupe_within: 500\n  aliases:"),
            "DIR/bad.yaml: stream transactions: dedupe_within: 500 has no unit",
        ),
        ("name: v\nentity: user\nsource: t\n", "DIR/bad.yaml: view v: it has no list of features; write features:"),
        ("name: v\nentity: user\nsource: t\nfeatures: [n]\n", "DIR/bad.yaml: view v: feature 1: 'n' is not a feature"),
        (
            "name: v\nentity: user\nsource: t\nfeatures: [{name: n}]\n",
            "DIR/bad.yaml: view v: feature n: it has no aggregation",
        ),
        (
            "name: v\nentity: user\nsource: t\nfeatures: [{name: n, agg: 1}]\n",
            "DIR/bad.yaml: view v: feature n: unknown key 'agg'",
        ),
    ],
)
def test_document_that_is_no_definition_is_a_fault(folder, text, fault):
    assert without_lines(faults_of(write(folder, bad_yaml=text))[0]).startswith(fault)


def test_yaml_text_is_never_run(folder):
    text = YAML.replace("status = 'completed'", "__import__('os').abort()")

    assert (
        "filter: the SQL text has the character '.', which no expression contains"
        in faults_of(write(folder, stream_yaml=STREAM, view_yaml=text))[0]
    )


def test_paths_that_hold_no_definitions_are_faults(folder):
    (folder / "notes.txt").write_text("")
    (folder / "empty.py").write_text("")

    assert faults_of(folder, folder / "nowhere", folder / "notes.txt", folder / "schemas") == [
        "DIR/nowhere: there is no such file or folder; correct the path",
        "DIR/notes.txt: definition files are .py, .yaml, .yml files; correct the path",
        "DIR/schemas: the folder has no .py, .yaml, .yml file, nor has a folder in it; give the folder of the definitions",
    ]
    (empty,) = faults_of(folder / "empty.py")
    assert "there are no definitions; write an Entity, a Stream and a FeatureView" in empty
    assert "what is only in a list or made in a function is not read: give it a name of its own" in empty
    with pytest.raises(DefinitionError, match="no definition files were given"):
        load()


A_STREAM = """\
stream: {{name: {name}, topic: {name}, schema: {schema}, event_time: event_time, partitioned_by: user_id}}
"""
A_VIEW = """\
name: {name}
entity: user
source: {stream}
aggregation: {{function: count, window: 30d}}
"""


def lay_out(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(dedent(text))
    return folder


def test_definitions_in_subfolders_are_read_each_beside_its_own_schema_and_modules(tmp_path):
    schema = json.dumps(SCHEMA)
    python = """\
        from shared import USER
        from window import EXTENT
        from unskew import Feature, FeatureView, Sliding, Stream, agg
        stream = Stream(
            "{name}", topic="{name}", schema="own.avsc", event_time="event_time", partitioned_by="user_id")
        view = FeatureView(
            "{name}_views", entity=USER, stream=stream, features=[Feature("{name}_n", agg.count(), Sliding(EXTENT))])
        """
    lay_out(
        tmp_path,
        {
            "shared.py": 'from unskew import Entity\nUSER = Entity("user", key="user_id")\n',
            "b/views.py": python.format(name="b"),
            "b/window.py": 'EXTENT = "1d"',
            "b/own.avsc": schema,
            "a/deep/views.py": python.format(name="a"),
            "a/deep/window.py": 'EXTENT = "2d"',
            "a/deep/own.avsc": schema,
            "c/views.yaml": A_STREAM.format(name="c", schema="../b/own.avsc")
            + "---\n"
            + A_VIEW.format(name="c_n", stream="c"),
        },
    )

    found = load(tmp_path)

    assert list(found.views) == ["a_views", "b_views", "c_n"]
    day_us = 24 * 3600 * 1_000_000
    extents = {name: view.windows[0].span * view.windows[0].hop_us for name, view in found.views.items()}
    assert extents == {"a_views": 2 * day_us, "b_views": day_us, "c_n": 30 * day_us}


@pytest.mark.parametrize("left_out", [".git", "__pycache__", "_old", ".venv", "env", "back"])
def test_folders_that_hold_no_definitions_are_not_read(folder, left_out):
    write(folder, streams_yaml=STREAM, view_yaml=YAML)
    if left_out == "back":
        (folder / "schemas" / "back").symlink_to(folder)
        (folder / "again").symlink_to(folder / "schemas")
    else:
        lay_out(folder, {f"{left_out}/lib/wrong.py": "raise SystemExit('run')", f"{left_out}/wrong.yaml": "[]"})
        if left_out == "env":
            (folder / "env" / "pyvenv.cfg").touch()

    assert list(load(folder).views) == ["user_purchase_count_30d"]


def test_public_names_are_there():
    assert {name: getattr(unskew, name).__name__.rpartition(".")[2] for name in unskew.__all__} == {
        name: name for name in unskew.__all__
    }
    assert set(unskew.__all__) <= set(dir(unskew))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        unskew.Nothing  # noqa: B018 - the access is the claim


HOSTILE = {
    "a bomb of aliases": ("a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghijkl")
    ), "with its aliases written out"),
    "an alias of itself": ("name: &a [*a]\n", "an alias stands for a part that contains it"),
    "open brackets": ("[" * 5_000, "nested more than 50 levels deep"),
    "nested mappings": ("{a: " * 3_000, "nested more than 50 levels deep"),
    "nested blocks": ("\n".join(" " * at + "a:" for at in range(200)), "nested more than 50 levels deep"),
    "a list as a key": ("? [a]\n: b\n", "a key is not text"),
    "a number as a key": ("1: b\n", "the key '1' is not text; put it in quotes"),
    "a truth value as a key": ("on: b\n", "the key 'on' is not text; put it in quotes"),
    "a long number": (YAML + "version: " + "1" * 5_000, "a number has 5000 characters"),
    "a long hexadecimal number": (YAML + "version: 0x" + "1" * 5_000, "a number has 5002 characters"),
    "a version of thirty digits": (YAML + "version: " + "1" * 30, "is not a positive whole number of at most"),
    "a day that does not exist": (YAML + "version: 2020-13-45", "the value '2020-13-45' cannot be read"),
    "a tag that does not fit": (YAML + "version: !!int x", "the value 'x' cannot be read"),
    "a set that is none": ("name: !!set x", "a value does not fit its tag"),
    "an object of Python": ("!!python/object/apply:os.abort []", "could not determine a constructor"),
    "a long duration": (YAML.replace("30d", "1" * 5_000 + "d"), "is not a duration"),
    "a filter of five thousand terms": (
        YAML.replace("status = 'completed'", " AND ".join(["status = 'x'"] * 5_000)), "operators, more than 2000"
    ),
    "a query": (YAML.replace("status = 'completed'", "amount > (SELECT 1)"), "SELECT belongs to a query"),
    "a broken pattern": (YAML.replace("status = 'completed'", "status ~ '(a'"), "unclosed group"),
    "another system's name": (YAML.replace("function: count", "function: avg\n  value: amount"), "did you mean 'mean'?"),
    "half a character": ('name: "\\ud800"', "it has no entity"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "fault"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_a_fault_that_can_be_printed(folder, text, fault):
    write(folder, streams_yaml=STREAM)
    (folder / "view.yaml").write_text(text)

    faults = "\n".join(faults_of(folder))

    assert fault in faults
    assert faults.encode()
    assert len(faults) < 5_000


def test_an_alias_of_a_modest_size_is_read(folder):
    features = (
        "features:\n- name: a\n  aggregation: &one {function: count, window: 1d}\n- name: b\n  aggregation: *one\n"
    )
    write(folder, streams_yaml=STREAM, view_yaml="name: v\nentity: user\nsource: transactions\n" + features)

    assert [feature.name for feature in load(folder).views["v"].features] == ["a", "b"]


def test_a_link_to_a_file_that_is_gone_is_a_fault(folder):
    write(folder, streams_yaml=STREAM, view_yaml=YAML)
    (folder / "more.yaml").symlink_to(folder / "gone.yaml")

    assert [fault for fault in faults_of(folder) if fault.startswith("DIR/more.yaml: it cannot be read")]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a = '\0'", "DIR/odd.py: "),
        (
            "from unskew import agg\nagg.avg('amount')",
            "DIR/odd.py:2: AttributeError: no aggregation is called 'avg'; did you mean agg.mean?",
        ),
        ("from unskew import agg\nagg.cuont()", "did you mean 'count'?"),
    ],
)
def test_a_fault_of_python_names_its_line_or_only_its_file(folder, text, fault):
    write(folder, odd_py=text)

    (found,) = faults_of(folder)

    assert fault in found
    assert "None:" not in found


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _of_size(n_bytes: int) -> Callable[[Path], None]:
    def write_it(path: Path) -> None:
        with path.open("wb") as file:
            # The file has holes: only its length is looked at.
            file.truncate(n_bytes)

    return write_it


def _binary(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00\x88")


@pytest.mark.parametrize(
    ("name", "make", "fault"),
    [
        ("pipe.yaml", _pipe, "it is neither a file nor a folder; give a Python or YAML file"),
        ("folder", Path.mkdir, "the folder has no .py, .yaml, .yml file"),
        ("binary.yaml", _binary, "it is not text in UTF-8"),
        ("binary.avsc", _binary, "definition files are .py, .yaml, .yml files"),
        ("empty.yaml", Path.touch, "there are no definitions; write an Entity, a Stream and a FeatureView"),
        ("long.yaml", _of_size(100_000_000), "it has 100,000,000 bytes, more than 16,000,000"),
        ("long.py", _of_size(100_000_000), "it has 100,000,000 bytes, more than 4,000,000"),
    ],
)
def test_a_path_that_holds_no_definitions_is_a_fault_that_says_what_it_is(tmp_path, name, make, fault):
    path = tmp_path / name
    make(path)

    assert faults_of(path)[0].startswith(f"DIR: {fault}")


def test_a_python_file_that_is_no_text_is_a_fault(tmp_path):
    path = tmp_path / "binary.py"
    path.write_bytes(b"\xff\xfe\x88")
    assert faults_of(path)[0].startswith("DIR:1: SyntaxError: ")

    # Before it stands the kind of error, which depends on the version of Python.
    _binary(path)
    assert faults_of(path)[0].endswith("source code string cannot contain null bytes")


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero"])
def test_a_device_is_not_read(path):
    assert faults_of(path) == [
        "DIR: it is neither a file nor a folder; give a Python or YAML file, or a folder of them"
    ]


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "run.py").write_text("raise RuntimeError('it was run')")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DefinitionError, match="the path is empty"):
        load("")


def test_a_table_in_yaml_lies_beside_its_definition(tmp_path):
    (tmp_path / "line.avsc").write_text(
        '{"type": "record", "name": "L", "fields": [{"name": "user", "type": "string"},'
        ' {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}}]}'
    )
    (tmp_path / "lines.yaml").write_text(
        "table: {name: lines, path: data/lines, schema: line.avsc, event_time: at, delay: 1h, columns: {user: uid}}\n"
        "---\n"
        "entity: {name: user, key: user}\n"
        "---\n"
        "{name: lines_1d, entity: user, source: lines, aggregation: {function: count, window: 1d}}\n"
    )

    plan = load(tmp_path)

    table = plan.views["lines_1d"].stream.table
    assert table is not None
    assert table.path == str(tmp_path / "data/lines")
    assert table.renamed == {"user": "uid"}
    assert plan.of_topics.views == {}
    (tmp_path / "bad.yaml").write_text("table: {name: more, path: x, schema: line.avsc, event_time: at, delay: 3}")
    with pytest.raises(DefinitionError, match=r"table more: delay: 3 has no unit"):
        load(tmp_path)


@pytest.mark.parametrize("changed", ["views.py", "_helpers.py", "_rules/__init__.py", "_rules/names.py"])
def test_what_is_saved_twice_in_a_second_is_read_as_it_is_and_nothing_is_left_beside_it(changed, folder):
    def save(name, text):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        os.utime(path, (1_700_000_000, 1_700_000_000))

    files = {
        "views.py": "from _helpers import HELPED\nfrom _rules import RULED\nfrom _rules.names import NAMED\nOWN = 'old'\n"
        f"NAMES = '_'.join([OWN, HELPED, RULED, NAMED])\n{PYTHON}".replace('"user_purchases"', "NAMES"),
        "_helpers.py": "HELPED = 'old'\n",
        "_rules/__init__.py": "RULED = 'old'\n",
        "_rules/names.py": "NAMED = 'old'\n",
    }
    for name, text in files.items():
        save(name, text)
    before = list(load(folder).views)
    save(changed, files[changed].replace("'old'", "'new'"))
    after = list(load(folder).views)

    assert not sys.dont_write_bytecode
    assert before == ["old_old_old_old"]
    assert after == ["_".join("new" if name == changed else "old" for name in files)]
    assert not list(folder.rglob("__pycache__"))
    assert not [entry for entry in sys.path_importer_cache if entry.startswith(str(folder))]


def test_a_package_of_an_environment_below_a_folder_of_definitions_is_imported_as_ever(folder, monkeypatch):
    site = folder / ".venv" / "site"
    (site / "apart").mkdir(parents=True)
    (site / "apart" / "__init__.py").write_text("NAME = 'from_apart'\n")
    monkeypatch.syspath_prepend(str(site))
    write(folder, views_py=f"from apart import NAME\n{PYTHON}".replace('"user_purchases"', "NAME"))

    assert list(load(folder / "views.py").views) == ["from_apart"]
    assert list((site / "apart" / "__pycache__").iterdir())
