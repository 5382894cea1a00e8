"""Toom-Cook (Winograd) transforms: m outputs of a filter of r taps from n = m + r - 1 products instead of m r.

In one dimension y = A^T ((G w) * (B^T d)) for a filter w of r taps on n inputs d. Products are those of polynomials at
n - 1 points and at infinity; the matrices come from exact fractions.
"""

import functools
import operator
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import numpy as np

Matrix: TypeAlias = np.ndarray

# Products n to the finite points. The error of a sum of tiles over that of a plain sum is, in two dimensions,
# sum_a |A_a|^2 |G_a|^2 |B_a|^2 / (m r), the same for the three forms: 4.8 for n = 6 and three taps (10.8 with points
# 0, +-1, +-2), 9.7 for n = 7. These are the best of pairs +-p, +-q(, +-s) with few binary digits.
POINTS: dict[int, tuple[Fraction, ...]] = {
    6: (Fraction(0), Fraction(5, 8), -Fraction(5, 8), Fraction(3, 2), -Fraction(3, 2)),
    7: (Fraction(1, 4), -Fraction(1, 4), Fraction(7, 8), -Fraction(7, 8), Fraction(7, 4), -Fraction(7, 4)),
}


class Transforms(NamedTuple):
    """B^T [n, n] of the input, G [n, r] of the kernel, A^T [m, n] of the output."""

    input: Matrix
    kernel: Matrix
    output: Matrix


@functools.cache
def transforms(n: int, r: int) -> Transforms:
    """The matrices of n products and r taps."""
    points, m = POINTS[n], n - r + 1
    others = [[q for q in points if q != p] for p in points]
    last = lambda size: [Fraction(i == size - 1) for i in range(size)]  # the point at infinity
    kernel = [[p**k / _product(p - q for q in rest) for k in range(r)] for p, rest in zip(points, others, strict=True)]
    rows = (
        [*([*_with_roots(rest), Fraction(0)] for rest in others), _with_roots(points)],
        [*kernel, last(r)],
        zip(*([p**i for i in range(m)] for p in points), last(m), strict=True),  # transposed
    )
    return Transforms(*(np.array([list(row) for row in matrix], dtype=float) for matrix in rows))


def _product(factors: Iterable[Fraction]) -> Fraction:
    return functools.reduce(operator.mul, factors, Fraction(1))


def _with_roots(roots: Iterable[Fraction]) -> list[Fraction]:
    """Coefficients of prod_j (x - p_j), the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*(root * c for c in coefficients), Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients
