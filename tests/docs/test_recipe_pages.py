"""The example of the recipe page is a recipe; the page of keys has every key, and refuses one without description."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from l2d.cache_builder.agents import KINDS, config_class
from l2d.cache_builder.recipe import load_recipe
from l2d.data import sources
from l2d.data.sources.table import Strict

DOCS = Path(__file__).parents[2] / "docs"


def test_the_example_of_the_recipe_page_is_a_recipe(tmp_path):
    (text, *_) = re.findall(r"```toml\n(.*?)```", (DOCS / "recipe.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_recipe.toml").write_text(text, encoding="utf-8")
    recipe = load_recipe(str(tmp_path / "my_recipe.toml"))
    assert [agent.name for agent in recipe.agents] == ["score", "api"]
    assert recipe.costs.tasks == ["cla", "reg"]
    assert recipe.dataset.path == tmp_path / "patients.csv"


@pytest.fixture(scope="module")
def keys() -> dict:
    return runpy.run_path(str(DOCS / "recipe_keys.py"))


def test_every_key_of_every_kind_is_on_the_page_of_keys(keys):
    text = (DOCS / "keys.md").read_text(encoding="utf-8")
    datasets, _, agents = text.partition("## `[[agents]]`")
    for kind in sources.KINDS:
        part = datasets.partition(f'### `kind = "{kind}"`\n')[2].partition("\n### ")[0]
        assert part, kind
        for name in set(sources.dataset_config_class(kind).model_fields) - {"kind"}:
            assert f"\n| `{name}` | " in part, (kind, name)
    common = agents.partition("\n### `")[0]
    for kind in KINDS:
        part = agents.partition(f"\n### `{kind}`\n")[2].partition("\n### ")[0]
        assert part, kind
        for name in config_class(kind).model_fields:
            assert f"\n| `{name}` | " in part + common, (kind, name)


def test_a_key_without_a_description_stops_the_page(keys, tmp_path, monkeypatch):
    """Written to a file, since descriptions are read from the source."""
    (tmp_path / "undescribed.py").write_text(
        "from l2d.data.sources.table import Strict\n\n\n"
        'class Some(Strict):\n    """A table."""\n\n    said: int = 1\n    """What it is."""\n    silent: int = 2\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    import undescribed

    assert issubclass(undescribed.Some, Strict)
    with pytest.raises(SystemExit, match=r"Some\.silent has no description"):
        list(keys["rows"](undescribed.Some, ["said", "silent"]))
    assert "| `said` | whole number | `1` | What it is. |" in "\n".join(keys["rows"](undescribed.Some, ["said"]))
    sys.modules.pop("undescribed")
