"""One thread an operation, for as long as it is asked for."""

from __future__ import annotations

import pytest
import torch
from threadpoolctl import threadpool_info

from l2d.data.threads import one_thread


def numbers() -> list[int]:
    return [torch.get_num_threads(), *(library["num_threads"] for library in threadpool_info())]


@one_thread()
def fails() -> None:
    assert set(numbers()) == {1}
    raise KeyError


def test_threads_are_given_back_whatever_happens():
    before = numbers()
    with pytest.raises(KeyError):
        fails()
    assert numbers() == before
