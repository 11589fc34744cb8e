"""Intervals and p-values: the resampling itself, its closed forms, other libraries, and what coverage they have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from l2d.rejector.evaluation import resampling
from l2d.rejector.evaluation.intervals import holm, paired_interval, paired_intervals
from l2d.rejector.evaluation.resampling import bootstrap_errors, poisson_thresholds


@pytest.mark.parametrize("units", [1, 2, 3, 4])
def test_resamples_of_a_few_are_all_the_resamples_there_are(units):
    """Every resample of 4 units with its multinomial probability, against how often it comes up."""
    resamples = 40_000
    weights = np.rint(bootstrap_errors(np.eye(units), np.ones(units), resamples, 0) * units).astype(int)
    assert (weights.sum(axis=1) == units).all()
    seen = {tuple(row): 0 for row in itertools.product(range(units + 1), repeat=units) if sum(row) == units}
    for row in weights:
        seen[tuple(row)] += 1
    chances = stats.multinomial(units, np.full(units, 1 / units)).pmf(np.array(list(seen)))
    found = np.array(list(seen.values()))
    assert chances.sum() == pytest.approx(1)
    if units > 1:
        assert stats.chisquare(found, chances * resamples).pvalue > 1e-3


@pytest.mark.parametrize("units", [30, 1100])
def test_counts_are_multinomial_where_most_are_drawn_as_poisson(units):
    weights = np.rint(bootstrap_errors(np.eye(units), np.ones(units), 1500, 1) * units)
    assert (weights.sum(axis=1) == units).all()
    pooled = np.bincount(weights.astype(int).ravel(), minlength=8)[:8] / weights.size
    np.testing.assert_allclose(pooled, stats.binom(units, 1 / units).pmf(np.arange(8)), atol=4e-3)
    pairs = [np.corrcoef(weights[:, i], weights[:, i + 1])[0, 1] for i in range(0, units - 1, 2)]
    assert np.mean(pairs) == pytest.approx(-1 / (units - 1), abs=4 / np.sqrt(len(pairs) * 1500))


def test_thresholds_give_poisson_counts():
    numbers = np.arange(2**16)
    counts = sum((numbers >= threshold).astype(int) for threshold in poisson_thresholds(0.9))
    found = np.bincount(counts) / 2**16
    np.testing.assert_allclose(found, stats.poisson(0.9).pmf(np.arange(len(found))), atol=2**-16)
    assert poisson_thresholds(0.0) == []


def test_the_spread_of_resampled_means_is_the_closed_form():
    values = np.random.default_rng(0).exponential(size=(30, 3)) ** 1.5
    centred = values - values.mean(axis=0)
    errors = bootstrap_errors(centred, np.ones(30), 40_000, 0)
    np.testing.assert_allclose(errors.std(axis=0), values.std(axis=0) / np.sqrt(30), rtol=0.02)
    np.testing.assert_allclose(errors.mean(axis=0), 0, atol=0.03 * values.std() / np.sqrt(30))
    third = (errors**3).mean(axis=0)  # the third central moment of a mean is that of a value by n^2
    np.testing.assert_allclose(third, (centred**3).mean(axis=0) / 30**2, rtol=0.2)


@pytest.mark.parametrize("seed", range(4))
def test_intervals_are_those_of_scipy(seed):
    differences = np.random.default_rng(seed).gamma(0.5, size=300) - 0.4
    found = paired_interval(differences)
    theirs = stats.bootstrap(
        (differences,), np.mean, method="percentile", n_resamples=10_000, vectorized=True, rng=seed
    ).confidence_interval
    width = theirs.high - theirs.low
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)
    assert found.value == pytest.approx(differences.mean())


@pytest.mark.slow
def test_few_samples_get_the_width_of_student_t():
    """Where the plain percentile interval of 8 values is a fifth too narrow."""
    widths = []
    for seed in range(60):
        values = np.random.default_rng(seed).normal(size=8)
        found, theirs = paired_interval(values), stats.t.interval(0.95, 7, values.mean(), stats.sem(values))
        widths.append((found.high - found.low) / (theirs[1] - theirs[0]))
    assert np.mean(widths) == pytest.approx(1.0, abs=0.06)


def test_p_values_are_those_of_the_t_test_and_agree_with_the_interval():
    generator = np.random.default_rng(0)
    for size in (12, 200):
        tables = [generator.normal(loc=shift, size=size) for shift in np.linspace(-0.6, 0.6, 30)]
        for values, found in zip(tables, paired_intervals(tables), strict=True):
            assert (found.p < 0.05) == (not found.low <= 0 <= found.high) or abs(found.p - 0.05) < 0.005
            expected = stats.ttest_1samp(values, 0).pvalue
            assert found.p == pytest.approx(expected, abs=0.06)
    far = paired_interval(generator.normal(loc=0.4, size=400))  # beyond what 10,000 resamples can tell
    assert 0 < far.p < 1e-8
    once = np.zeros(81)
    once[7] = 0.5  # a third of all resamples are 0 throughout
    for values in (once, -once):
        found = paired_interval(values)
        assert found.p == pytest.approx(2 * np.exp(-1), abs=0.04)
        assert min(abs(found.low), abs(found.high)) == pytest.approx(0, abs=1e-9)
    assert paired_interval(np.zeros(50)).p == 1.0
    assert paired_interval(np.full(50, 0.1)).p == 0.0


def test_whole_groups_are_resampled():
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 9, 40)
    groups = generator.permutation(np.repeat(np.arange(40) * 3, sizes))  # codes need not be dense
    values = generator.normal(size=120)[groups] + 0.1 * generator.normal(size=len(groups))
    found = paired_interval(values, groups)
    brute = np.random.default_rng(1)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    means = []
    for _ in range(4000):
        rows = np.concatenate([members[g] for g in brute.integers(0, 40, 40)])
        means.append(values[rows].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    widening = np.sqrt(40 / 39) * stats.t.ppf(0.975, 39) / 1.96
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(widening * (high - low), rel=0.06)
    alone = paired_interval(values)
    assert found.high - found.low > 1.5 * (alone.high - alone.low)
    everyone = paired_interval(values, np.arange(len(values)))
    assert (everyone.low, everyone.high) == pytest.approx((alone.low, alone.high), abs=1e-6)
    one = paired_interval(values, np.zeros(len(values), dtype=int))
    assert (one.low, one.high, one.p) == (one.value, one.value, 1.0)


def test_the_normal_interval_of_very_many_samples_is_that_of_the_bootstrap():
    generator = np.random.default_rng(2)
    values, groups = generator.exponential(size=4000) - 0.95, generator.integers(0, 1000, 4000)
    bootstrapped = [paired_interval(values), paired_interval(values, groups)]
    normal = [paired_intervals([values], by, normal_from=1)[0] for by in (None, groups)]
    assert normal != bootstrapped
    for found, expected in zip(normal, bootstrapped, strict=True):
        width = expected.high - expected.low
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.04 * width)
        assert found.p == pytest.approx(expected.p, abs=0.03)


def test_many_differences_are_resampled_alike_and_an_interval_does_not_depend_on_the_others():
    values = np.random.default_rng(0).normal(size=(70, 200))
    many = paired_intervals(values)
    assert len(many) == 70
    for position in (0, 63, 64, 69):
        alone = paired_interval(values[position])
        assert (alone.low, alone.high, alone.p) == pytest.approx(
            (many[position].low, many[position].high, many[position].p), abs=1e-5
        )
    assert paired_intervals(values, seed=1) != many
    assert paired_intervals([]) == []


def test_intervals_hold_the_true_mean_about_95_times_in_100():
    """Zero-inflated differences, as between two allocations that mostly agree: mean 0.3 p. More: benchmarks."""
    generator = np.random.default_rng(0)
    tables = [np.where(generator.random(120) < 0.5, generator.exponential(0.3, size=120), 0.0) for _ in range(300)]
    found = [interval.low <= 0.15 <= interval.high for interval in paired_intervals(tables)]
    assert 0.91 <= np.mean(found) <= 0.985


def test_holm_steps_down():
    def by_hand(p_values: list[float]) -> list[float]:
        """Reject in order of p until one fails: the adjusted value is the smallest level at which one is rejected."""
        adjusted = [1.0] * len(p_values)
        for level in np.linspace(0, 1, 4001):
            order = sorted(range(len(p_values)), key=p_values.__getitem__)
            for step, position in enumerate(order):
                if p_values[position] > level / (len(p_values) - step):
                    break
                adjusted[position] = min(adjusted[position], level)
        return adjusted

    generator = np.random.default_rng(0)
    for size in (1, 2, 5, 9):
        p_values = (generator.random(size) ** 3).tolist()
        np.testing.assert_allclose(holm(p_values), by_hand(p_values), atol=1 / 3999)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_many_differences_have_the_intervals_that_each_has_alone():
    """Two ways to add up the same resamples: rows that are gathered for a few columns, one product for many."""
    differences = np.random.default_rng(8).gamma(0.5, size=(70, 900)) - 0.45
    together = paired_intervals(differences, resamples=2_000)
    for values, found in zip(differences[::9], together[::9], strict=True):
        alone = paired_intervals([values], resamples=2_000)[0]
        assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=1e-6)
        assert found.p == pytest.approx(alone.p, abs=2e-3)


def test_where_the_normal_interval_begins_is_up_to_the_caller():
    values = np.random.default_rng(9).normal(0.1, 1, 400)
    (found,) = paired_intervals([values], normal_from=400)
    error = values.std(ddof=1) / 20
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - 1.959964 * error, values.mean() + 1.959964 * error)
    )


def test_draws_that_are_kept_are_those_that_are_drawn_anew():
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 9, 300).astype(float)
    for columns in (2, 40):
        sums = generator.normal(size=(300, columns))
        first, again = (bootstrap_errors(sums, sizes, 600, 5) for _ in range(2))
        resampling._KEPT._draws.clear()
        assert first.tobytes() == again.tobytes() == bootstrap_errors(sums, sizes, 600, 5).tobytes()


def test_no_more_draws_are_kept_than_fit():
    kept = resampling._Kept(1000)
    blocks = [[resampling._Draws(np.zeros((1, size), np.uint8), np.zeros(0), np.zeros(0))] for size in (400, 500, 200)]
    for number, block in enumerate(blocks[:2]):
        kept.put((number, 1, 0), block)
    assert kept.get((0, 1, 0)) is blocks[0]
    kept.put((2, 1, 0), blocks[2])
    assert [kept.get((number, 1, 0)) for number in range(3)] == [blocks[0], None, blocks[2]]
    kept.put((3, 1, 0), [resampling._Draws(np.zeros((1, 2000), np.uint8), np.zeros(0), np.zeros(0))])
    assert not kept._draws
