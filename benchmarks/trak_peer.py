"""traker's BasicProjector, timed one call at a time on request: a worker for trak.py.

    python benchmarks/trak_peer.py P K B     # with torch and traker 0.3.2 installed

Prints a line of JSON when it is ready; for every kind read from stdin it projects once and prints
milliseconds.
"""

import importlib.metadata
import json
import sys
import time

import torch
from trak.projectors import BasicProjector, ProjectionType


def main():
    """Serve until stdin ends."""
    p, k, b = map(int, sys.argv[1:])
    gradients = torch.randn(b, p)
    projectors = {
        kind.value: BasicProjector(p, k, 0, kind, "cpu", block_size=100) for kind in ProjectionType
    }
    versions = {name: importlib.metadata.version(name) for name in ("torch", "traker")}
    print(json.dumps(versions | {"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        projectors[line.strip()].project(gradients, model_id=0)
        print(json.dumps(1e3 * (time.perf_counter() - started)), flush=True)


if __name__ == "__main__":
    main()
