"""The prompt of `l2d query`: what is typed, what is piped in, what is completed and remembered."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from conftest import write_table
from prompt_toolkit.application import create_app_session
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from recipes import RECIPE

from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.errors import UsageError
from l2d.rejector.sql.prompt import Console, is_complete, make_completer, read_statements, run_prompt, run_script
from l2d.rejector.sql.query import QuerySession


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompt")
    write_table(folder, rows=30)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    build(load_recipe(str(folder / "recipe.toml")), folder / "cache")
    with QuerySession([folder]) as opened:
        yield opened


def make_console(session) -> tuple[Console, list, io.StringIO]:
    shown, out = [], io.StringIO()
    console = Console(session, lambda r, f: shown.append((f, r.table().to_pylist())), ["table", "csv"], out)
    return console, shown, out


def test_statements_end_with_a_semicolon_outside_of_text():
    text = "SELECT ';' AS \"a;é\" -- ; no\n, 2 /* ; */;\n\n.tables\nSELECT 'é;'; ;SELECT 3;\n-- the end\nSELECT 4"
    found = [statement.strip() for statement in read_statements(io.StringIO(text))]
    assert found == [
        "SELECT ';' AS \"a;é\" -- ; no\n, 2 /* ; */;", ".tables", "SELECT 'é;';", "SELECT 3;", "-- the end\nSELECT 4",
    ]  # fmt: skip
    assert [is_complete(t) for t in ("SELECT 1", "SELECT ';", "SELECT 1;", "SELECT 1; -- x", ".help", "")] == [
        False, False, True, True, True, True,
    ]  # fmt: skip


def test_a_script_is_carried_out_until_its_first_error(session):
    console, shown, out = make_console(session)
    script = ".schema agents\nSELECT 1 AS a;\n.format csv\nSELECT count(*) AS n\nFROM costs;\nSELECT x;\nSELECT 3 AS c;"
    with pytest.raises(UsageError, match='"x"'):
        run_script(console, io.StringIO(script))
    assert shown == [("table", [{"a": 1}]), ("csv", [{"n": 90}])]
    assert "agent_index INTEGER" in out.getvalue()
    for wrong in (".nothing", ".schema nothing", ".format xlsx"):
        with pytest.raises(UsageError):
            console.execute(wrong)


def test_what_is_typed_is_run_and_remembered(session, tmp_path):
    console, shown, _ = make_console(session)
    complaints, history = [], tmp_path / "state" / "query_history"
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("SELECT 1\r AS one;\rSELECT nothing;\r\x03SELECT 2 AS two;\r.quit\r")
        run_prompt(console, complaints.append, history=history)
    assert shown == [("table", [{"one": 1}]), ("table", [{"two": 2}])]
    assert [type(complaint) for complaint in complaints] == [UsageError]
    assert "SELECT 2 AS two;" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("\x1b[A\x1b[A\r\x04")  # the query before the last, then Ctrl-D
        run_prompt(console, complaints.append, history=history)
    assert shown[2:] == [("table", [{"two": 2}])]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("SELECT * FROM predic", {"predictions"}),
        ("SELECT costs.cost_", {"cost_cla", "cost_reg"}),
        ("SELECT * FROM costs AS c WHERE c.cost_c", {"cost_cla"}),
        (".sch", {".schema"}),
        (".schema run_", {"run_agents"}),
        ("SELECT argmin_", {"argmin_agent("}),
        ("SELEC", {"SELECT"}),
        ("SELECT costs.nothing", set()),
    ],
)
def test_names_are_completed(session, typed, offered):
    found = {completion.text for completion in make_completer(session).get_completions(Document(typed), None)}
    assert found == offered


def test_a_history_that_cannot_be_written_is_kept_in_memory(tmp_path: Path):
    from prompt_toolkit.history import InMemoryHistory

    from l2d.rejector.sql.prompt import open_history

    (tmp_path / "file").write_text("")
    assert isinstance(open_history(tmp_path / "file" / "history"), InMemoryHistory)
