"""Scores of a row: the same bits alone and among others, by every network and method; as near as float32 gets."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
import torch

from l2d.rejector.literature.neighbours import mean_costs
from l2d.rejector.route import route
from l2d.rejector.runs.run import load_run
from l2d.rejector.scoring import ExactLayers, ExactProducts, layers_of


def some_layers(sizes: list[int], seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [
        (
            generator.normal(size=(b, a)).astype(np.float32) / np.float32(math.sqrt(a)),
            np.float32(generator.normal(size=b)),
        )
        for a, b in itertools.pairwise(sizes)
    ]


def subsets(rows: int):
    """Some rows of so many, in some order."""
    generator = np.random.default_rng(1)
    yield generator.permutation(rows)
    for size in (1, 2, 3, 7, 16, 33, 100):
        yield generator.choice(rows, min(size, rows), replace=False)


@pytest.mark.parametrize("sizes", [[4, 3], [1, 1, 2], [33, 17, 5], [64, 64, 64, 4], [1500, 20, 3]], ids=str)
def test_a_row_has_the_same_bits_alone_and_among_others(sizes):
    layers, rows = ExactLayers(some_layers(sizes)), np.random.default_rng(2).normal(size=(1300, sizes[0]))
    whole = layers(rows)
    for chosen in subsets(len(rows)):
        np.testing.assert_array_equal(layers(rows[chosen]), whole[chosen])
    np.testing.assert_array_equal(layers(np.asfortranarray(rows)), whole)
    assert layers(rows[:0]).shape == (0, sizes[-1])


@pytest.mark.parametrize("sizes", [[5, 3], [64, 64, 64, 4]], ids=str)
def test_outputs_are_as_near_to_the_truth_as_float32_gets(sizes):
    given, rows = some_layers(sizes), np.random.default_rng(3).normal(size=(500, sizes[0])).astype(np.float32)
    truth, in_float32 = rows.astype(np.float64), torch.from_numpy(rows)
    for depth, (weight, bias) in enumerate(given):
        if depth:
            truth, in_float32 = np.maximum(truth, 0), in_float32.relu()
        truth = truth @ weight.T.astype(np.float64) + bias
        in_float32 = torch.nn.functional.linear(in_float32, torch.from_numpy(weight), torch.from_numpy(bias))
    error = np.abs(ExactLayers(given)(rows) - truth)
    assert error.max() < 2e-6
    assert error.mean() < 2 * np.abs(in_float32.numpy() - truth).mean()


def test_products_are_exact_sums_of_rounded_numbers():
    """No rounding within a product: against fractions."""
    generator = np.random.default_rng(4)
    rows = generator.normal(size=(20, 50)) * 10.0 ** generator.integers(-30, 30, (20, 1))
    rows[3], rows[4, 1:] = 0, 0
    weights = generator.normal(size=(6, 50)) * 10.0 ** generator.integers(-3, 3, (6, 1))
    found = ExactProducts(weights)(rows)

    def rounded(row: np.ndarray, bits: int) -> list[Fraction]:
        largest = np.abs(row).max()
        unit = Fraction(2) ** (int(np.frexp(largest)[1]) - bits) if largest else Fraction(1)
        return [round(Fraction(float(value)) / unit) * unit for value in row]

    room = 53 - 6  # 50 products
    for i, row in enumerate(rows):
        for j, weight in enumerate(weights):
            pairs = zip(rounded(row, room - room // 2), rounded(weight, room // 2), strict=True)
            assert found[i, j] == float(sum(a * b for a, b in pairs)), (i, j)


def test_layers_come_in_their_order():
    state = {f"{place}.{kind}": np.full(1, place) for place in (10, 2, 0, 4, 6, 8) for kind in ("bias", "weight")}
    assert [int(weight[0]) for weight, _ in layers_of(state)] == [0, 2, 4, 6, 8, 10]
    assert [int(bias[0]) for _, bias in layers_of(state)] == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("network", ["linear", "mlp", "transformer"])
def test_a_row_of_a_run_is_routed_alone_as_among_others(patient_runs, network, tmp_path):
    table = pl.read_parquet(patient_runs / "patients.parquet")
    whole = tmp_path / "whole.parquet"
    route(patient_runs / network, patient_runs / "patients.parquet", whole)
    expected = pl.read_parquet(whole)
    for number, chosen in enumerate(subsets(table.height)):
        some, out = tmp_path / f"some{number}.parquet", tmp_path / f"out{number}.parquet"
        table[chosen.tolist()].write_parquet(some)
        route(patient_runs / network, some, out)
        assert pl.read_parquet(out).equals(expected[chosen.tolist()])
    rejector = load_run(patient_runs / network).rejector
    features = np.random.default_rng(0).normal(size=(3000, rejector.width)).astype(np.float32)
    scores = rejector.scores(features)
    for chosen in subsets(len(features)):
        np.testing.assert_array_equal(rejector.scores(features[chosen]), scores[chosen])


def test_neighbours_do_not_depend_on_the_other_samples():
    generator = torch.Generator().manual_seed(0)
    x, memory = torch.randn(500, 30, generator=generator), torch.randn(400, 30, generator=generator)
    costs = torch.rand(400, 3, generator=generator)
    whole = mean_costs(x, memory, costs, [1, 5])
    for chosen in map(torch.from_numpy, subsets(len(x))):
        assert torch.equal(mean_costs(x[chosen], memory, costs, [1, 5]), whole[:, chosen])
