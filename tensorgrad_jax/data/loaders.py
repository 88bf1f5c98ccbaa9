"""Batches of samples: shuffled, prefetched, and the same ones every time for seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

# Batches that worker threads prepare ahead of the one in use.
_PREFETCHED = 4


def n_batches(source: Any, batch_size: int) -> int:
    """Return the number of batches in an epoch."""
    return -(-len(source) // batch_size)


def batches(
    source: Any,
    batch_size: int,
    *,
    seed: int,
    epoch: int = 0,
    start: int = 0,
    shuffle: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """Return the batches of one epoch, all of the same size.

    Every sample is seen; where their number is no multiple of the batch size, the last batch is
    filled up with samples that are seen twice. Batch i depends on seed, epoch and i alone: an
    epoch can be entered anywhere.

    Args:
        source: random access to samples, dictionaries of arrays.
        batch_size: samples per batch.
        seed: of the shuffling, in [0, 2**32).
        epoch: number of the epoch; each has its own order.
        start: batches to leave out at the beginning.
        shuffle: whether to shuffle at all.
    """
    n = n_batches(source, batch_size)
    samples = grain.MapDataset.source(source)
    if shuffle:
        # One seed per epoch: SeedSequence mixes the two as no sum of them could.
        mixed = np.random.SeedSequence([seed, epoch]).generate_state(1)[0]
        samples = samples.shuffle(seed=int(mixed))
    # Rounds after the first only fill up the last batch.
    whole = samples.repeat(-(-n * batch_size // len(source))).batch(batch_size)
    return iter(
        whole[start:n].to_iter_dataset(
            grain.ReadOptions(num_threads=2, prefetch_buffer_size=_PREFETCHED)
        )
    )
