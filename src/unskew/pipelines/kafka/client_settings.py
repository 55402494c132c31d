"""Settings of the Kafka client that a deployment brings: encryption, credentials, and what else librdkafka knows.

They stand in a file, as for Kafka's own tools, so that no secret is an argument that a list of processes shows, nor a variable.
"""

from collections.abc import Mapping
from pathlib import Path

from confluent_kafka import KafkaException, Producer

from unskew.features.errors import RequestError

OURS = frozenset(
    {
        "bootstrap.servers",
        "metadata.broker.list",
        "group.id",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.partition.eof",
        "auto.offset.reset",
        "allow.auto.create.topics",
    }
)
"""What the pipeline's promises rest on, and is given elsewhere or not at all."""

_SECRET = ("password", "secret", "token", "oauthbearer.config", ".key.pem", "key.string")


def read_kafka_config(path: Path) -> Mapping[str, str]:
    """Settings by name, from lines ``name=value``; ``#`` begins a comment line.

    Raises ``RequestError`` that names the line that is none, is there twice, or sets what is not for the file to set; and where librdkafka does not
    take the settings. No text of an error holds a secret.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"--kafka-config {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}; give a file of lines name=value"
        ) from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or " " in name:
            raise RequestError(
                f"--kafka-config {path}, line {number}: write name=value, for example security.protocol=SSL"
            )
        if name in found:
            raise RequestError(f"--kafka-config {path}, line {number}: {name} is set twice; keep one of the lines")
        if name in OURS:
            raise RequestError(
                f"--kafka-config {path}, line {number}: {name} is not to be set there, as the pipeline sets it; leave it out"
            )
        found[name] = value
    _check(path, found)
    return found


def _check(path: Path, settings: Mapping[str, str]) -> None:
    try:
        Producer({"log_level": 0, **settings})
    except (KafkaException, TypeError, ValueError) as error:
        said = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        for name, value in settings.items():
            if value and any(word in name for word in _SECRET):
                said = said.replace(value, "***")
        raise RequestError(
            f"--kafka-config {path}: {said}; librdkafka's CONFIGURATION.md lists what there is"
        ) from None
