"""Readers give the same answers wherever Redis is, and go on where a node or a master is replaced."""

import json
import threading

import pytest

from tests.support.plans import DAY, HOUR, MINUTE, Wanted, sliding, view
from tests.support.servers.certificates import certified
from tests.support.servers.tls import TlsFront
from tests.support.servers.valkey import Sentinel, Valkey, quiet_port
from tests.support.updates import closing
from unskew.features.errors import RequestError, StoreUnavailable
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.serving.live import read_live
from unskew.serving.online import OnlineReader
from unskew.sinks.redis.cluster_slots import slot_of
from unskew.sinks.redis.keyspace import clock_key, connect, registry_key
from unskew.sinks.redis.writer import RedisWriter
from unskew.store import FeatureStore

VISITS = view(
    Wanted("n_5min", "count", sliding(5 * MINUTE, MINUTE)),
    Wanted("mean_1d", "mean", sliding(DAY, HOUR), "x", default=-1.0),
    name="visits",
)
STAYS = view(
    Wanted("nights", "sum", sliding(DAY, HOUR), "n", of="int64"),
    keys={"user": "string", "hotel": "int64"},
    name="stays",
)
CLOCK = 10 * DAY
USERS = [f"u{number}" for number in range(200)]
REFERENCES = ["visits:n_5min", "visits:mean_1d", "stays:nights"]
ROWS = [{"user": user, "hotel": number % 3} for number, user in enumerate([*USERS, "nobody"])]


def write(url: str, n: int = 1) -> None:
    writer = RedisWriter(url, "unskew", "main")
    plan = Plan(streams={}, views={one.name: one for one in (VISITS, STAYS)})
    writer.publish_registry(json.dumps(describe(plan)))
    writer.expect({VISITS.id: ["h0"], STAYS.id: ["h0"]})
    visits = [
        {"key": user, "n_5min": n * number, "mean_1d": number / 7 if number % 2 else None, "_at": CLOCK - number}
        for number, user in enumerate(USERS)
    ]
    stays = [
        {"key": f"{user}|{number % 3}", "nights": number, "_at": CLOCK - 1} for number, user in enumerate(USERS[:150])
    ]
    writer.add(closing(VISITS, CLOCK, visits))
    writer.add(closing(STAYS, CLOCK, stays))
    writer.flush(CLOCK)
    writer.close()


def answers(url: str):
    reader = OnlineReader(url, now_us=lambda: CLOCK + HOUR)
    try:
        read = reader.read(REFERENCES, ROWS)
        return (
            read.to_dict(),
            {name: frame.to_dict(as_series=False) for name, frame in read.metadata.items()},
            sorted(reader.keys("visits")),
            sorted(reader.keys("stays")),
            read_live(url, "unskew", "main", now_us=lambda: CLOCK + HOUR),
        )
    finally:
        reader.close()


def test_a_cluster_and_a_master_behind_sentinels_answer_as_one_server_does(cluster, tmp_path):
    with Valkey(tmp_path / "one") as one, Valkey(tmp_path / "two") as two, Sentinel(tmp_path / "s", two) as sentinel:
        found = []
        for url in (one.url, sentinel.url, cluster.url):
            write(url)
            found.append(answers(url))

    assert found[0] == found[1] == found[2]
    values, metadata, visitors, guests, live = found[2]
    assert (values["n_5min"][7], values["mean_1d"][7], values["nights"][7], values["mean_1d"][-1]) == (7, 1.0, 7, -1.0)
    assert metadata["visits"]["status"][-1] == "default"
    assert (visitors, len(guests)) == (sorted(USERS), 150)
    assert [one.clock_us for one in live] == [CLOCK, CLOCK]


def test_clients_of_redis_py_may_be_given_in_place_of_urls(cluster):
    with connect(cluster.url) as client:
        write(cluster.url)
        assert FeatureStore(redis_url=client).get_online_features(["visits:n_5min"], ROWS[:8]).to_dict() == {
            "user": USERS[:8],
            "hotel": [row["hotel"] for row in ROWS[:8]],
            "n_5min": list(range(8)),
        }
        assert len(read_live(client, "unskew", "main")) == 2


def test_clocks_are_read_before_values_wherever_they_are(cluster):
    write(cluster.url)
    of_clock = cluster.owner_of(slot_of(clock_key("unskew", "main")))
    others = [node for node in cluster.masters if node is not of_clock]
    reader = OnlineReader(cluster.url)
    reader.read(REFERENCES, ROWS)

    with of_clock.paused():
        before = [node.n_calls("hmget") for node in others]
        reading = threading.Thread(target=reader.read, args=(REFERENCES, ROWS))
        reading.start()
        # Long enough for all values to have been read, had they not waited.
        reading.join(0.3)
        assert reading.is_alive()
        assert [node.n_calls("hmget") for node in others] == before
    reading.join()
    reader.close()


def test_readers_follow_slots_that_move_and_keys_on_their_way(cluster):
    write(cluster.url)
    expected = answers(cluster.url)[0]
    reader = OnlineReader(cluster.url, now_us=lambda: CLOCK + HOUR)
    reader.read(REFERENCES, ROWS)
    names = [
        clock_key("unskew", "main"),
        registry_key("unskew"),
        *(f"unskew:visits@1:{{{user}}}" for user in USERS[:3]),
    ]
    moves = []
    for slot in sorted({slot_of(name) for name in names}):
        home = cluster.owner_of(slot)
        moves.append((slot, home, next(node for node in cluster.masters if node is not home)))

    for slot, home, target in moves:
        cluster.begin_move(slot, home, target)
        cluster.move_keys(slot, home, target)
    on_their_way = reader.read(REFERENCES, ROWS).to_dict()
    for slot, _, target in moves:
        cluster.end_move(slot, target)
    moved = reader.read(REFERENCES, ROWS).to_dict()
    found = len(reader.keys("visits"))
    for slot, home, _ in moves:
        cluster.move(slot, home)

    assert on_their_way == moved == reader.read(REFERENCES, ROWS).to_dict() == expected
    assert found == len(USERS)
    reader.close()


def test_a_cluster_of_which_all_known_nodes_are_gone_is_found_again_where_the_url_leads(cluster, tmp_path):
    """As where all nodes get new addresses, and the name in the URL leads to them."""
    write(cluster.url)
    options = {"cluster-enabled": "yes", "cluster-port": quiet_port(), "cluster-allow-reads-when-down": "yes"}
    with Valkey(tmp_path / "old", options) as old, TlsFront(old.port, certified(tmp_path / "tls")) as front:
        old.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        reader = OnlineReader(f"redis+cluster://127.0.0.1:{front.port}", now_us=lambda: CLOCK + HOUR)
        with pytest.raises(RequestError, match="nothing is published"):
            reader.views()
        old.kill()
        front.lead_to(cluster.nodes[0].port)

        with pytest.raises(StoreUnavailable):
            reader.views()
        assert reader.read(REFERENCES, ROWS).to_dict()["n_5min"][7] == 7
        reader.close()
