"""One way to features of an operator's samples, run on request: a worker for trak.py.

    python benchmarks/trak_samples.py WAY SAMPLES CHUNK K

In a process of its own, so that its largest resident memory is that of this way. Prints a line of
JSON when it is compiled; for every line read from stdin it makes features of all samples, a chunk
of them at a time, and prints milliseconds and the largest resident memory so far.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import jax
from trak import DEFAULT, compiled_peak, drawn, operator, ways


def main() -> None:
    """Serve until stdin ends."""
    way, (samples, chunk, k) = sys.argv[1], map(int, sys.argv[2:])
    loss, params, batch, p = operator(**DEFAULT | {"n": chunk})
    compiled = jax.jit(ways(loss, p, k)[way]).lower(params, batch).compile()
    params = drawn(params)
    batches = [drawn(batch, seed) for seed in range(samples // chunk)]
    jax.block_until_ready(compiled(params, batches[0]))
    print(json.dumps({"peak_bytes": compiled_peak(compiled)}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        for some in batches:
            jax.block_until_ready(compiled(params, some))
        ms = 1e3 * (time.perf_counter() - started)
        rss = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"ms": ms, "peak_rss": rss}), flush=True)


if __name__ == "__main__":
    main()
