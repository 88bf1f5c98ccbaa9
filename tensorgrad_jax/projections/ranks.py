"""Ranks of a Tucker decomposition: what the user asked for, turned into one number per mode."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

# A tuple may hold one Ellipsis, which Python's types cannot say.
RankSpec = int | float | tuple[Any, ...]


def check_rank(owner: str, rank: RankSpec, name: str = "rank") -> None:
    """Raise ValueError unless `rank` is a budget, a rank, or a tuple of one or the other."""
    entries = rank if isinstance(rank, tuple) else (rank,)
    if isinstance(rank, tuple) and entries.count(...) == 1:
        entries = tuple(r for r in entries if r is not ...)
    allowed = (
        "a float in (0, 1], a positive integer, or a tuple of one or the other with an entry "
        "per mode, ... for modes that stay whole"
    )
    numbers = all(isinstance(r, int | float) and not isinstance(r, bool) for r in entries)
    if not entries or not numbers or len({isinstance(r, float) for r in entries}) > 1:
        raise ValueError(f"{owner}: {name} must be {allowed}, got {rank!r}")
    if any((isinstance(r, float) and not 0 < r <= 1) or r <= 0 for r in entries):
        raise ValueError(f"{owner}: {name} must be {allowed}, got {rank!r}")


def resolve_ranks(
    owner: str, rank: RankSpec, shape: tuple[int, ...], name: str = "rank"
) -> tuple[int, ...]:
    """Return the rank of every mode of a tensor of this shape; `...` stands for whole modes.

    Raises:
        ValueError: if `rank` is a tuple whose length is not the number of modes.
    """
    if isinstance(rank, tuple):
        given = len(rank)
        if ... in rank:
            place, given = rank.index(...), len(rank) - 1
            whole = shape[place : len(shape) - (given - place)]
            # Sizes where ranks are given, whole shares where shares are.
            shares = any(isinstance(r, float) for r in rank)
            entries = (1.0,) * len(whole) if shares else whole
            rank = (*rank[:place], *entries, *rank[place + 1 :])
        if len(rank) != len(shape):
            raise ValueError(
                f"{owner}: {name}={rank!r} has {given} entries for a tensor of shape {shape}"
            )
        return tuple(
            max(1, _floor(r, d)) if isinstance(r, float) else min(r, d)
            for r, d in zip(rank, shape, strict=True)
        )
    if isinstance(rank, float):
        return uniform_ranks(rank, shape)
    return tuple(min(rank, d) for d in shape)


def whole_modes(rank: RankSpec, n_modes: int) -> range:
    """Return the modes that `...` stands for."""
    if not isinstance(rank, tuple) or ... not in rank:
        return range(0)
    place = rank.index(...)
    return range(place, place + n_modes - (len(rank) - 1))


def uniform_ranks(budget: float, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return ranks of about equal shares r_i / d_i with prod(r_i) <= budget * prod(d_i).

    Shares of budget^(1/n) are rounded down, then single ranks are added where the share is
    smallest as long as the budget allows. Only where even ranks of 1 exceed the budget is it
    exceeded.
    """
    allowed = _floor(budget, math.prod(shape))
    n_modes = max(1, sum(d > 1 for d in shape))
    share = budget ** (1 / n_modes)
    ranks = [max(1, _floor(share, d)) for d in shape]
    open_modes = {i for i, d in enumerate(shape) if ranks[i] < d}
    while open_modes:
        mode = min(open_modes, key=lambda i: (ranks[i] / shape[i], i))
        grown = math.prod(ranks) // ranks[mode] * (ranks[mode] + 1)
        if grown > allowed:
            open_modes.remove(mode)
            continue
        ranks[mode] += 1
        if ranks[mode] == shape[mode]:
            open_modes.remove(mode)
    return tuple(ranks)


def _floor(share: float, size: int) -> int:
    # Decimal value, not binary: 0.57 of 100 is 57, though 0.57 * 100 = 56.99999999999999.
    return math.floor(Fraction(repr(float(share))) * size + Fraction(1, 10**9))
