"""librdkafka's own functions: the library that confluent_kafka has loaded, with the types of what is called here.

confluent_kafka makes a Python object of each message; what must not do that calls the library itself. The functions and
structures are those of its public header, ``rdkafka.h``, and stay as they are while its ABI does.
"""

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_size_t, c_ssize_t, c_void_p
from functools import cache
from typing import Any, ClassVar

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from unskew.features.errors import StoreUnavailable

PRODUCER, CONSUMER = 0, 1
"""``rd_kafka_type_t``"""
NO_LEAVING = 0x8
"""Of ``rd_kafka_destroy_flags``: do not leave a group first."""
_ERROR_BYTES = 512


class Message(ctypes.Structure):
    """``rd_kafka_message_t``."""

    _fields_: ClassVar = [
        ("err", c_int),
        ("rkt", c_void_p),
        ("partition", c_int32),
        ("payload", c_void_p),
        ("len", c_size_t),
        ("key", c_void_p),
        ("key_len", c_size_t),
        ("offset", c_int64),
        ("_private", c_void_p),
    ]


class Place(ctypes.Structure):
    """``rd_kafka_topic_partition_t``."""

    _fields_: ClassVar = [
        ("topic", c_char_p),
        ("partition", c_int32),
        ("offset", c_int64),
        ("metadata", c_void_p),
        ("metadata_size", c_size_t),
        ("opaque", c_void_p),
        ("err", c_int),
        ("_private", c_void_p),
    ]


class Places(ctypes.Structure):
    """``rd_kafka_topic_partition_list_t``."""

    _fields_: ClassVar = [("cnt", c_int), ("size", c_int), ("elems", POINTER(Place))]


ON_ERROR = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_char_p, c_void_p)
"""The type of an error callback: handle, code, text, opaque."""

# Name: result, arguments.
_FUNCTIONS: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "rd_kafka_conf_new": (c_void_p, ()),
    "rd_kafka_conf_set": (c_int, (c_void_p, c_char_p, c_char_p, c_char_p, c_size_t)),
    "rd_kafka_conf_set_error_cb": (None, (c_void_p, ON_ERROR)),
    "rd_kafka_conf_destroy": (None, (c_void_p,)),
    "rd_kafka_new": (c_void_p, (c_int, c_void_p, c_char_p, c_size_t)),
    "rd_kafka_destroy": (None, (c_void_p,)),
    "rd_kafka_destroy_flags": (None, (c_void_p, c_int)),
    "rd_kafka_err2str": (c_char_p, (c_int,)),
    "rd_kafka_last_error": (c_int, ()),
    "rd_kafka_fatal_error": (c_int, (c_void_p, c_char_p, c_size_t)),
    "rd_kafka_poll_set_consumer": (c_int, (c_void_p,)),
    "rd_kafka_queue_get_consumer": (c_void_p, (c_void_p,)),
    "rd_kafka_queue_destroy": (None, (c_void_p,)),
    "rd_kafka_consume_batch_queue": (c_ssize_t, (c_void_p, c_int, c_void_p, c_size_t)),
    "rd_kafka_message_timestamp": (c_int64, (c_void_p, c_void_p)),
    "rd_kafka_message_leader_epoch": (c_int32, (c_void_p,)),
    "rd_kafka_message_headers": (c_int, (c_void_p, c_void_p)),
    "rd_kafka_message_destroy": (None, (c_void_p,)),
    "rd_kafka_header_get_all": (c_int, (c_void_p, c_size_t, c_void_p, c_void_p, c_void_p)),
    "rd_kafka_topic_new": (c_void_p, (c_void_p, c_char_p, c_void_p)),
    "rd_kafka_topic_name": (c_char_p, (c_void_p,)),
    "rd_kafka_topic_destroy": (None, (c_void_p,)),
    "rd_kafka_topic_partition_list_new": (POINTER(Places), (c_int,)),
    "rd_kafka_topic_partition_list_add": (POINTER(Place), (POINTER(Places), c_char_p, c_int32)),
    "rd_kafka_topic_partition_list_destroy": (None, (POINTER(Places),)),
    "rd_kafka_topic_partition_set_leader_epoch": (None, (POINTER(Place), c_int32)),
    "rd_kafka_incremental_assign": (c_void_p, (c_void_p, POINTER(Places))),
    "rd_kafka_incremental_unassign": (c_void_p, (c_void_p, POINTER(Places))),
    "rd_kafka_seek_partitions": (c_void_p, (c_void_p, POINTER(Places), c_int)),
    "rd_kafka_pause_partitions": (c_int, (c_void_p, POINTER(Places))),
    "rd_kafka_resume_partitions": (c_int, (c_void_p, POINTER(Places))),
    "rd_kafka_position": (c_int, (c_void_p, POINTER(Places))),
    "rd_kafka_get_watermark_offsets": (c_int, (c_void_p, c_char_p, c_int32, POINTER(c_int64), POINTER(c_int64))),
    "rd_kafka_error_code": (c_int, (c_void_p,)),
    "rd_kafka_error_string": (c_char_p, (c_void_p,)),
    "rd_kafka_error_destroy": (None, (c_void_p,)),
    "rd_kafka_mock_cluster_new": (c_void_p, (c_void_p, c_int)),
    "rd_kafka_mock_cluster_destroy": (None, (c_void_p,)),
    "rd_kafka_mock_cluster_bootstraps": (c_char_p, (c_void_p,)),
    "rd_kafka_mock_broker_set_up": (c_int, (c_void_p, c_int32)),
    "rd_kafka_mock_push_request_errors_array": (None, (c_void_p, ctypes.c_int16, c_size_t, POINTER(c_int))),
    "rd_kafka_mock_clear_request_errors": (None, (c_void_p, ctypes.c_int16)),
    "rd_kafka_mock_topic_create": (c_int, (c_void_p, c_char_p, c_int, c_int)),
}


@cache
def library(*, quick: bool = False) -> Any:
    """Return the library. Raises ``StoreUnavailable`` if its functions cannot be found.

    ``quick``: for calls that return at once. They keep Python's lock, for which a thread that gives it away would wait
    many times as long.
    """
    # Its extension module depends on the library, so that is searched too, wherever it lies.
    path = confluent_kafka.cimpl.__file__
    try:
        found = ctypes.PyDLL(path) if quick else ctypes.CDLL(path)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(found, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise StoreUnavailable(
            f"Kafka is read by functions of librdkafka, which {path} does not offer ({error}): install confluent-kafka from "
            "its wheel, or build it with a shared librdkafka"
        ) from error
    return found


def address_of(name: str) -> int:
    """Return the address of a function, for compiled code."""
    return ctypes.cast(getattr(library(), name), c_void_p).value or 0


def client(kind: int, config: Mapping[str, object], on_error: Any = None) -> int:
    """Return the handle of a new client. Raises ``KafkaException`` if the library refuses a setting.

    ``on_error``: an ``ON_ERROR``, which must live as long as the client.
    """
    lib = library()
    said = ctypes.create_string_buffer(_ERROR_BYTES)
    conf = lib.rd_kafka_conf_new()
    for name, value in config.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if lib.rd_kafka_conf_set(conf, name.encode(), text.encode(), said, len(said)):
            lib.rd_kafka_conf_destroy(conf)
            raise KafkaException(KafkaError(KafkaError._INVALID_ARG, said.value.decode()))  # noqa: SLF001 - public
    if on_error is not None:
        lib.rd_kafka_conf_set_error_cb(conf, on_error)
    handle: int | None = lib.rd_kafka_new(kind, conf, said, len(said))
    if not handle:
        lib.rd_kafka_conf_destroy(conf)
        raise KafkaException(KafkaError(KafkaError._INVALID_ARG, said.value.decode()))  # noqa: SLF001 - public
    return handle
