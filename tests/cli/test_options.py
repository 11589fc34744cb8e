"""How words become values: closed sets, options that are given twice, completion by the shell."""

from __future__ import annotations

import pytest

from l2d import cli
from l2d.rejector.methods import METHODS


@pytest.fixture
def swept(monkeypatch):
    """What `l2d sweep` hands to the library."""
    seen: dict[str, object] = {}
    monkeypatch.setattr("l2d.rejector.library.sweep", lambda *_, **given: seen.update(given))
    monkeypatch.setattr("l2d.rejector.commands.train._print_on_test", lambda *_, **__: False)

    def run(*words: str) -> dict[str, object]:
        cli.app(["sweep", "some.cache", "--out", "runs", *words], standalone_mode=False)
        return seen

    return run


@pytest.mark.parametrize(
    "typed", ["--method=knn,confidence", "--method=knn --method=confidence", "--method=knn,confidence,"]
)
def test_every_method_that_is_typed_is_swept(swept, typed):
    assert swept(*typed.split())["methods"] == ["knn", "confidence"]


def test_numbers_may_be_typed_by_commas_and_repeated(swept):
    assert swept()["nus"] == [1.0]
    assert swept("--nu", "0,1", "--nu", "2", "--beta", "0.1", "--beta", "0.2,0.3")["nus"] == [0.0, 1.0, 2.0]
    assert swept()["methods"] is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("train", "c", "--out", "r", "--method", "knnn"), "did you mean 'knn'? choose from"),
        (("train", "c", "--out", "r", "--method", "knn,best"), "unknown value 'knn,best' for --method"),
        (("sweep", "c", "--out", "r", "--method", "best,bst"), "unknown value 'bst' for --method"),
        (("sweep", "c", "--out", "r", "--method", ","), "--method is empty"),
        (("train", "c", "--out", "r", "--method", "knn", "--method", "best"), "--method is given 2 times"),
        (("train", "c", "--out", "r", "--nu", "1", "--nu", "2"), "--nu is given 2 times, and takes one value"),
        (("sweep", "c", "--out", "r", "--seeds", "1", "--seeds", "2", "--seeds", "1"), "--seeds is given 3 times"),
        (("sweep", "c", "-o", "r", "--out", "s"), "--out is given 2 times"),
        (("data", "digits", "out", "--seed", "1", "--seed", "2"), "--seed is given 2 times"),
        (("demo", "suport2"), "did you mean 'support2'? choose from"),
    ],
)
def test_what_would_be_lost_is_refused(l2d, words, expected):
    code, _, err = l2d(*words)
    assert (code, expected in err) == (2, True), err


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_help_lists_every_method(l2d, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    shown = l2d(command, "--help")[1]
    assert f"[{'|'.join(METHODS)}]" in "".join(shown.split())


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("train c --method one", ["one_vs_all"]),
        ("sweep c --method knn,mod", ["knn,model_confidence"]),
        ("train c --rejector m", ["mlp"]),
        ("demo s", ["support2"]),
    ],
)
def test_the_shell_completes_closed_sets(monkeypatch, capsys, typed, offered):
    monkeypatch.setenv("_L2D_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"l2d {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split())))
    with pytest.raises(SystemExit):
        cli.app(prog_name="l2d")
    assert capsys.readouterr().out.split() == offered
