"""Records as librdkafka fetched them, as columns: what its ``consume_batch`` gives is taken apart by compiled code.

A message is a structure of the library, which owns what that points to. ``_look`` notes what messages hold, ``_keep``
copies their bytes and gives them back. Few messages take less time than it takes to get Python's lock again, so both
keep it, and ``take`` sees to it that the bytes are not many.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import c_int64, create_string_buffer, string_at
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from unskew.features.jit import array_at, compiled, inner
from unskew.pipelines.kafka.blobs import NO_BLOBS, Blobs
from unskew.pipelines.kafka.headers import PART_BYTES, Headers
from unskew.pipelines.kafka.librdkafka import CONSUMER, NO_LEAVING, ON_ERROR, Message, address_of, client, library

_END_OF_PARTITION = KafkaError._PARTITION_EOF  # noqa: SLF001 - local error codes begin with an underscore, but are public
_FATAL = KafkaError._FATAL  # noqa: SLF001

_ERR: Final = Message.err.offset
_RKT: Final = Message.rkt.offset
_PARTITION: Final = Message.partition.offset
_PAYLOAD: Final = Message.payload.offset
_LEN: Final = Message.len.offset
_KEY: Final = Message.key.offset
_KEY_LEN: Final = Message.key_len.offset
_OFFSET: Final = Message.offset.offset

# Words that compiled code and this module share: addresses of functions and arrays, results, and room for what the
# library writes.
_TIMESTAMP, _EPOCH, _HEADERS_OF, _HEADER, _DESTROY, _MESSAGES_AT, _COLUMNS_AT, _ROOM_AT = range(8)
_MOST, _N_RECORDS, _N_ERRORS, _ROOM = range(8, 12)
_N_WORDS: Final = _ROOM + 4

# What ``_look`` notes of each record. "Edges" are where its bytes begin among those of all, and one more is their end.
_TOPICS, _PARTITIONS, _OFFSETS, _KINDS, _STAMPS_MS, _EPOCHS, _KEY_SIZES, _VALUE_SIZES, _HEADER_SIZES = range(9)
_KEY_EDGES, _VALUE_EDGES, _HEADER_EDGES = range(9, 12)
_N_COLUMNS: Final = _HEADER_EDGES + 1


@dataclass(frozen=True, slots=True)
class Fault:
    """An error that came in place of a record. ``topic``: empty if it is not about one."""

    error: KafkaError
    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Taken:
    """Columns of equal length, for each record; and for what came in place of records.

    ``topics``: see ``Fetcher.topic_of``. ``kinds``: Kafka's timestamp types. ``epochs``: leader epochs, -1 if the
    broker gave none. ``ends``: topic, partition and offset of the ends of partitions that were reached.
    ``all_there_was``: true if nothing more had been fetched.
    """

    topics: npt.NDArray[np.int64]
    partitions: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    stamps_ms: npt.NDArray[np.int64]
    epochs: npt.NDArray[np.int64]
    keys: Blobs
    values: Blobs
    headers: Headers
    ends: Sequence[tuple[str, int, int]]
    faults: Sequence[Fault]
    all_there_was: bool

    @property
    def n_messages(self) -> int:
        """The number of records, ends and faults."""
        return len(self.offsets) + len(self.ends) + len(self.faults)


_MOST_BYTES = 1 << 20
"""So many bytes are taken at once, if records are as long as those before."""
_FIRST = 500
_NO_NUMBERS = np.empty(0, np.int64)
_NOTHING = Taken(
    topics=_NO_NUMBERS,
    partitions=_NO_NUMBERS,
    offsets=_NO_NUMBERS,
    kinds=_NO_NUMBERS,
    stamps_ms=_NO_NUMBERS,
    epochs=_NO_NUMBERS,
    keys=NO_BLOBS,
    values=NO_BLOBS,
    headers=Headers.none(0),
    ends=(),
    faults=(),
    all_there_was=True,
)


class Fetcher:
    """A consumer whose partitions are assigned one by one, and never by a group.

    ``config``: librdkafka's settings. ``most``: how many messages are taken at once, at most. ``on_error``: called for
    errors that are not about a partition, while messages are taken. Methods raise ``KafkaException``. All but
    ``position`` are called by one thread at a time.
    """

    def __init__(self, config: Mapping[str, object], most: int, on_error: Callable[[KafkaError], None]) -> None:
        self._library, self._quick = library(), library(quick=True)
        self._on_error = on_error
        # The library calls it as long as the consumer is there.
        self._called = ON_ERROR(self._note_error)
        self._handle: int | None = client(CONSUMER, config, self._called)
        # Callbacks come to whoever takes messages.
        self._library.rd_kafka_poll_set_consumer(self._handle)
        self._topics: dict[int, str] = {}
        self._most = most
        # The mean length of the records that were taken last.
        self._mean_bytes = _MOST_BYTES // _FIRST
        # The addresses of records, and those of what came in their place.
        self._messages = np.empty((2, most), np.int64)
        self._columns = np.empty((_N_COLUMNS, most + 1), np.int64)
        self._low, self._high = c_int64(), c_int64()
        words = self._words = np.zeros(_N_WORDS, np.int64)
        for word, name in (
            (_TIMESTAMP, "rd_kafka_message_timestamp"),
            (_EPOCH, "rd_kafka_message_leader_epoch"),
            (_HEADERS_OF, "rd_kafka_message_headers"),
            (_HEADER, "rd_kafka_header_get_all"),
            (_DESTROY, "rd_kafka_message_destroy"),
        ):
            words[word] = address_of(name)
        self._queue: int = self._library.rd_kafka_queue_get_consumer(self._handle)
        words[_MOST] = most
        words[_MESSAGES_AT] = self._messages_at = self._messages.ctypes.data
        words[_COLUMNS_AT] = self._columns.ctypes.data
        words[_ROOM_AT] = words[_ROOM:].ctypes.data

    def assign(self, topic: str, partition: int, offset: int) -> None:
        """Begin to fetch a partition from an offset on."""
        if topic not in self._topics.values():
            # While this is held, no other topic can have the same address.
            held = self._quick.rd_kafka_topic_new(self._open, topic.encode(), None)
            if held is None:
                raise KafkaException(KafkaError(self._quick.rd_kafka_last_error()))
            self._topics[held] = topic
        with _places(topic, partition, offset) as (places, _):
            self._check(self._library.rd_kafka_incremental_assign(self._open, places))

    def unassign(self, topic: str, partition: int) -> None:
        """Fetch a partition no more."""
        with _places(topic, partition) as (places, _):
            self._check(self._library.rd_kafka_incremental_unassign(self._open, places))

    def seek(self, topic: str, partition: int, offset: int, epoch: int) -> None:
        """Go on at an offset, if the record before it has this leader epoch; if not, a fault comes."""
        with _places(topic, partition, offset) as (places, place):
            self._library.rd_kafka_topic_partition_set_leader_epoch(place, epoch)
            self._check(self._library.rd_kafka_seek_partitions(self._open, places, -1))
            self._check_code(place.contents.err)

    def pause(self, topic: str, partition: int) -> None:
        """Fetch no more of a partition until ``resume``."""
        with _places(topic, partition) as (places, _):
            self._check_code(self._quick.rd_kafka_pause_partitions(self._open, places))

    def resume(self, topic: str, partition: int) -> None:
        """Fetch a partition again."""
        with _places(topic, partition) as (places, _):
            self._check_code(self._quick.rd_kafka_resume_partitions(self._open, places))

    def position(self, topic: str, partition: int) -> int:
        """Return the offset after the last record that was taken; negative if none was."""
        with _places(topic, partition, OFFSET_INVALID) as (places, place):
            self._check_code(self._library.rd_kafka_position(self._open, places))
            offset: int = place.contents.offset
            return offset

    def high(self, topic: str, partition: int) -> int:
        """Return the high watermark that came with the last fetch; negative before the first."""
        code = self._quick.rd_kafka_get_watermark_offsets(self._open, topic.encode(), partition, self._low, self._high)
        self._check_code(code)
        return self._high.value

    def topic_of(self, address: int) -> str:
        """Return the name of a topic, as ``Taken.topics`` has it."""
        return self._topics[address]

    def take(self, limit: int, timeout_s: float = 0.0) -> Taken:
        """Take up to ``limit`` messages, fewer if they are long; wait for so many, or for a time.

        Long ones are taken a few at a time, because Python's lock is kept meanwhile.
        """
        _ = self._open
        wanted = max(min(limit, self._most, _MOST_BYTES // self._mean_bytes), 1)
        library = self._library if timeout_s else self._quick
        count = library.rd_kafka_consume_batch_queue(self._queue, int(timeout_s * 1000), self._messages_at, wanted)
        if count <= 0:
            return _NOTHING
        _look(self._words, count)
        n_records, n_errors = self._words[_N_RECORDS:_ROOM].tolist()
        columns = self._columns[:, : n_records + 1].copy()
        ends, faults = self._errors(n_errors) if n_errors else ((), ())
        n_keys, n_values, n_headers = columns[_KEY_EDGES:, n_records].tolist()
        octets = np.empty(n_keys + n_values + n_headers, np.uint8)
        if n_records:
            self._mean_bytes = len(octets) // n_records + 1
        _keep(self._words, columns, octets)
        octets.flags.writeable = False
        numbers, edges = columns[:_KEY_EDGES, :n_records], columns[_KEY_EDGES:]
        return Taken(
            numbers[_TOPICS],
            numbers[_PARTITIONS],
            numbers[_OFFSETS],
            numbers[_KINDS],
            numbers[_STAMPS_MS],
            numbers[_EPOCHS],
            Blobs(octets[:n_keys], numbers[_KEY_SIZES], edges[0]),
            Blobs(octets[n_keys : n_keys + n_values], numbers[_VALUE_SIZES], edges[1]),
            Headers(Blobs(octets[n_keys + n_values :], numbers[_HEADER_SIZES], edges[2])),
            ends,
            faults,
            count < wanted,
        )

    def _errors(self, count: int) -> tuple[list[tuple[str, int, int]], list[Fault]]:
        """Return the ends of partitions, and the faults, among what came last."""
        ends, faults = [], []
        for address in self._messages[1, :count].tolist():
            message = Message.from_address(address)
            topic = "" if message.rkt is None else self._topics.get(message.rkt)
            if topic is None:
                topic = self._library.rd_kafka_topic_name(message.rkt).decode()
            if message.err == _END_OF_PARTITION:
                ends.append((topic, message.partition, message.offset))
                continue
            text = string_at(message.payload, message.len).decode(errors="replace") if message.payload else None
            faults.append(Fault(self._error(message.err, text), topic, message.partition, message.offset))
        return ends, faults

    def close(self) -> None:
        """Stop; nothing else may be called afterwards. It waits until the threads of the library have ended."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        self._library.rd_kafka_queue_destroy(self._queue)
        for held in self._topics:
            self._library.rd_kafka_topic_destroy(held)
        self._library.rd_kafka_destroy_flags(handle, NO_LEAVING)

    @property
    def _open(self) -> int:
        if self._handle is None:
            raise RuntimeError("the consumer is closed")
        return self._handle

    def _note_error(self, _handle: int, code: int, text: bytes, _opaque: int) -> None:
        self._on_error(self._error(code, text.decode(errors="replace")))

    def _error(self, code: int, text: str | None) -> KafkaError:
        if code != _FATAL or self._handle is None:
            return KafkaError(code) if text is None else KafkaError(code, text)
        said = create_string_buffer(512)
        code = self._library.rd_kafka_fatal_error(self._handle, said, len(said))
        return KafkaError(code, said.value.decode(errors="replace"), fatal=True)

    def _check(self, error: int | None) -> None:
        """Raise what a call returned, unless it is nothing."""
        if error is None:
            return
        code, text = self._library.rd_kafka_error_code(error), self._library.rd_kafka_error_string(error).decode()
        self._library.rd_kafka_error_destroy(error)
        raise KafkaException(KafkaError(code, text))

    def _check_code(self, code: int) -> None:
        if code:
            raise KafkaException(KafkaError(code))


@contextmanager
def _places(topic: str, partition: int, offset: int = OFFSET_INVALID) -> Iterator[tuple[Any, Any]]:
    """Yield the library's list of one partition, and its only element."""
    lib = library(quick=True)
    places = lib.rd_kafka_topic_partition_list_new(1)
    try:
        place = lib.rd_kafka_topic_partition_list_add(places, topic.encode(), partition)
        place.contents.offset = offset
        yield places, place
    finally:
        lib.rd_kafka_topic_partition_list_destroy(places)


_WORD, _INT = ir.IntType(64), ir.IntType(32)


def _caller(result: Any, *kinds: Any) -> Any:
    """Return what calls a C function at an address with numbers and addresses, a tuple of words, and returns a word."""

    def call(_typing: Any, address: Any, arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            words = cgutils.unpack_tuple(builder, given[1], len(kinds))
            taken = [
                builder.trunc(word, kind) if kind is _INT else word for word, kind in zip(words, kinds, strict=True)
            ]
            function = builder.inttoptr(given[0], ir.FunctionType(result, kinds).as_pointer())
            found = builder.call(function, taken)
            if result is _WORD:
                return found
            return builder.sext(found, _WORD) if result is _INT else context.get_constant(signature.return_type, 0)

        return types.int64(address, arguments), generate

    return intrinsic(call)


def _loader(kind: Any, extended: str) -> Any:
    """Return what returns the number at an address as a word; ``extended``: zext or sext."""

    def load(_typing: Any, address: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
            number = builder.load(builder.inttoptr(given[0], kind.as_pointer()))
            return number if kind is _WORD else getattr(builder, extended)(number, _WORD)

        return types.int64(address), generate

    return intrinsic(load)


def _copy(_typing: Any, array: Any, place: Any, address: Any, size: Any) -> Any:
    """Copy bytes from an address to a place of an array."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        made = context.make_array(signature.args[0])(context, builder, given[0])
        to = cgutils.get_item_pointer(context, builder, signature.args[0], made, [given[1]], wraparound=False)
        cgutils.raw_memcpy(builder, to, builder.inttoptr(given[2], to.type), given[3], 1)
        return context.get_dummy_value()

    return types.none(array, place, address, size), generate


word_at: Any = _loader(_WORD, "sext")
int_at: Any = _loader(_INT, "sext")
octet_at: Any = _loader(ir.IntType(8), "zext")
copy_to: Any = intrinsic(_copy)
timestamp_of: Any = _caller(_WORD, _WORD, _WORD)
epoch_of: Any = _caller(_INT, _WORD)
headers_of: Any = _caller(_INT, _WORD, _WORD)
header_of: Any = _caller(_INT, _WORD, _WORD, _WORD, _WORD, _WORD)
destroy: Any = _caller(ir.VoidType(), _WORD)


@compiled(nogil=False)
def _look(words: npt.NDArray[np.int64], count: int) -> None:
    """Note what messages hold. Records come first in row 0 of the messages; what came in their place is in row 1."""
    messages = array_at(words[_MESSAGES_AT], (2, words[_MOST]), words)
    columns = array_at(words[_COLUMNS_AT], (_N_COLUMNS, words[_MOST] + 1), words)
    room = words[_ROOM_AT]
    row = n_errors = 0
    n_keys = n_values = n_headers = 0
    for each in range(count):
        message = messages[0, each]
        if int_at(message + _ERR) != 0:
            messages[1, n_errors] = message
            n_errors += 1
            continue
        messages[0, row] = message
        columns[_TOPICS, row] = word_at(message + _RKT)
        columns[_PARTITIONS, row] = int_at(message + _PARTITION)
        columns[_OFFSETS, row] = word_at(message + _OFFSET)
        columns[_STAMPS_MS, row] = timestamp_of(words[_TIMESTAMP], (message, room))
        columns[_KINDS, row] = int_at(room)
        columns[_EPOCHS, row] = epoch_of(words[_EPOCH], (message,))
        columns[_KEY_EDGES, row], columns[_VALUE_EDGES, row], columns[_HEADER_EDGES, row] = n_keys, n_values, n_headers
        size = word_at(message + _KEY_LEN) if word_at(message + _KEY) else -1
        columns[_KEY_SIZES, row] = size
        n_keys += max(size, 0)
        size = word_at(message + _LEN) if word_at(message + _PAYLOAD) else -1
        columns[_VALUE_SIZES, row] = size
        n_values += max(size, 0)
        size = _headers_size(words, message)
        columns[_HEADER_SIZES, row] = size
        n_headers += max(size, 0)
        row += 1
    columns[_KEY_EDGES, row], columns[_VALUE_EDGES, row], columns[_HEADER_EDGES, row] = n_keys, n_values, n_headers
    words[_N_RECORDS], words[_N_ERRORS] = row, n_errors


@inner()
def _headers_size(words: npt.NDArray[np.int64], message: int) -> int:
    """Return the length of the headers of a message as ``Headers`` has them; -1 if there are none."""
    room = words[_ROOM_AT]
    if headers_of(words[_HEADERS_OF], (message, room)) != 0:
        return -1
    headers = word_at(room)
    size = number = 0
    while header_of(words[_HEADER], (headers, number, room, room + 8, room + 16)) == 0:
        size += PART_BYTES + _name_size(word_at(room))
        if word_at(room + 8):
            size += word_at(room + 16)
        number += 1
    return size


@inner()
def _name_size(name: int) -> int:
    size = 0
    while octet_at(name + size) != 0:
        size += 1
    return size


@compiled(nogil=False)
def _keep(words: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], octets: npt.NDArray[np.uint8]) -> None:
    """Copy the bytes of the records that ``_look`` noted, and give all messages back.

    Keys come first, then values, then headers.
    """
    messages = array_at(words[_MESSAGES_AT], (2, words[_MOST]), words)
    n_records = columns.shape[1] - 1
    of_values = columns[_KEY_EDGES, n_records]
    of_headers = of_values + columns[_VALUE_EDGES, n_records]
    for row in range(n_records):
        message = messages[0, row]
        if columns[_KEY_SIZES, row] > 0:
            copy_to(octets, columns[_KEY_EDGES, row], word_at(message + _KEY), columns[_KEY_SIZES, row])
        if columns[_VALUE_SIZES, row] > 0:
            at = of_values + columns[_VALUE_EDGES, row]
            copy_to(octets, at, word_at(message + _PAYLOAD), columns[_VALUE_SIZES, row])
        if columns[_HEADER_SIZES, row] > 0:
            _keep_headers(words, message, octets, of_headers + columns[_HEADER_EDGES, row])
        destroy(words[_DESTROY], (message,))
    for each in range(words[_N_ERRORS]):
        destroy(words[_DESTROY], (messages[1, each],))


@inner()
def _keep_headers(words: npt.NDArray[np.int64], message: int, kept: npt.NDArray[np.uint8], at: int) -> None:
    """Copy the headers of a message to a place."""
    room = words[_ROOM_AT]
    headers_of(words[_HEADERS_OF], (message, room))
    headers = word_at(room)
    number = 0
    while header_of(words[_HEADER], (headers, number, room, room + 8, room + 16)) == 0:
        name, value = word_at(room), word_at(room + 8)
        n_name = _name_size(name)
        n_value = word_at(room + 16) if value else -1
        for place in range(4):
            kept[at + place] = n_name >> 8 * place & 255
            kept[at + 4 + place] = n_value >> 8 * place & 255
        at += PART_BYTES
        copy_to(kept, at, name, n_name)
        at += n_name
        if n_value > 0:
            copy_to(kept, at, value, n_value)
            at += n_value
        number += 1
