"""Parquet and Arrow files of anybody, read with bounds: no small file becomes a large table.

Pictures do not get smaller by compression or by dictionaries, so a file whose pages would grow much
when they are read, or that has more rows than bytes, holds no samples.

Of Arrow files, those that Hugging Face's ``save_to_disk`` writes: streams of record batches that
are neither compressed nor refer to dictionaries. Their frames are walked here, so that a length is
compared with the file before anything of that length is read; what a batch says of its own inside
is validated before a value is taken from it.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ecgan.errors import UserError, first_line
from ecgan.reading.documents import check_file
from ecgan.shards.files.tars import REMEDY

_GROWTH = 100  # most bytes of a column's pages for each byte in the file
_SMALL = 64 << 20  # a column's pages may have so many anyway
_BYTES_OF_ROW = 8  # least in a file: that of a picture is many more
_ROWS_AT_ONCE = 16
# What pyarrow makes of damage: in pages an OSError, in names and in text a ValueError
_FAULTS = (
    pa.ArrowException, OSError, ValueError, OverflowError, LookupError, TypeError, struct.error,
)  # fmt: skip
_ARROW = ".arrow"
_MOST_METADATA = 16 << 20  # bytes of a message's description
_SCHEMA, _RECORD_BATCH = 1, 3  # types of messages


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn what a damaged file makes of its readers into a sentence."""
    try:
        yield
    except FileNotFoundError:
        raise
    except _FAULTS as error:
        line = first_line(error)[:200].rstrip(".") if str(error) else type(error).__name__
        raise UserError(f"{place}: a damaged {_kind(place)} file: {line}; {REMEDY}") from error


def _kind(place: str) -> str:
    return "Arrow" if place.endswith(_ARROW) else "Parquet"


def open_table(file: BinaryIO | Path, place: str) -> "Table":
    """A Parquet or Arrow file, by the ending of its place.

    Raises:
        UserError: as :class:`Table` and :class:`StreamTable`.
    """
    return StreamTable(file, place) if place.endswith(_ARROW) else Table(file, place)


class Table:
    """A Parquet file, open.

    Args:
        file: the file.
        place: of the file, for messages.

    Attributes:
        names: columns, in order.
        starts: number of the first row of each row group, and of all rows.
        largest_group: bytes of the largest row group.

    Raises:
        UserError: damaged, or its tables are out of all proportion to its size.
    """

    def __init__(self, file: BinaryIO | Path, place: str) -> None:
        self.place = place
        self._read = 0  # bytes of rows so far
        with explained(place):
            size = file.stat().st_size if isinstance(file, Path) else file.seek(0, 2)
            self._file = pq.ParquetFile(file)
            about = self._file.metadata
            self.names: list[str] = self._file.schema_arrow.names
            groups = [about.row_group(i) for i in range(about.num_row_groups)]
            rows = [max(0, group.num_rows) for group in groups]
            self.largest_group = max((group.total_byte_size for group in groups), default=0)
            columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        self._most = max(_SMALL, size * _GROWTH)
        self._count(rows, about.num_rows, size)
        for column in columns:
            stored, whole = column.total_compressed_size, column.total_uncompressed_size
            if not 0 <= stored <= size or not 0 <= whole <= max(_SMALL, stored * _GROWTH):
                raise UserError(
                    f"{place}: {stored} bytes of the column {column.path_in_schema[:60]} would "
                    f"become {whole}; {REMEDY}"
                )

    def _count(self, rows: Sequence[int], total: int, size: int) -> None:
        """Set the starts of row groups, of so many rows in a file of so many bytes."""
        if sum(rows) > size / _BYTES_OF_ROW + 1000 or total != sum(rows):
            raise UserError(
                f"{self.place}: {total} rows in {size} bytes; no file of pictures; {REMEDY}"
            )
        self.starts: npt.NDArray[np.int64] = np.concatenate(
            [[0], np.cumsum(rows, dtype=np.int64)]
        ).astype(np.int64)

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Rows in order, with those of the columns that are there; few are in memory."""
        self._read = 0
        with explained(self.place):
            found = [name for name in self.names if name in columns]
            batches = self._file.iter_batches(_ROWS_AT_ONCE, columns=found)
        while True:
            with explained(self.place):  # not around what the caller does with a row
                batch = self._bounded(next(batches, None))
                rows = [] if batch is None else cast("list[dict[str, Any]]", batch.to_pylist())
            if batch is None:
                return
            yield from rows

    def row(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """A row by its number, from 0; its row group is read up to it."""
        group, at = self.find(number)
        for batch in self.batches(group, columns):
            if at < len(batch):
                with explained(self.place):
                    return cast("list[dict[str, Any]]", batch.slice(at, 1).to_pylist())[0]
            at -= len(batch)
        raise UserError(
            f"{self.place}: a damaged {_kind(self.place)} file: no row {number}; {REMEDY}"
        )

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[Any]:
        """Few rows of a row group at a time, as Arrow has them."""
        with explained(self.place):
            found = [name for name in self.names if name in columns]
            self._read = 0
            batches = self._file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=found)
            yield from map(self._bounded, batches)

    def _bounded(self, batch: Any) -> Any:  # noqa: ANN401  pyarrow has no types
        """A batch of rows; a ValueError where a dictionary repeats what the file holds once."""
        self._read += 0 if batch is None else batch.nbytes
        if self._read > self._most:
            raise ValueError(f"more than {self._most >> 20} MB in its rows")
        return batch

    def column(self, name: str) -> list[Any]:
        """Values of a column of texts or numbers."""
        with explained(self.place):
            return self._file.read([name])[name].to_pylist()

    def find(self, number: int) -> tuple[int, int]:
        """Row group of a row, and the row's place in it."""
        group = int(np.searchsorted(self.starts, number, side="right")) - 1
        return group, number - int(self.starts[group])


class _Message(NamedTuple):
    """A message of an Arrow stream."""

    kind: int
    start: int  # in the file
    size: int  # of description and body
    rows: int  # of a record batch
    is_compressed: bool


class StreamTable(Table):
    """An Arrow file of ``datasets.Dataset.save_to_disk``, open; its batches are its row groups.

    A file on disk is mapped, so that a picture is read and not the batch around it.

    Raises:
        UserError: damaged, of another kind, compressed, or of types that pictures do not have.
    """

    def __init__(self, file: BinaryIO | Path, place: str) -> None:
        self.place = place
        self._read = 0
        if isinstance(file, Path):
            check_file(file)  # a pipe is never opened
        with explained(place):
            self._source: Any = pa.memory_map(str(file)) if isinstance(file, Path) else file
            size = int(self._source.seek(0, 2) or self._source.tell())
            schema, *self._messages = self._walk(size)
            if schema.kind != _SCHEMA:
                raise ValueError("no schema at its start")
            self._schema = pa.ipc.read_schema(self._bytes(schema.start, schema.size))
            self.names: list[str] = self._schema.names
        self._most = max(_SMALL, size * _GROWTH)
        self.largest_group = 0  # mapped, it is not read whole
        rows = [message.rows for message in self._messages]
        self._count(rows, sum(rows), size)

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        for group in range(len(self._messages)):
            for batch in self.batches(group, columns):
                with explained(self.place):
                    rows = cast("list[dict[str, Any]]", batch.to_pylist())
                yield from rows

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[Any]:
        with explained(self.place):
            found = [name for name in self.names if name in columns]
            message = self._messages[group]
            content = self._bytes(message.start, message.size)
            batch = pa.ipc.read_record_batch(content, self._schema).select(found)
            for field in batch.schema:
                _refuse_type(field.type, field.name)
            batch.validate(full=True)
            if batch.num_rows != message.rows:
                raise ValueError(f"{batch.num_rows} rows where {message.rows} are said")
        for start in range(0, message.rows, _ROWS_AT_ONCE):
            yield batch.slice(start, _ROWS_AT_ONCE)

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows([name])]

    def _bytes(self, start: int, size: int) -> Any:  # noqa: ANN401  pyarrow has no types
        self._source.seek(start)
        if isinstance(self._source, pa.MemoryMappedFile):
            return self._source.read_buffer(size)
        return pa.py_buffer(self._source.read(size))

    def _walk(self, size: int) -> Iterator[_Message]:
        """Messages from the file's start to its end, by their descriptions alone."""
        start = 0
        while start < size:
            mark, length = struct.unpack("<Ii", self._bytes(start, 8))
            if mark != 0xFFFFFFFF:
                raise ValueError(f"no Arrow stream (at byte {start})")
            if length == 0:
                return
            if not 0 < length <= min(_MOST_METADATA, size - start - 8):
                raise ValueError(f"a description of {length} bytes (at byte {start})")
            description = bytes(self._bytes(start + 8, length))
            kind, body, rows, is_compressed = _described(description)
            whole = 8 + length + body
            if body < 0 or rows < 0 or whole > size - start:
                raise ValueError(f"{body} bytes of {rows} rows (at byte {start}): cut off")
            if kind not in {_SCHEMA, _RECORD_BATCH} or (kind == _SCHEMA) != (start == 0):
                raise ValueError("dictionaries or other messages, which pictures do not need")
            if is_compressed:
                raise ValueError("compressed batches; save it anew with Dataset.save_to_disk")
            yield _Message(kind, start, whole, rows, is_compressed)
            start += whole


def _described(description: bytes) -> tuple[int, int, int, bool]:
    """Kind, bytes of the body, rows and compression that a message's flatbuffer states."""
    message = _FlatTable(description, struct.unpack_from("<I", description, 0)[0])
    kind, body = message.number(1, "<B"), message.number(3, "<q")
    batch = message.table(2)
    if kind != _RECORD_BATCH or batch is None:
        return kind, body, 0, False
    return kind, body, batch.number(0, "<q"), batch.place(3) is not None


class _FlatTable:
    """A table of a flatbuffer: its fields by number, as a table of offsets before it says."""

    def __init__(self, content: bytes, start: int) -> None:
        self._content, self._start = content, start
        self._offsets = start - struct.unpack_from("<i", content, start)[0]
        if not 0 <= self._offsets < len(content):
            raise ValueError("a description that points outside of itself")
        (self._size,) = struct.unpack_from("<H", content, self._offsets)

    def place(self, field: int) -> int | None:
        """Where a field is; None where it is left out."""
        at = 4 + 2 * field
        if at + 2 > self._size:
            return None
        (offset,) = struct.unpack_from("<H", self._content, self._offsets + at)
        return self._start + offset if offset else None

    def number(self, field: int, form: str) -> int:
        place = self.place(field)
        return 0 if place is None else struct.unpack_from(form, self._content, place)[0]

    def table(self, field: int) -> "_FlatTable | None":
        place = self.place(field)
        if place is None:
            return None
        return _FlatTable(self._content, place + struct.unpack_from("<I", self._content, place)[0])


def _refuse_type(kind: Any, name: str) -> None:  # noqa: ANN401  pyarrow has no types
    """Refuse types whose values may be more than their bytes: views, runs, dictionaries."""
    if pa.types.is_struct(kind) or pa.types.is_list(kind):
        for index in range(kind.num_fields):
            _refuse_type(kind.field(index).type, name)
        return
    plain = (
        pa.types.is_primitive, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string,
        pa.types.is_large_string, pa.types.is_null,
    )  # fmt: skip
    if not any(is_one(kind) for is_one in plain):
        raise ValueError(f"the column {name[:60]} is of type {str(kind)[:60]}")
