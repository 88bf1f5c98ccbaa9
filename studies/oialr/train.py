"""Train a network with OIALR.

    python studies/oialr/train.py                                   # a mini-ViT on digits
    python studies/oialr/train.py experiment=digits-minivit training.fixing_method.delay=100
    python studies/oialr/train.py model=cnn baseline=true name=dense
    python studies/oialr/train.py experiment=cifar10-minivit data.data_dir=DIR

Writes a folder `out`/`name`: configuration, result, checkpoint, tables and heat maps of stability.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import configuration  # noqa: E402
import training  # noqa: E402


def main() -> int:
    """Run, and return the exit status: 2 for a wrong option."""
    try:
        result = training.run(configuration.compose(sys.argv[1:]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print({key: value for key, value in result.items() if key != "ranks"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
