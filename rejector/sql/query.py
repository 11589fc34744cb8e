"""SQL over caches and runs: one query, or many over the same views.

Views: ``samples``, ``features``, ``images``, ``agents``, ``costs``, ``predictions``, ``allocations``, ``scores``,
``runs``, ``run_agents``; see :mod:`l2d.rejector.sql.catalogue` for them and the macros, :mod:`l2d.rejector.sql.guard`
for what a query may do.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pyarrow as pa

from l2d.data.cache import store
from l2d.data.cache.sql import locked_connection
from l2d.data.errors import CorruptPart, L2DError, UsageError, nearest
from l2d.data.terminal.formats import SUFFIXES, write_batches
from l2d.rejector.sql.catalogue import DERIVED, VIEW_NAMES, Catalogue
from l2d.rejector.sql.class_ap import NAME as CLASS_AP
from l2d.rejector.sql.guard import admitted, tables_of
from l2d.rejector.sql.views import why_empty

BATCH_ROWS = 65_536
POLL_SECONDS = 0.2
_OF_THE_QUERY = re.compile(r"(Invalid Input|Conversion|Out of Range|Out of Memory|Not implemented|Binder) Error")
_READING = re.compile(r"crc|checksum|deserialize|IO ?Error|No files found|reading the stream|get_next", re.IGNORECASE)


def query(
    paths: list[Path | str], sql: str, *, memory_limit: int | None = None, timeout: float | None = None
) -> pa.Table:
    """Run one query over everything beneath the paths, and hold the whole result.

    Raises:
        UsageError: nothing found; the SQL is wrong, not allowed, or needs more memory or time than it may have.
        CorruptPart: a file of the caches or runs is damaged.
    """
    with QuerySession(paths, memory_limit=memory_limit, timeout=timeout) as session:
        return session.run(sql).table()


class QuerySession:
    """Queries over the caches and runs beneath some paths, as they are when the session is opened.

    Args:
        paths: caches, runs, or folders above them.
        memory_limit: bytes DuckDB may hold (60 % of the machine's if None); beyond them it spills into a private
            folder, which goes with the session.
        timeout: seconds a query may take, its output included; None for as long as it needs.
        announce: told until when (of ``time.monotonic``) a query may run as it begins, and None once it has ended.
        folder: where to spill; a private one of its own if None.

    Both limits are DuckDB's own, which it keeps nearly always: one huge value is made in one piece. ``l2d query`` adds
    a process that can be ended, see :mod:`l2d.rejector.sql.child`.

    Raises:
        UsageError: nothing is found, or a limit is not positive.
        CorruptPart: a file is damaged.
    """

    def __init__(
        self,
        paths: list[Path | str],
        *,
        memory_limit: int | None = None,
        timeout: float | None = None,
        announce: Callable[[float | None], None] | None = None,
        folder: Path | None = None,
    ):
        if timeout is not None and not timeout > 0:
            raise UsageError(f"a timeout of {timeout} s", hint="give a number of seconds above 0")
        self.paths, self.memory_limit, self.timeout = paths, memory_limit, timeout
        self._announce = announce or (lambda moment: None)
        self.catalogue = Catalogue(paths)
        self._spill = tempfile.TemporaryDirectory(prefix="l2d-query-", dir=folder)  # ours alone: mode 0700
        self._thread = ThreadPoolExecutor(1)
        self._stopped = threading.Event()  # tells what verifies files that its result is not waited for any more
        self._reader: pa.RecordBatchReader | None = None
        try:
            self.connection = locked_connection(
                self.catalogue.register,
                files=self.catalogue.readable,
                spill=Path(self._spill.name) / "spill",
                memory_limit=memory_limit,
            )
        except BaseException:
            self._thread.shutdown()
            self.catalogue.close()
            self._spill.cleanup()
            raise

    def __enter__(self) -> QuerySession:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._thread.shutdown()
        self.connection.close()
        self.catalogue.close()
        self._spill.cleanup()

    def idle(self) -> None:
        """Say that no query is at work."""
        self._announce(None)

    @property
    def notes(self) -> list[str]:
        """What to know before joining runs with caches."""
        return self.catalogue.notes

    def columns(self) -> dict[str, list[tuple[str, str]]]:
        """View -> its columns, as (name, SQL type)."""
        found: dict[str, list[tuple[str, str]]] = {name: [] for name in VIEW_NAMES}
        sql = "SELECT table_name, column_name, data_type FROM duckdb_columns() ORDER BY table_name, column_index"
        for view, column, kind in self.connection.execute(sql).fetchall():
            if view in found:
                found[view].append((column, kind))
        return found

    def run(self, sql: str) -> Result:
        """Start a query; rows come as the result is read.

        Raises:
            UsageError: the SQL is wrong or not allowed.
        """
        import duckdb

        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        self._announce(deadline)
        try:
            with self.connection.cursor() as parser:
                text = admitted(sql, parser)
                without = why_empty(tables_of(text, parser), self.catalogue.there)
        except duckdb.Error as error:
            raise self._explained(error, sql) from error

        def open_reader() -> pa.RecordBatchReader:
            self.catalogue.verify(named := _named(sql), self._stopped.is_set)
            if CLASS_AP in named:
                self.catalogue.class_ap.fill(self.connection, self._stopped.is_set)
            relation = self.connection.sql(text)
            newer = getattr(relation, "to_arrow_reader", None)
            return (newer or relation.fetch_arrow_reader)(BATCH_ROWS)

        if self._reader is not None:  # a result that was not read to its end
            self._reader.close()
        self._reader = self._attempt(open_reader, sql, deadline)
        return Result(self, sql, self._reader, deadline, notes=without)

    def _attempt(self, work: Callable, sql: str, deadline: float | None):
        """Run a piece of a query in the thread, so that signals are heard meanwhile and end it, as time does."""
        import duckdb

        self._stopped.clear()
        answer, expired = self._thread.submit(work), False
        try:
            while not answer.done():
                wait([answer], timeout=POLL_SECONDS)
                if deadline is not None and time.monotonic() > deadline and not answer.done():
                    expired = True
                    self._stopped.set()
                    self.connection.interrupt()
            found = answer.result()
            if deadline is not None and time.monotonic() > deadline:  # it ended, but too late
                raise self._too_long()
            return found
        except (duckdb.Error, OSError, pa.ArrowException) as error:
            if expired:
                raise self._too_long() from error
            raise self._explained(error, sql) from error
        except L2DError:
            raise
        except BaseException:  # a signal's
            self._stopped.set()
            while not answer.done():  # an interrupt before the query has begun is lost
                self.connection.interrupt()
                wait([answer], timeout=POLL_SECONDS)
            raise

    def _too_long(self) -> UsageError:
        return UsageError(
            f"the query did not end within {self.timeout:g} s", hint="ask for less, or give a longer --timeout"
        )

    def _explained(self, error: Exception, sql: str) -> L2DError:
        """An error of DuckDB or pyarrow as one the user can act on."""
        import duckdb

        text = str(error).strip()
        if isinstance(error, duckdb.OutOfMemoryException) or text.startswith("Out of Memory Error"):
            return UsageError(
                f"the query needs more memory than it may have: {text.splitlines()[0]}",
                hint="ask for less at once, or give a higher --memory-limit",
            )
        # What fails once a result is being read comes as an OSError of pyarrow's, DuckDB's own mistakes included.
        from_reading = isinstance(error, OSError | pa.ArrowException) and not _OF_THE_QUERY.match(text)
        if from_reading or _READING.search(text):
            return self._damage(text, sql)
        text = re.sub(r"\n?Did you mean \"[^\n]*", "", text)  # DuckDB suggests tables of its own
        columns = self.columns()
        unknown = re.search(r"Table with name \"?([^\n\"]+?)\"? does not exist", text)
        if unknown:
            known = nearest(unknown[1], VIEW_NAMES, "the views are")
            return UsageError(f"there is no view {unknown[1]!r}", hint=f"{known}; DESCRIBE one")
        used = [view for view in _named(sql) if view in columns] or list(VIEW_NAMES)
        if isinstance(error, duckdb.BinderException) and "column" in text:
            known = "\n         ".join(f"{view}: {', '.join(name for name, _ in columns[view])}" for view in used)
            return UsageError(text, hint=f"the columns are\n         {known}")
        return UsageError(text, hint=f"views: {', '.join(VIEW_NAMES)}; `DESCRIBE costs` lists a view's columns")

    def _damage(self, text: str, sql: str) -> CorruptPart:
        """Name the file that could not be read, by reading those of the query's views again."""
        for part in self.catalogue.files(_named(sql)):
            try:
                store.read_table(part.path, part.columns.names)
            except CorruptPart as culprit:
                return self.catalogue.lent.told(culprit)
            except FileNotFoundError:
                return CorruptPart("has gone since the query began", where=part.path, hint="ask again")
        where = ", ".join(map(str, self.paths))
        return CorruptPart(text.splitlines()[0], where=where, hint="l2d verify CACHE names the file")


class Result:
    """Rows of a query, to be read once: as Arrow batches, as a table, or into a file.

    Attributes:
        notes: sentences on views without rows, as nothing that they are made of is among the paths.
    """

    def __init__(
        self,
        session: QuerySession,
        sql: str,
        reader: pa.RecordBatchReader,
        deadline: float | None,
        notes: Sequence[str] = (),
    ):
        self._session, self._sql, self._reader, self._deadline = session, sql, reader, deadline
        self.notes = notes
        names = reader.schema.names
        unique = [f"{name}_{k}" if name in names[:k] else name for k, name in enumerate(names)]
        #: Of every batch; a column whose name an earlier one has gets its position behind it.
        self.schema = pa.schema([field.with_name(name) for field, name in zip(reader.schema, unique, strict=True)])

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        def following() -> pa.RecordBatch | None:
            try:
                return self._reader.read_next_batch()
            except StopIteration:  # which a future would not pass on
                return None

        while (batch := self._session._attempt(following, self._sql, self._deadline)) is not None:
            yield pa.RecordBatch.from_arrays(batch.columns, schema=self.schema)

    def table(self) -> pa.Table:
        return pa.Table.from_batches(list(self), self.schema)

    def save(self, path: Path, *, overwrite: bool = False) -> int:
        """Write the result to a file, which appears whole or not at all; its suffix says how. Returns the rows.

        Raises:
            UsageError: another suffix, or the file is there already.
        """
        check_target(path, overwrite=overwrite)
        rows = 0

        def write(temporary: Path) -> None:
            nonlocal rows
            with open(temporary, "wb") as file:
                rows = write_batches(file, self.schema, self, SUFFIXES[path.suffix.lower()])

        if not store.commit(path, write, replace=overwrite):
            raise UsageError("this has appeared meanwhile", where=path, hint="give another --out, or type --overwrite")
        return rows


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that a result cannot be saved as, before anything is computed.

    Raises:
        UsageError: another suffix than those of :data:`l2d.data.terminal.formats.SUFFIXES`, or the file exists.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            "a result cannot be written to this kind of file",
            where=path,
            hint=f"give a name ending in {', '.join(SUFFIXES)}",
        )
    if path.is_dir() or (path.exists() and not overwrite):
        raise UsageError("this is there already", where=path, hint="give another --out, or type --overwrite")


def _named(sql: str) -> list[str]:
    """The views that a text names, and those they are made of. It may name one in a comment, and read none unnamed: SQL
    has no other way to write a name of plain letters, and functions that take one as a text are not admitted."""
    words = {word.lower() for word in re.findall(r"\w+", sql)}
    named = [view for view in VIEW_NAMES if view in words]
    return [*named, *(other for view in named for other in DERIVED.get(view, ()))]
