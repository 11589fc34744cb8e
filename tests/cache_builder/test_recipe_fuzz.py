"""Whatever is written in a recipe loads and builds, or is refused as an L2DError."""

from __future__ import annotations

import contextlib
import json
import shutil
import tomllib

from conftest import no_temporaries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipes import RECIPE

from l2d.data.errors import L2DError

VALUES = st.one_of(
    st.sampled_from(
        ["column", "python", "two_head", "average", "id", "x1", "ward", "*", "1 +", "MAX(x1)", "", "..", "\0"]
    ),
    st.sampled_from(
        [0, -1, 1, 2**63, 10**400, 0.5, float("inf"), float("nan"), True, [], [[]], {}, {"column": 1}, [None]]
    ),
    st.text(max_size=8),
    st.lists(st.sampled_from(["x1", "ward", 1]), max_size=2),
)


def toml(value) -> str:
    """A value as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(entry) for entry in value if entry is not None) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def mutate(draw, value):
    """Replace, remove or add something at a random depth."""
    if isinstance(value, list) and value and draw(st.booleans()):
        position = draw(st.integers(0, len(value) - 1))
        return [mutate(draw, entry) if k == position else entry for k, entry in enumerate(value)]
    if isinstance(value, dict) and value:
        key, action = draw(st.sampled_from(sorted(value))), draw(st.integers(0, 9))
        if action == 0:
            return {name: entry for name, entry in value.items() if name != key}
        if action == 1:
            return {**value, draw(st.sampled_from(["column", "average", "x", "weights", "version"])): draw(VALUES)}
        return {**value, key: mutate(draw, value[key])}
    return draw(VALUES)


@st.composite
def mutated_recipes(draw) -> str:
    values = mutate(draw, tomllib.loads(RECIPE))
    return "\n".join(f"{json.dumps(name)} = {toml(value)}" for name, value in values.items())


@st.composite
def scratched_texts(draw) -> str:
    start = draw(st.integers(0, len(RECIPE)))
    return RECIPE[:start] + draw(st.text(max_size=4)) + RECIPE[start + draw(st.integers(0, 12)) :]


QUIET = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def loads_or_refuses(workshop, text):
    with contextlib.suppress(L2DError):
        workshop.recipe(text)


@QUIET
@given(scratched_texts())
def test_a_scratched_recipe_loads_or_is_refused(workshop, text):
    loads_or_refuses(workshop, text)


@QUIET
@given(mutated_recipes())
def test_a_recipe_with_any_other_value_loads_or_is_refused(workshop, text):
    loads_or_refuses(workshop, text)


@settings(QUIET, max_examples=100)
@given(mutated_recipes())
def test_a_recipe_with_any_other_value_builds_or_is_refused(workshop, text):
    shutil.rmtree(workshop.folder / "cache", ignore_errors=True)
    with contextlib.suppress(L2DError):
        workshop.build(text)
    assert no_temporaries(workshop)
