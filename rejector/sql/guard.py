"""What an SQL statement may do here: read the views, and nothing else.

Two layers: a statement must be a query whose table functions are harmless and which names no file; and DuckDB opens no
file but those of the views, no extensions, no Python variables, and its settings are locked. The second by itself is
enough against nearly every attack, but would let a part be overwritten. DuckDB has no boundary inside its process, so
this guards against accidents and injected text; it is not a sandbox. Limits of memory and time are kept by a process of
its own: see :mod:`l2d.rejector.sql.child`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from l2d.data.errors import UsageError

#: Table functions that compute and read nothing but their arguments and the list of views.
TABLE_FUNCTIONS = {
    "duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_tables", "duckdb_types", "duckdb_views",
    "generate_series", "histogram", "histogram_values", "json_each", "json_tree", "range", "repeat", "repeat_row",
    "summary", "unnest",
}  # fmt: skip

_EXPLAIN = re.compile(r"\s*EXPLAIN(\s+ANALYZE)?(\s*\(\s*(FORMAT|ANALYZE)\b[\w\s,]*\))?(?=[\s(])", re.IGNORECASE)
_FILE = re.compile(r"[/\\]|\.\w+$")  # DuckDB takes a table of such a name for a file
_ALLOWED = "only queries are allowed: SELECT, FROM, WITH, VALUES, PIVOT, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN"


def admitted(sql: str, connection: Any = None) -> str:
    """The one query that a text holds.

    Args:
        connection: a locked one of DuckDB's, by which the text is parsed and nothing read; None: one of its own, which
            takes DuckDB 30 ms to start.

    Raises:
        UsageError: it holds none, several, or something that is not a query; or it names a table function that could
            reach beyond the views.
        duckdb.Error: it is not SQL.
    """
    import duckdb

    if connection is None:
        with duckdb.connect(config={"enable_external_access": False}) as own:
            return admitted(sql, own)
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        count = "no" if not statements else len(statements)
        raise UsageError(f"{count} statements, not one", hint="give one query, or several on stdin, each with its ;")
    text = statements[0].query
    if statements[0].type == duckdb.StatementType.EXPLAIN:
        inner, count = _EXPLAIN.subn("", text, count=1)
        if count == 0 or connection.extract_statements(inner)[0].type != duckdb.StatementType.SELECT:
            raise UsageError("EXPLAIN of something that is not a query", hint=_ALLOWED)
        _check_tree(inner, connection)
    elif statements[0].type == duckdb.StatementType.SELECT:
        _check_tree(text, connection)
    elif statements[0].type == duckdb.StatementType.MULTI:
        raise UsageError(
            "this PIVOT would create a type", hint="name the values: PIVOT … ON agent IN ('model', 'expert') USING …"
        )
    else:
        raise UsageError(f"{statements[0].type.name.replace('_', ' ')} is not a query", hint=_ALLOWED)
    return text


def _check_tree(sql: str, connection: Any) -> None:
    """Refuse table functions that are not known to be harmless, and changes hidden in a WITH."""
    ((text,),) = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [sql]).fetchall()
    tree = json.loads(text)
    if tree.get("error"):
        raise UsageError(f"this is not a query: {tree.get('error_message')}", hint=_ALLOWED)
    for node in _nodes(tree):
        if str(node.get("type", "")).endswith("_QUERY_NODE"):
            raise UsageError("a query that changes something in its WITH", hint=_ALLOWED)
        if node.get("type") == "BASE_TABLE" and _FILE.search(str(node.get("table_name", ""))):
            raise UsageError(f"{node['table_name']!r} is not a view", hint="files are read through the views alone")
        if node.get("type") == "TABLE_FUNCTION":
            name = str(node["function"].get("function_name", "")).lower()
            if name not in TABLE_FUNCTIONS:
                known = ", ".join(sorted(TABLE_FUNCTIONS))
                raise UsageError(f"the function {name} may not be used here", hint=f"those that may be are {known}")


def tables_of(sql: str, connection: Any) -> set[str]:
    """Names of the tables and views that a query reads, in small letters; those that its WITH makes are left out.

    Args:
        connection: of DuckDB's, by which the text is parsed and nothing read.
    """
    inner = _EXPLAIN.sub("", sql, count=1)
    ((text,),) = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [inner]).fetchall()
    nodes = list(_nodes(json.loads(text)))
    made = {str(entry["key"]).lower() for node in nodes for entry in (node.get("cte_map") or {}).get("map", [])}
    read = {str(node.get("table_name", "")).lower() for node in nodes if node.get("type") == "BASE_TABLE"}
    return read - made


def _nodes(tree: object) -> Iterator[dict]:
    """Every JSON object of a tree, the deepest ones included."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
