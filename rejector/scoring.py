"""Scores of layered networks in numpy: a row has the same bits alone and among any others, on any processor.

A product of matrices in floats depends on the order of its sums, and that on what a BLAS library does with the rows at
the edge of a block: a sample's scores would depend on how many others are scored with it, and at a near-tie so would
its agent. Here nothing is rounded within a product, so there is no order to depend on. Numbers are first rounded to
whole multiples of a power of two, inputs row by row and weights unit by unit, with so few bits that every product and
every partial sum is a whole number below 2^53, which float64 holds exactly. (The idea is that of error-free
transformations: Ozaki, Ogita, Oishi and Rump, *Error-free transformations of matrix multiplication by using fast
routines of matrix multiplication and its applications*, Numerical Algorithms 2012.) With 64 inputs, numbers keep 23
and 24 bits, as many as float32 has.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

ROWS_AT_ONCE = 1024  # whose activations stay near a core
WHOLE = 53  # bits of a whole number that float64 holds
LEAST = -900  # exponent of numbers that are taken for 0 besides larger ones: below, scales would not fit


class ExactLayers:
    """Linear layers with ReLU between them.

    Args:
        layers: weight (out, in) and bias (out,) of each, finite.
    """

    def __init__(self, layers: Iterable[tuple[np.ndarray, np.ndarray]]):
        self._layers = [_ExactLayer(weight, bias) for weight, bias in layers]

    @property
    def outputs(self) -> int:
        return len(self._layers[-1].bias)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Outputs of the last layer, float32 (n, out), from finite rows (n, in)."""
        found = np.empty((len(rows), self.outputs), np.float32)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            values = np.array(rows[start : start + ROWS_AT_ONCE], np.float64)
            for depth, layer in enumerate(self._layers):
                values = layer(np.maximum(values, 0.0, out=values) if depth else values)
            found[start : start + ROWS_AT_ONCE] = values
        return found


class _ExactLayer:
    """One layer: weight (out, in), bias (out,)."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, largest: float | None = None):
        inputs = weight.shape[1]
        room = WHOLE - max(0, int(inputs - 1).bit_length())  # the sum of this number of products has as many bits more
        self.input_bits, weight_bits = room - room // 2, room // 2
        exact, self.bias = weight.astype(np.float64), bias.astype(np.float64)
        scale = _scale(exact, weight_bits)
        self.whole = np.ascontiguousarray(np.rint(exact * scale[:, None]).T)  # (in, out)
        self.back = 1.0 / scale
        self.scale = None if largest is None else float(_scale(np.full((1, 1), largest), self.input_bits)[0])

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(n, in) -> (n, out). Overwrites what it is given."""
        scale = _scale(values, self.input_bits)[:, None] if self.scale is None else self.scale
        values *= scale
        products = np.rint(values, out=values) @ self.whole  # exact, in whatever order
        products *= 1.0 / scale
        products *= self.back
        products += self.bias
        return products


class ExactProducts:
    """Inner products with given rows, (m, in): (n, in) -> float64 (n, m), as exact and as steady as the layers.

    Args:
        largest: of all numbers that come, where that is known: then one power of two serves them all. Else each row has
            its own.

    Attributes:
        scale: what numbers are multiplied by before they are rounded, where ``largest`` is known.
        whole: the given rows as whole numbers, (in, m).
        back: what makes a product of whole numbers one of the given rows, (m,).
    """

    def __init__(self, rows: np.ndarray, largest: float | None = None):
        self._layer = _ExactLayer(rows, np.zeros(len(rows)), largest)
        self.scale, self.whole, self.back = self._layer.scale, self._layer.whole, self._layer.back

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return self._layer(np.array(rows, np.float64))


def layers_of(state: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of :class:`l2d.rejector.networks.Linear` or ``MLP``, in order, from parameters by name."""
    if "weight" in state:
        return [(state["weight"], state["bias"])]
    places = sorted(int(name.removesuffix(".weight")) for name in state if name.endswith(".weight"))
    return [(state[f"{place}.weight"], state[f"{place}.bias"]) for place in places]


def _scale(values: np.ndarray, bits: int) -> np.ndarray:
    """A power of two for each row, that makes its largest number one of this number of bits; (rows,)."""
    largest = np.maximum(values.max(axis=1), -values.min(axis=1))
    _, exponents = np.frexp(largest)
    return np.ldexp(1.0, bits - np.maximum(exponents, LEAST))
