"""How DuckDB reads the files of a view: by itself, once their pages are known to be sound, or else through pyarrow.

DuckDB's own reader is the quicker and smaller one, and checks no page checksum; so a session has
:mod:`l2d.data.cache.known_good` compare them before a query runs. Columns of a type that the two readers show
differently, and paths that DuckDB would take for patterns, are read by pyarrow, which compares checksums as it goes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import pyarrow.dataset as pads

FILE = "__file__"  # the column by which rows find what is true of their whole file
ASIDE = "aside"  # a schema for tables that views are made of, where SHOW TABLES does not look
SPELLED_OUT = 200_000  # characters: what is parsed anew by each query in a few milliseconds
PATTERN = set("*?[]{}")

#: Types that both readers show alike -> DuckDB's name.
NAMES = {
    pa.int8(): "TINYINT", pa.int16(): "SMALLINT", pa.int32(): "INTEGER", pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT", pa.uint16(): "USMALLINT", pa.uint32(): "UINTEGER", pa.uint64(): "UBIGINT",
    pa.float32(): "FLOAT", pa.float64(): "DOUBLE", pa.bool_(): "BOOLEAN", pa.string(): "VARCHAR",
    pa.large_string(): "VARCHAR", pa.binary(): "BLOB", pa.large_binary(): "BLOB", pa.date32(): "DATE",
    pa.timestamp("us"): "TIMESTAMP",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A Parquet file of a view: the columns it shows, its constants, its skeleton.

    ``agents``: names that ``agent_index`` counts, where the column ``agent`` repeats them.
    """

    path: Path
    columns: pa.Schema
    constants: dict[str, str | int]
    skeleton: str
    agents: tuple[str, ...] | None = None


@dataclass
class Group:
    """Files of a view whose columns have something in common, and all of these, constants first."""

    columns: pa.Schema
    parts: list[Part]

    @property
    def is_plain(self) -> bool:
        """Whether DuckDB's own reader shows what pyarrow shows."""
        return all(_name(column.type) is not None for column in self.columns) and not any(
            PATTERN & set(str(part.path)) for part in self.parts
        )


def groups_of(parts: list[Part], least: pa.Schema) -> list[Group]:
    """The files of a view as one group; as several if the same column holds text in one and numbers in another."""
    groups: list[Group] = []
    for part in parts:
        given = [least.field(name) for name in part.constants]
        columns = pa.schema([*given, *(field for field in part.columns if field.name not in part.constants)])
        for group in groups:
            joined = group.columns if group.columns.equals(columns) else _unified(group.columns, columns)
            if joined is not None:
                group.columns = joined
                group.parts.append(part)
                break
        else:
            groups.append(Group(columns, [part]))
    return groups


def select(group: Group, connection: Any, name: str) -> str:
    """SQL that reads a plain group.

    Args:
        connection: where a table of what is true of whole files is made, if they differ in that.
        name: of that table.
    """
    constants, first = list(group.parts[0].constants), group.parts[0]
    same = {key for key in constants if all(part.constants[key] == first.constants[key] for part in group.parts)}
    differing = [key for key in constants if key not in same]
    alike = all(part.columns.equals(first.columns) for part in group.parts)
    agents = first.agents if all(part.agents == first.agents for part in group.parts) else None
    cells = []
    for column in group.columns:
        kind, written = _name(column.type), quoted(column.name)
        if column.name in same:
            cell = f"{text(first.constants[column.name])}::{kind}"
        elif column.name in differing:
            cell = f"f.{written}::{kind}"
        elif column.name == "agent" and agents:
            cell = f"[{', '.join(map(text, agents))}][r.agent_index + 1]"
        else:
            cell = f"r.{written}" if alike and not pa.types.is_fixed_size_list(column.type) else f"r.{written}::{kind}"
        cells.append(f"{cell} AS {written}")
    files = ", ".join(text(str(part.path)) for part in group.parts)
    options = "" if alike else ", union_by_name = true"
    if not differing:
        return f"SELECT {', '.join(cells)} FROM read_parquet([{files}], hive_partitioning = false{options}) r"
    rows = [{FILE: str(part.path), **{key: part.constants[key] for key in differing}} for part in group.parts]
    held = held_rows(connection, name, rows, pa.schema([]))
    read = f"read_parquet([{files}], hive_partitioning = false, filename = '{FILE}'{options}) r"
    return f"SELECT {', '.join(cells)} FROM {read} JOIN {held} f ON r.{FILE} = f.{FILE}"


def held_rows(connection: Any, name: str, rows: list[dict], least: pa.Schema) -> str:
    """What a view selects rows of ours from: a query that spells them out, or a table where they are many.

    Not always a table, since each of its columns takes a block of memory however few its rows are.
    """
    sql = rows_as_sql(rows, least)
    if len(sql) <= SPELLED_OUT:
        return f"({sql})"
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {ASIDE}")
    connection.execute(f"CREATE TABLE {ASIDE}.{quoted(name)} AS {sql}")
    return f"{ASIDE}.{quoted(name)}"


def rows_as_sql(rows: list[dict], least: pa.Schema) -> str:
    """A query that gives these rows with all their columns, those of ``least`` in its types even if all are null.

    As text, since what makes Arrow columns of Python's values imports pandas wherever it is installed.
    """
    names = list(dict.fromkeys([name for row in rows for name in row] or least.names))
    types = {field.name: _name(field.type) for field in least}
    lists = []
    for name in names:
        values = [row.get(name) for row in rows]
        given = [value for value in values if value is not None]
        kind = types.get(name)
        if kind is None:  # the narrowest that holds them all
            held = (((bool,), "BOOLEAN"), ((int,), "BIGINT"), ((int, float), "DOUBLE"))
            fits = (word for classes, word in held if all(isinstance(value, classes) for value in given))
            kind = next(fits, "VARCHAR") if given else "INTEGER"
        cells = ", ".join("NULL" if value is None else text(value) for value in values)
        lists.append(f"unnest([{cells}]::{kind}[]) AS {quoted(name)}")
    return f"SELECT {', '.join(lists)}"


def dataset(group: Group) -> pads.Dataset:
    """A group as pyarrow reads it, page checksums compared; a condition on constants skips other files unread."""
    import pyarrow.dataset as pads
    from pyarrow.fs import LocalFileSystem

    kind, files = verified_format(), LocalFileSystem()
    fragments = []
    for part in group.parts:
        told = None
        for name, value in part.constants.items():
            equal = pads.field(name) == value
            told = equal if told is None else told & equal
        fragments.append(kind.make_fragment(str(part.path), files, told))
    return pads.FileSystemDataset(fragments, group.columns, kind, files)


def verified_format() -> pads.ParquetFileFormat:
    """Parquet whose page checksums are compared as it is read."""
    import pyarrow.dataset as pads

    scan = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
    return pads.ParquetFileFormat(default_fragment_scan_options=scan)


# --- columns ----------------------------------------------------------------------------------------------------------


def _name(kind: pa.DataType) -> str | None:
    """DuckDB's name of a type that both readers show alike, None for others."""
    if pa.types.is_dictionary(kind):  # our own: of constants
        return _name(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _name(kind.value_type)
        size = kind.list_size if pa.types.is_fixed_size_list(kind) else ""
        return None if inner is None or size == 0 else f"{inner}[{size}]"
    if pa.types.is_struct(kind):
        fields = [(kind.field(place).name, _name(kind.field(place).type)) for place in range(kind.num_fields)]
        known = all(name is not None for _, name in fields)
        return f"STRUCT({', '.join(f'{quoted(field)} {name}' for field, name in fields)})" if known else None
    return NAMES.get(kind)


def _unified(one: pa.Schema, other: pa.Schema) -> pa.Schema | None:
    """All columns of both, numbers and lists widened; None if a column's types have nothing in common."""
    fields = {field.name: field.type for field in one}
    for field in other:
        found = joined(fields.get(field.name, field.type), field.type)
        if found is None:
            return None
        fields[field.name] = found
    return pa.schema(list(fields.items()))


def joined(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type for the values of both, None if they have nothing in common."""
    if one.equals(other):
        return one
    if pa.types.is_null(one) or pa.types.is_null(other):
        return other if pa.types.is_null(one) else one
    integers = [pa.types.is_integer(kind) for kind in (one, other)]
    if all(is_integer or pa.types.is_floating(kind) for is_integer, kind in zip(integers, (one, other), strict=True)):
        return pa.int64() if all(integers) else pa.float64()
    lists = [pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) for kind in (one, other)]
    if all(lists) and one.value_type.equals(other.value_type):
        return pa.list_(one.value_type)  # vectors of other widths
    return None


def clashes(columns: pa.Schema, others: list[pa.Schema]) -> list[pa.Field]:
    """Columns whose type others do not share."""
    return [
        column
        for column in columns
        if any(
            other.get_field_index(column.name) >= 0 and joined(column.type, other.field(column.name).type) is None
            for other in others
        )
    ]


def text(value: object) -> str:
    """A value as SQL writes it: a text in quotes, a number as it is."""
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def replacing(cells: list[str]) -> str:
    """What stands after a star whose columns these cells replace."""
    return f" REPLACE ({', '.join(cells)})" if cells else ""


def only(columns: pa.Schema, names: list[str]) -> pa.Schema:
    """These columns of a schema."""
    return pa.schema([columns.field(name) for name in names])


def without(columns: pa.Schema, names: list[str]) -> pa.Schema:
    """A schema without these columns."""
    return pa.schema([field for field in columns if field.name not in names])


def told_apart(names: list[str], paths: Sequence[PurePath]) -> list[str]:
    """Names where they are unique; twins are called by their folder, with as many parents as tell them apart."""
    labels = []
    for name, path in zip(names, paths, strict=True):
        twins = [other for n, other in zip(names, paths, strict=True) if n == name and other != path]
        depth = 1
        while any(other.parts[-depth:] == path.parts[-depth:] for other in twins):
            depth += 1
        labels.append("/".join(path.parts[-depth:]) if twins else name)
    return labels
