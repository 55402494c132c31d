"""A Kafka that requires TLS and credentials: the whole path against a real one, and the messages if it refuses."""

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.cli.test_dead_letters import DEFINITIONS
from tests.conftest import KAFKA
from tests.support.pipeline import SCHEMA, START, Bench, Record, history
from tests.support.servers.certificates import Certificates, certified
from tests.support.servers.kafka import ApacheKafka
from unskew.cli import main
from unskew.features.definitions.load import load
from unskew.features.errors import RequestError, StoreUnavailable
from unskew.pipelines.kafka.client_settings import OURS, read_kafka_config
from unskew.pipelines.run import run

PASSWORD = "s3cret of ann"
RECORDS = history(60, seed=21)
JAAS = "org.apache.kafka.common.security.plain.PlainLoginModule required user_ann="


@dataclass(frozen=True)
class Secured:
    broker: ApacheKafka
    certificates: Certificates


@pytest.fixture(scope="module")
def secured(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A broker with TLS that lets in who has a password, and a certificate of its authority."""
    if pytestconfig.stash[KAFKA].kind != "Apache Kafka":
        pytest.skip(f"needs a broker that can be set up: {pytestconfig.stash[KAFKA]}")
    made = certified(tmp_path_factory.mktemp("tls") / "made")
    properties = {
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.clients.plain.sasl.jaas.config": f'{JAAS}"{PASSWORD}" username="ann" password="{PASSWORD}";',
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(made.both),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(made.authority),
        "listener.name.clients.ssl.client.auth": "required",
    }
    with ApacheKafka(properties=properties, protocol="SASL_SSL", client=settings(made)) as broker:
        yield Secured(broker, made)


def settings(certificates: Certificates, **changes: str) -> dict[str, str]:
    return {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(certificates.authority),
        "ssl.certificate.location": str(certificates.certificate),
        "ssl.key.location": str(certificates.key),
        "sasl.mechanism": "PLAIN",
        "sasl.username": "ann",
        "sasl.password": PASSWORD,
        **changes,
    }


def written(path: Path, lines: dict[str, str]) -> Path:
    path.write_text("# Of the tests.\n\n" + "".join(f"{name} = {value}\n" for name, value in lines.items()))
    return path


def test_a_pipeline_reads_over_tls_with_a_password_from_a_file(
    secured: Secured, redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(secured.broker, redis_url, tmp_path)
    config = read_kafka_config(written(tmp_path / "client.properties", settings(secured.certificates)))

    with caplog.at_level(logging.DEBUG):
        outcome = bench.run(bench.produce(RECORDS), config=config)

    assert outcome.status is not None
    assert outcome.status.consumed == len(RECORDS)
    assert PASSWORD not in caplog.text
    assert PASSWORD not in repr(outcome.deployment)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sasl.password": "another s3cret"}, "Authentication failed"),
        ({"ssl.ca.location": "OTHER"}, "certificate verify failed"),
    ],
)
def test_a_broker_that_does_not_let_in_is_named_with_its_reason_and_without_secrets(
    secured: Secured, redis_url: str, tmp_path: Path, wrong: dict[str, str], said: str
) -> None:
    other = str(certified(tmp_path / "other").authority)
    wrong = {name: other if value == "OTHER" else value for name, value in wrong.items()}
    bench = Bench(secured.broker, redis_url, tmp_path)
    topic = bench.produce(RECORDS[:1])

    with pytest.raises(StoreUnavailable, match="refuses this client: ") as refused:
        bench.run(topic, config=settings(secured.certificates, **wrong))

    assert said in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_letters_are_sent_again_with_the_same_file(secured: Secured, redis_url: str, tmp_path: Path) -> None:
    bench = Bench(secured.broker, redis_url, tmp_path)
    bad = Record(0, START // 1000, "ann", 1, 1.0, True, START, raw=b"\0\0\0\0\7")
    topic = bench.produce([bad], 1)
    (tmp_path / "purchase.avsc").write_text(json.dumps(SCHEMA))
    definitions = tmp_path / "views.yaml"
    definitions.write_text(DEFINITIONS.format(topic=topic))
    config = written(tmp_path / "client.properties", settings(secured.certificates))
    deployment = bench.deployment(config=read_kafka_config(config))
    run(load(definitions), deployment, stop=threading.Event())
    file = tmp_path / "letters.jsonl"
    folder = ["--dead-letters", str(deployment.dead_letters), "--definitions", str(definitions)]
    CliRunner().invoke(main, ["dead-letters", "show", "--topic", topic, "--output", str(file), *folder])
    letter = json.loads(file.read_text())
    file.write_text(
        json.dumps(letter | {"mended": {"user": "ann", "item": 1, "amount": 2.0, "gift": False, "at": START}})
    )

    sent = CliRunner().invoke(
        main,
        [
            *("dead-letters", "replay", str(file), "--yes", *folder),
            *("--bootstrap-servers", secured.broker.bootstrap, "--kafka-config", str(config)),
        ],
    )

    assert (sent.exit_code, "1 letters sent" in sent.output) == (0, True), sent.output


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_the_pipeline_sets_itself_is_not_for_the_file(tmp_path: Path, name: str) -> None:
    file = written(tmp_path / "client.properties", {name: "x"})

    with pytest.raises(RequestError, match=f"line 3: the pipeline sets {name} itself"):
        read_kafka_config(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sasl.password\n", "line 1: write name=value"),
        ("sasl.password=s3cret\nsasl.password=s3cret\n", "line 2: sasl.password is set twice"),
        ("sasl.passwort=s3cret\n", 'No such configuration property: "sasl.passwort"'),
        ("security.protocol=tls\n", 'Invalid value "tls" for configuration property "security.protocol"'),
        ("security.protocol=ssl\nssl.ca.location=/nowhere/ca.pem\nssl.key.password=s3cret\n", "ssl.ca.location failed"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence_that_tells_no_secret(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "client.properties"
    file.write_text(text)

    with pytest.raises(RequestError) as refused:
        read_kafka_config(file)

    assert said in str(refused.value)
    assert "s3cret" not in str(refused.value)
    with pytest.raises(RequestError, match="No such file"):
        read_kafka_config(tmp_path / "absent")


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
def test_a_file_of_secrets_that_all_can_read_is_warned_of(tmp_path, caplog, mode, warned):
    path = tmp_path / "kafka.properties"
    path.write_text("sasl.password=hidden\n")
    path.chmod(mode)

    read_kafka_config(path)

    assert [f"{path} can be read by every user of this machine" in text for text in caplog.messages] == [True] * warned
    assert "hidden" not in caplog.text
