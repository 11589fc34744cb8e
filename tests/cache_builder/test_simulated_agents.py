"""Simulated experts are as good as the recipe says, where it says so, whatever the order of the samples."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from conftest import refused

from l2d.cache_builder.agents import make_agent
from l2d.cache_builder.agents.cluster_expert import ClusterExpertConfig
from l2d.cache_builder.agents.simulated import SimulatedConfig
from l2d.data.errors import UsageError
from l2d.data.samples.dataset import Dataset

N, CLASSES = 6000, 5


def dataset(n: int = N, order: np.ndarray | None = None) -> Dataset:
    """Samples of five classes and a uniform value, in clusters 1 to 6."""
    generator = np.random.default_rng(0)
    order = np.arange(n) if order is None else order
    target, value = generator.integers(0, CLASSES, n), generator.uniform(10, 30, n)
    cluster, age = generator.integers(1, 7, n), generator.uniform(0, 100, n)
    return Dataset(
        name="made",
        ids=[f"s{row}" for row in order],
        split=np.where(np.arange(n) % 5 < 3, "train", "test")[order],
        features=None,
        columns=pl.DataFrame({"cluster": cluster[order], "age": age[order]}),
        target_cla=target[order].astype(np.int32),
        target_reg=value[order].astype(np.float32),
        classes=tuple("abcde"),
        keep=(),
        inputs={"clusters": {"count": 6}},
        config={},
    )


def answers(made: Dataset, config=SimulatedConfig, **keys):
    kind = "simulated" if config is SimulatedConfig else "cluster_expert"
    agent = make_agent(config(name=keys.pop("name", "sim"), kind=kind, **keys))
    agent.check(made, ["cla", "reg"])
    agent.load(None, made, "cpu")
    return agent, agent.ask(made.batch(range(len(made))))


def near(share: float, expected: float, count: int) -> bool:
    """Within four standard deviations of a share of so many draws."""
    return abs(share - expected) <= 4 * max(expected * (1 - expected) / count, 1e-12) ** 0.5


def test_right_with_one_probability_where_a_condition_holds_and_with_another_elsewhere():
    made = dataset()
    _, found = answers(made, where="age > 30", accuracy=0.9, accuracy_elsewhere=0.4)
    right, old = found.cla == made.target_cla, made.columns["age"].to_numpy() > 30
    assert near(right[old].mean(), 0.9, old.sum())
    assert near(right[~old].mean(), 0.4, (~old).sum())
    wrong = (found.cla - made.target_cla)[~right] % CLASSES
    for shift in range(1, CLASSES):  # every wrong class as often
        assert near((wrong == shift).mean(), 1 / (CLASSES - 1), len(wrong))


@pytest.mark.parametrize("perfect", [2, ["a", "b"]])
def test_a_class_specialist_is_perfect_on_its_classes_and_uniform_on_the_others(perfect):
    made = dataset()
    _, found = answers(made, perfect_on=perfect)
    own = made.target_cla < 2
    np.testing.assert_array_equal(found.cla[own], made.target_cla[own])
    for label in range(CLASSES):
        assert near((found.cla[~own] == label).mean(), 1 / CLASSES, (~own).sum())


def test_noise_and_bias_of_a_value():
    made = dataset()
    _, found = answers(made, bias=2.0, noise=3.0)
    error = found.reg - made.target_reg
    assert abs(error.mean() - 2) < 4 * 3 / N**0.5
    assert abs(error.std() - 3) < 4 * 3 / (2 * N) ** 0.5
    assert near((np.abs(error - 2) < 3).mean(), 0.6826895, N)  # Gaussian
    _, elsewhere = answers(made, noise=0.0, where_reg="age > 30")
    old = made.columns["age"].to_numpy() > 30
    np.testing.assert_array_equal(elsewhere.reg[old], made.target_reg[old].astype(np.float64))
    drawn, train = elsewhere.reg[~old], made.target_reg[made.split == "train"]
    assert train.min() <= drawn.min() < drawn.max() <= train.max()
    assert near((drawn < np.median([train.min(), train.max()])).mean(), 0.5, len(drawn))
    _, noisy = answers(made, noise=0.5, noise_elsewhere=4.0, where="age > 30")
    error = noisy.reg - made.target_reg
    assert abs(error[old].std() - 0.5) < 0.05
    assert abs(error[~old].std() - 4) < 0.4


def test_missing_answers_are_as_many_as_said_and_only_where_said():
    made = dataset()
    agent, found = answers(made, answers=0.3, answers_where="age > 30")
    old = made.columns["age"].to_numpy() > 30
    there = ~np.isnan(found.cla)
    np.testing.assert_array_equal(there, ~np.isnan(found.reg))
    assert agent.partial
    assert not there[~old].any()
    assert near(there[old].mean(), 0.3, old.sum())
    assert not answers(made)[0].partial


def test_draws_belong_to_samples_and_agents_not_to_the_order():
    made, order = dataset(500), np.random.default_rng(1).permutation(500)
    keys = {"accuracy": 0.5, "noise": 1.0, "answers": 0.8}
    _, one = answers(made, **keys)
    _, other = answers(dataset(500, order), **keys)
    np.testing.assert_array_equal(one.cla[order], other.cla)
    np.testing.assert_array_equal(one.reg[order], other.reg)
    for changed in ({"name": "another"}, {"seed": 1}):
        _, different = answers(made, **keys, **changed)
        assert (np.nan_to_num(different.cla) != np.nan_to_num(one.cla)).any()


def test_the_papers_cluster_sets_exactly():
    """Section 5.2: M1 right on {C1, C2, C4} and {C1, C3, C5}, M2 on {C1, C5, C6} and {C1, C4, C6}; by either kind."""
    made = dataset()
    cluster = made.columns["cluster"].to_numpy()
    for of_class, of_value in (({1, 2, 4}, {1, 3, 5}), ({1, 5, 6}, {1, 4, 6})):
        listed = {"right_cla": sorted(of_class), "right_reg": sorted(of_value)}
        _, paper = answers(made, ClusterExpertConfig, **listed)
        sql = {
            "where": f'"cluster" IN {tuple(of_class)}',
            "where_reg": f'"cluster" IN {tuple(of_value)}',
        }
        _, same = answers(made, accuracy=1.0, accuracy_elsewhere=0.0, **sql)
        train = made.target_reg[made.split == "train"]
        for found in (paper, same):
            right, exact = found.cla == made.target_cla, found.reg == made.target_reg
            assert {c for c in range(1, 7) if right[cluster == c].all()} == of_class
            assert {c for c in range(1, 7) if not right[cluster == c].any()} == set(range(1, 7)) - of_class
            assert {c for c in range(1, 7) if exact[cluster == c].all()} == of_value
            assert {c for c in range(1, 7) if not exact[cluster == c].any()} == set(range(1, 7)) - of_value
            stay = np.sort((found.reg[~exact] - train.min()) / np.ptp(train))
            distance = np.abs(stay - (np.arange(len(stay)) + 0.5) / len(stay)).max()
            assert distance < 1.95 / len(stay) ** 0.5  # Kolmogorov and Smirnov, uniform at one in a thousand


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"perfect_on": ["f"]}, ["'f'", "a, b, c, d, e"]),
        ({"perfect_on": 6}, ["perfect_on = 6", "5 classes"]),
        ({"answers": 0.0}, ["not one sample"]),
    ],
)
def test_what_does_not_fit_is_refused(keys, words):
    refused(lambda: answers(dataset(50), **keys), UsageError, "'sim'", *words)


def test_a_key_for_elsewhere_needs_a_where(workshop):
    from test_partial_agents import RECIPE

    entry = '\n[[agents]]\nname = "s"\nkind = "simulated"\naccuracy_elsewhere = 0.2\n'
    refused(lambda: workshop.recipe(RECIPE + entry), UsageError, "accuracy_elsewhere", "where")
