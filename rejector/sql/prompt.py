"""The prompt of ``l2d query``: many queries over the same views, with history and completion.

A query ends with ``;`` and may take many lines. Lines that start with a dot are commands of the prompt. Without a
terminal the same is read from stdin, and the first error ends it.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from l2d.data.errors import L2DError, UsageError
from l2d.rejector.sql.catalogue import MACROS
from l2d.rejector.sql.query import QuerySession, Result

COMMANDS = {
    ".tables": "the views",
    ".schema": "the columns of every view, or of one: .schema costs",
    ".macros": "the macros",
    ".format": "how results are printed: .format csv",
    ".help": "this",
    ".quit": "leave (so does Ctrl-D)",
}
WELCOME = "Queries end with ;   .tables  .schema VIEW  .macros  .help  .quit"
_WORD = re.compile(r"[\w.]*$")


class Console:
    """Carries out what is typed.

    Args:
        show: prints a result in a format.
        formats: those there are, the first being the default.
        out: where the prompt's own answers go.
    """

    def __init__(
        self, session: QuerySession, show: Callable[[Result, str], None], formats: list[str], out: TextIO | None = None
    ):
        self.session, self.show, self.formats, self.out = session, show, formats, out or sys.stdout
        self.format = formats[0]

    def execute(self, text: str) -> bool:
        """Run a command or a query. False if the user wants to leave.

        Raises:
            L2DError: as :meth:`QuerySession.run`, or there is no such command.
        """
        text = text.strip()
        if text.startswith("."):
            return self._command(*text.rstrip("; \t").split())
        try:
            self.show(self.session.run(text), self.format)
        finally:
            self.session.idle()
        return True

    def _command(self, name: str, *arguments: str) -> bool:
        columns = self.session.columns() if name in (".tables", ".schema") else {}
        if name in (".quit", ".exit", ".q"):
            return False
        if name == ".tables":
            self._say(*columns)
        elif name == ".schema":
            for view in arguments or columns:
                if view not in columns:
                    raise UsageError(f"there is no view {view!r}", hint=f"the views are {', '.join(columns)}")
                self._say(f"{view}(", *(f"  {column} {kind}" for column, kind in columns[view]), ")")
        elif name == ".macros":
            self._say(*(f"{macro}: {what}" for macro, what in MACROS.items()))
        elif name == ".format":
            if len(arguments) != 1 or arguments[0] not in self.formats:
                raise UsageError(f"no such format: {' '.join(arguments)}", hint=f"one of {', '.join(self.formats)}")
            self.format = arguments[0]
        elif name == ".help":
            self._say(WELCOME, *(f"{command:9}{what}" for command, what in COMMANDS.items()))
        else:
            raise UsageError(f"there is no command {name}", hint=f"there are {', '.join(COMMANDS)}")
        return True

    def _say(self, *lines: str) -> None:
        print("\n".join(lines), file=self.out)


def read_statements(lines: Iterator[str]) -> Iterator[str]:
    """Queries and commands from lines of text, each query up to its ``;`` or the end."""
    waiting = ""
    for line in lines:
        if not waiting.strip() and line.lstrip().startswith("."):
            yield line
            continue
        waiting += line
        if ";" in line:
            whole, waiting = split_statements(waiting)
            yield from whole
    if has_code(waiting):
        yield waiting


def split_statements(text: str) -> tuple[list[str], str]:
    """The statements that a text ends with ``;``, and what is left behind the last of them.

    Semicolons in strings, quoted names and comments end nothing.
    """
    import duckdb

    content, whole, start = text.encode(), [], 0
    for position, kind in duckdb.tokenize(text):  # positions count bytes
        if kind == duckdb.token_type.operator and content[position : position + 1] == b";":
            whole.append(content[start : position + 1].decode())
            start = position + 1
    return [statement for statement in whole if has_code(statement)], content[start:].decode()


def has_code(text: str) -> bool:
    """Whether a text holds more than blanks, comments and semicolons."""
    import duckdb

    content = text.encode()
    return any(
        kind != duckdb.token_type.comment and content[position : position + 1] != b";"
        for position, kind in duckdb.tokenize(text)
    )


def run_script(console: Console, source: TextIO) -> None:
    """Carry out everything that a stream holds.

    Raises:
        L2DError: the first error; what came before it has been printed.
    """
    for statement in read_statements(iter(source)):
        if not console.execute(statement):
            return


def run_prompt(console: Console, complain: Callable[[L2DError], None], *, history: Path | None = None) -> None:
    """Read and carry out until the user leaves. Ctrl-C ends the query that runs, or clears what is typed.

    Args:
        complain: shows an error, after which the prompt goes on.
        history: the file of what was typed, in the user's state folder if None.
    """
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession(
        history=open_history(history or history_file()),
        completer=make_completer(console.session),
        complete_while_typing=False,
        multiline=True,
        key_bindings=_bindings(),
        prompt_continuation=lambda width, *_: "...> ".rjust(width),
        enable_history_search=True,
    )
    print(WELCOME, file=console.out)
    while True:
        try:
            text = session.prompt("l2d> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        try:
            with _keyboard_interrupts():
                for statement in read_statements(iter(text.splitlines(keepends=True))):
                    if not console.execute(statement):
                        return
        except L2DError as error:
            complain(error)
        except KeyboardInterrupt:
            complain(UsageError("interrupted"))


def is_complete(text: str) -> bool:
    """Whether Enter should run what is typed: a command, nothing, or queries that end with ``;``."""
    return text.lstrip().startswith(".") or not text.strip() or not has_code(split_statements(text)[1])


def history_file() -> Path:
    """Where what was typed is kept: ``$XDG_STATE_HOME/l2d/query_history``, by default beneath ``~/.local/state``."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state else Path.home() / ".local" / "state") / "l2d" / "query_history"


def open_history(path: Path):
    """A history in a file that only its user can read; in memory where the file cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def make_completer(session: QuerySession):
    """Completes commands, views, columns (after ``view.`` or an alias those of that view), functions and keywords."""
    from prompt_toolkit.completion import Completer, Completion

    columns = session.columns()
    rows = session.connection.execute(
        "SELECT upper(keyword_name) FROM duckdb_keywords() WHERE keyword_category <> 'unreserved' UNION "
        "SELECT function_name || '(' FROM duckdb_functions() WHERE regexp_matches(function_name, '^[a-z][a-z0-9_]*$')"
    ).fetchall()
    rest = sorted(name for (name,) in rows)
    macros = [macro.partition("(")[0] + "(" for macro in MACROS]
    everything = list(dict.fromkeys([*columns, *(c for v in columns.values() for c, _ in v), *macros, *rest]))

    class Names(Completer):
        def get_completions(self, document, _):
            before = document.text_before_cursor
            found = _WORD.search(before)
            word = found[0] if found else ""
            if before.lstrip().startswith(".") and " " not in before.strip():
                word, names = before.strip(), list(COMMANDS)
            elif before.lstrip().startswith(".schema"):
                names = list(columns)
            elif "." in word:
                owner, _, word = word.rpartition(".")
                names = [column for column, _ in columns.get(_view_of(owner, document.text, columns), [])]
            else:
                names = everything if word else list(columns)
            for name in names:
                if name.lower().startswith(word.lower()):
                    yield Completion(name, start_position=-len(word))

    return Names()


def _view_of(owner: str, text: str, views) -> str:
    """The view that a name before a dot stands for: itself, or what it is an alias of."""
    if owner in views:
        return owner
    for view in views:
        if re.search(rf"\b{view}\s+(?:as\s+)?{re.escape(owner)}\b", text, re.IGNORECASE):
            return view
    return ""


def _bindings():
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event):
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None
        elif is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    return bindings


@contextmanager
def _keyboard_interrupts() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, whatever it does elsewhere in the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
