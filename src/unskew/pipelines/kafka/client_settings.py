"""A deployment's settings of the Kafka client: encryption, credentials, and any other setting of librdkafka.

They are read from a file, as by Kafka's own tools, so that a secret is neither a command-line argument, which a list of
processes shows, nor an environment variable.
"""

import logging
import stat
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
"""Settings on which the pipeline's guarantees rest; the file must not set them."""

_log = logging.getLogger("unskew.kafka")
_SECRET = ("password", "secret", "token", "oauthbearer.config", ".key.pem", "key.string")


def read_kafka_config(path: Path) -> Mapping[str, str]:
    """Read settings by name from lines ``name=value``; ``#`` begins a comment line.

    Raises ``RequestError`` that names the line if it is malformed, repeats a name, or sets one of ``OURS``, and also if
    librdkafka refuses the settings. Error texts never contain a secret.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"--kafka-config {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}; give a file of lines name=value"
        ) from None
    if path.stat().st_mode & stat.S_IROTH:
        _log.warning("%s can be read by every user of this machine, and it may hold secrets: chmod 600 it", path)
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
                f"--kafka-config {path}, line {number}: the pipeline sets {name} itself; remove the line"
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
        raise RequestError(f"--kafka-config {path}: {said}; librdkafka's CONFIGURATION.md lists the settings") from None
