"""Merging of Parquet files into one with the same rows in the same order, compared with its sources before publication.

Rows are copied in batches, so a row group of the result and one of a source bound the memory.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unskew.features.errors import LayoutError
from unskew.sinks import durable
from unskew.sinks.objects import at_hand
from unskew.sinks.tables import checksum
from unskew.sinks.tables.encodings import COMPRESSION, encodings
from unskew.sinks.tables.layout import LEFT_OUT, TableFile, origin_of

# Bytes of values in memory; a group of narrow rows reaches _GROUP_ROWS first.
_GROUP_BYTES = 64 << 20
_GROUP_ROWS = 1 << 18
_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 1 << 16
# On logs of counts and sums: a tenth smaller than the default, at a third of its speed. Files are merged once and read
# often.
_LEVEL = 9
# The Arrow schema, which Arrow's writer adds again.
_ARROW_SCHEMA = b"ARROW:schema"


class Unmergeable(LayoutError):
    """A file does not match its name or cannot be read; all files stay as they are."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A published file and the content of its footer.

    ``n_left_out``: the rows that its name covers and it does not hold. ``schema`` includes all other metadata.
    """

    file: TableFile
    n_bytes: int
    n_rows: int
    n_left_out: int
    schema: Any

    @property
    def path(self) -> Path:
        return self.file.path

    def like(self, other: "Source") -> bool:
        """Return whether the two may be merged: same columns, types, and metadata of file and columns."""
        return bool(self.schema.equals(other.schema, check_metadata=True))


def source(file: TableFile, n_bytes: int) -> Source:
    """Verify a file's checksum and read its footer; raises ``Unmergeable`` if it is damaged."""
    with _damage(file.path), _opened(whole(file.path)) as opened:
        return Source(
            file=file,
            n_bytes=n_bytes,
            n_rows=opened.metadata.num_rows,
            n_left_out=_n_left_out(opened.metadata),
            schema=_schema(opened),
        )


def merge(
    sources: Sequence[Source],
    temporary: Path,
    *,
    target_bytes: int,
    progress: Callable[[Source], None] = lambda _source: None,
) -> Sequence[Source]:
    """Write the rows of the first ``sources`` that fit into ``target_bytes``, and return these sources.

    The file is durable at return. ``sources``: ``like`` each other, in the order of their rows. At least two are taken,
    so these must fit.
    """
    schema = sources[0].schema
    n_taken = 0
    with durable.new_file(temporary) as sink:
        with _damage(sources[0].path):
            encodings = _encodings(sources[0].path)
        with pq.ParquetWriter(sink, schema, compression=COMPRESSION, compression_level=_LEVEL, **encodings) as writer:
            group: list[Any] = []
            n_rows = n_values = n_unwritten = 0
            for one in sources:
                # Buffered rows take at most as much space in the result as in their sources.
                if n_taken >= 2 and sink.tell() + n_unwritten + one.n_bytes > target_bytes:
                    break
                n_taken += 1
                n_unwritten += one.n_bytes
                for batch in _batches(one.path):
                    group.append(batch)
                    n_rows += batch.num_rows
                    n_values += batch.nbytes
                    if n_rows >= _GROUP_ROWS or n_values >= _GROUP_BYTES:
                        writer.write_table(pa.Table.from_batches(group, schema), row_group_size=n_rows)
                        group = []
                        n_rows = n_values = n_unwritten = 0
                progress(one)
            if group:
                writer.write_table(pa.Table.from_batches(group, schema), row_group_size=max(1, n_rows))
            _note_left_out(writer, sum(one.n_left_out for one in sources[:n_taken]))
        checksum.seal_file(temporary, sink)
        durable.flush(sink)
    return sources[:n_taken]


def rewrite(
    sources: Sequence[Source], temporary: Path, change: Callable[[pl.DataFrame], pl.DataFrame], *, counts: bool
) -> None:
    """Write the rows of all ``sources`` as ``change`` returns them; the file is durable at return.

    ``change``: leaves columns and types as they are. ``counts``: the file says how many rows it lacks; for tables that
    have a row for each number. The metadata are those of the last source. Raises ``Unmergeable`` if columns differ.
    """
    schema = sources[-1].schema
    for one in sources:
        if not one.schema.equals(schema):
            raise Unmergeable(f"{one.path} has other columns than {sources[-1].path.name}; left alone")
    n_kept = 0
    with durable.new_file(temporary) as sink:
        with _damage(sources[0].path):
            encodings = _encodings(sources[0].path)
        with pq.ParquetWriter(sink, schema, compression=COMPRESSION, compression_level=_LEVEL, **encodings) as writer:
            for one in sources:
                for batch in _batches(one.path):
                    changed = change(pl.DataFrame(pl.from_arrow(batch)))
                    n_kept += changed.height
                    if changed.height:
                        writer.write_table(changed.to_arrow().cast(schema), row_group_size=_GROUP_ROWS)
            if counts:
                _note_left_out(writer, sum(one.n_rows + one.n_left_out for one in sources) - n_kept)
        checksum.seal_file(temporary, sink)
        durable.flush(sink)


def names_of(path: Path) -> list[str]:
    """Return the names of a file's columns; raises ``Unmergeable`` if it is damaged."""
    with _damage(path), _opened(whole(path)) as opened:
        return list(opened.schema_arrow.names)


def columns_of(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield some columns of a file, in bounded pieces; those that it lacks are left out."""
    with _damage(path), _opened(path) as opened:
        there = [name for name in columns if name in opened.schema_arrow.names]
        for batch in opened.iter_batches(batch_size=_batch_size(opened), columns=there, use_threads=False):
            yield pl.DataFrame(pl.from_arrow(batch))


def verify(merged: Path, sources: Sequence[Source], *, sequence: str | None, gapless: bool) -> None:
    """Read the merged file and its sources again, and raise ``Unmergeable`` unless they are the same, row by row.

    Compares columns, types, metadata, the number of rows, every value bit for bit, and the sequence numbers that the
    names promise. ``sequence``: the column with these numbers, None if there is none. ``gapless``: whether there is a
    row for each number.
    """
    first, last = sources[0].file.first, sources[-1].file.last
    where = f"{sources[0].path} to {sources[-1].path.name}"
    result = source(TableFile(path=merged, writer=sources[0].file.writer, first=first, last=last), 0)
    if not result.like(sources[0]):
        raise Unmergeable(f"{where}: the merged file has other columns or metadata; left alone")
    n_rows = sum(one.n_rows for one in sources)
    n_left_out = sum(one.n_left_out for one in sources)
    if (result.n_rows, result.n_left_out) != (n_rows, n_left_out) or (
        gapless and n_rows + n_left_out != last - first + 1
    ):
        raise Unmergeable(f"{where}: {n_rows} rows by their footers, {result.n_rows} merged; left alone")
    wanted = (batch for one in sources for batch in _batches(one.path))
    if not _same_rows(_batches(merged), wanted):
        raise Unmergeable(f"{where}: the merged file has other rows; left alone")
    if sequence is not None and n_rows:
        origin = origin_of(sources[0].file.writer)
        low, high = (number - origin for number in _numbers(merged, sequence) or (origin - 1, origin - 1))
        if (low, high) != (first, last) and not (n_left_out and first <= low and high <= last):
            raise Unmergeable(f"{where}: their {sequence} are not those from {first} to {last} in order; left alone")


def whole(path: Path) -> Path:
    """Return the path of a file that is as it was written; raises ``Unmergeable`` if it is damaged."""
    with _damage(path):
        checksum.verify(path)
    return path


def n_rows(path: Path) -> int:
    """Return the number of rows in a file's footer, with those that were erased.

    Raises ``Unmergeable`` if it cannot be read.
    """
    with _damage(path), _opened(path) as opened:
        return int(opened.metadata.num_rows) + _n_left_out(opened.metadata)


def _n_left_out(footer: Any) -> int:
    return int((footer.metadata or {}).get(LEFT_OUT.encode(), 0))


def _note_left_out(writer: Any, n_left_out: int) -> None:
    if n_left_out:
        writer.add_key_value_metadata({LEFT_OUT: str(n_left_out)})


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn Arrow's various errors about damaged bytes into ``Unmergeable``; errors of the disk pass through."""
    try:
        yield
    except LayoutError as error:
        raise Unmergeable(f"{error}; left alone") from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Unmergeable(f"{path} is damaged ({error}); left alone") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with at_hand([path]) as there, pq.ParquetFile(there[path]) as opened:
        yield opened


def _schema(opened: Any) -> Any:
    """Return the columns, with the metadata of the file."""
    metadata: Mapping[bytes, bytes] = opened.metadata.metadata or {}
    # Every file that is written here has a checksum, also one made of files without.
    name, text = checksum.METADATA
    kept = {**metadata, name.encode(): text.encode()}
    kept.pop(_ARROW_SCHEMA, None)
    kept.pop(LEFT_OUT.encode(), None)
    return opened.schema_arrow.with_metadata(dict(sorted(kept.items())))


def _encodings(path: Path) -> Mapping[str, Any]:
    with _opened(path) as opened:
        return encodings(opened.schema)


def _batches(path: Path) -> Iterator[Any]:
    with _damage(path), _opened(path) as opened:
        # Most sources are small files, for which threads would cost more than reading.
        yield from opened.iter_batches(batch_size=_batch_size(opened), use_threads=False)


def _batch_size(opened: Any) -> int:
    n_bytes = sum(opened.metadata.row_group(at).total_byte_size for at in range(opened.metadata.num_row_groups))
    per_row = max(1, n_bytes // max(1, opened.metadata.num_rows))
    return int(min(_BATCH_ROWS, max(1, _BATCH_BYTES // per_row)))


def _same_rows(found: Iterator[Any], wanted: Iterator[Any]) -> bool:
    """Return whether the batches hold the same rows, regardless of batch boundaries."""
    left, at = None, 0
    for right in wanted:
        done = 0
        while done < right.num_rows:
            while left is None or at == left.num_rows:
                left, at = next(found, None), 0
                if left is None:
                    return False
            n = min(left.num_rows - at, right.num_rows - done)
            pairs = zip(left.columns, right.columns, strict=True)
            if not all(_identical(one.slice(at, n), other.slice(done, n)) for one, other in pairs):
                return False
            at, done = at + n, done + n
    return (left is None or at == left.num_rows) and all(not batch.num_rows for batch in found)


def _identical(one: Any, other: Any) -> bool:
    """Return whether two arrays of one type have the same values: nulls are equal; floats only with the same bits."""
    kind = one.type
    if pa.types.is_floating(kind):
        bits = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[kind.bit_width]
        return bool(one.view(bits).equals(other.view(bits)))
    if pa.types.is_dictionary(kind):
        return bool(one.dictionary_decode().equals(other.dictionary_decode()))
    if pa.types.is_struct(kind):
        same = one.is_null().equals(other.is_null())
        return bool(same and all(map(_identical, one.flatten(), other.flatten())))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        same = pc.list_value_length(one).equals(pc.list_value_length(other))
        return bool(same and _identical(one.flatten(), other.flatten()))
    return bool(one.equals(other))


def _numbers(path: Path, column: str) -> tuple[int, int] | None:
    """Return first and last value of a column that increases from row to row; None if it does not."""
    first = last = None
    with _damage(path), _opened(path) as opened:
        if column not in opened.schema_arrow.names:
            return None
        for batch in opened.iter_batches(columns=[column]):
            if not batch.num_rows:
                continue
            if batch.column(0).null_count:
                return None
            # Arrow's own ``to_numpy`` imports pandas, where there is one, which takes most of a second.
            values = pl.Series(batch.column(0)).to_numpy()
            if not (np.diff(values) > 0).all() or (last is not None and values[0] <= last):
                return None
            first, last = int(values[0]) if first is None else first, int(values[-1])
    return None if first is None or last is None else (first, last)
