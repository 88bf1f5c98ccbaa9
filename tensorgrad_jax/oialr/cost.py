"""Two ways through a low-rank layer, and which one takes fewer multiplications.

    chain:   y = ((x U) S) V^H,      positions (p (m + n) + p^2)
    dense:   y = x (U S V^H),        positions m n + p^2 min(m, n) + p m n

for W of shape (m, n) and a core of size p. Backward passes cost in the same proportion: the chain
forms a gradient of p^2 numbers and never one of m n.
"""

from __future__ import annotations


def chain_products(m: int, n: int, size: int, positions: int) -> int:
    """Return the multiplications of the chain."""
    return positions * (size * (m + n) + size**2)


def dense_products(m: int, n: int, size: int, positions: int) -> int:
    """Return the multiplications of a product with the weight, its making included."""
    return positions * m * n + size**2 * min(m, n) + size * m * n


def chain_is_cheaper(m: int, n: int, size: int, positions: int) -> bool:
    """Whether the chain takes fewer multiplications.

    Args:
        m: rows of the weight.
        n: columns of the weight.
        size: of the core.
        positions: how many vectors are multiplied: tokens, pixels, samples.

    Examples:
        >>> [chain_is_cheaper(768, 768, size, 8192) for size in (384, 256, 96)]
        [False, True, True]
    """
    return chain_products(m, n, size, positions) < dense_products(m, n, size, positions)
