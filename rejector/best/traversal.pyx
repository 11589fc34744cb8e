# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Rows down trees, compiled: what :mod:`l2d.rejector.best.trees` does level by level, with the same bits."""

from libc.stdint cimport int32_t, int64_t

cdef enum:
    ROWS = 256  # that go down a tree before the next one is fetched
    ABREAST = 8  # of these step by step together, so that the processor waits for several nodes at once


def mean_of_leaves(
    const int32_t[::1] roots, const int32_t[::1] left, const int32_t[::1] right, const int32_t[::1] feature,
    const double[::1] threshold, const float[:, ::1] values, const float[:, ::1] x, double[:, ::1] out,
):
    """The mean over trees of the values in the leaf that a row reaches: (n, width) -> ``out`` (n, outputs).

    Nothing is checked: arrays have to be a forest's, as :meth:`l2d.rejector.best.trees.Forest.check` finds.
    """
    cdef int64_t rows = x.shape[0], trees = roots.shape[0], outputs = values.shape[1]
    cdef int64_t start, stop, tree, row, output
    cdef int64_t abreast, k
    cdef int32_t node, lower, higher, following, inner
    cdef int32_t[ABREAST] nodes
    with nogil:
        start = 0
        while start < rows:
            stop = min(start + ROWS, rows)
            for row in range(start, stop):
                for output in range(outputs):
                    out[row, output] = 0
            for tree in range(trees):
                row = start
                while row < stop:
                    abreast = min(ABREAST, stop - row)
                    for k in range(ABREAST):
                        nodes[k] = roots[tree]
                    inner = 1
                    while inner:
                        inner = 0
                        for k in range(abreast):
                            node = nodes[k]
                            lower, higher = left[node], right[node]
                            following = higher + (lower - higher) * (x[row + k, feature[node]] <= threshold[node])
                            nodes[k] = following if lower >= 0 else node
                            inner |= lower >= 0
                    for k in range(abreast):
                        for output in range(outputs):
                            out[row + k, output] += values[-1 - left[nodes[k]], output]
                    row += abreast
            for row in range(start, stop):
                for output in range(outputs):
                    out[row, output] /= trees
            start = stop
