"""Dropout by a hash: shares, independence, and that nothing but seed, step, row and place matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from l2d.rejector.training.dropout import SeededDropout, row_keys

CPU = torch.device("cpu")


def dropped(seed: int, step: int, share: float = 0.1, shape=(10, 16), rows: int = 500, calls: int = 1) -> np.ndarray:
    drop = SeededDropout(row_keys([seed], step, rows, CPU)[0], share)
    for _ in range(calls):
        values = drop(torch.ones(rows, *shape))
    return (values == 0).double().numpy()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_each_number_is_dropped_with_its_share_and_the_others_scaled_up(share):
    found = dropped(0, 0, share)
    spread = np.sqrt(share * (1 - share))
    assert abs(found.mean() - share) < 5 * spread / np.sqrt(found.size)
    for axis in range(3):  # no row, place or channel is special: means scatter as those of independent draws
        means = found.mean(axis=tuple({0, 1, 2} - {axis}))
        assert abs(means - share).max() < 5 * spread / np.sqrt(found.size / len(means))
    values = SeededDropout(row_keys([0], 0, 500, CPU)[0], share)(torch.full((500, 10, 16), 3.0))
    assert set(values.unique().tolist()) == {0.0, float(torch.tensor(3.0) / (1 - share))}


def test_draws_of_other_seeds_steps_calls_rows_and_places_are_independent():
    found = dropped(0, 0)
    others = [dropped(1, 0), dropped(0, 1), dropped(0, 0, calls=2), np.roll(found, 1, 0)]
    others += [np.roll(found, shift, axis) for axis in (1, 2) for shift in (1, 2, 4)]
    for other in others:
        assert abs(((found - 0.1) * (other - 0.1)).mean()) < 5 * 0.09 / np.sqrt(found.size)


def test_they_do_not_depend_on_what_else_is_drawn():
    found = dropped(3, 7)
    np.testing.assert_array_equal(found, dropped(3, 7))
    keys = row_keys([1, 3, 2**62], 7, 500, CPU)
    np.testing.assert_array_equal(row_keys([3], 7, 20, CPU)[0], keys[1, :20])
    part = SeededDropout(keys[1, 100:200], 0.1)(torch.ones(100, 6, 16))  # another process's share, shorter lists
    np.testing.assert_array_equal((part == 0).double().numpy(), found[100:200, :6])
    together = torch.func.vmap(lambda keys: SeededDropout(keys, 0.1)(torch.ones(500, 10, 16)))(keys)
    np.testing.assert_array_equal((together[1] == 0).double().numpy(), found)
