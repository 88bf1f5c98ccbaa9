"""Test a network that train.py has trained, with the ranks that it came to.

python studies/oialr/test.py runs/oialr/NAME
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import training  # noqa: E402


def main() -> int:
    """Print the accuracy, and return the exit status: 2 if there is no run."""
    if len(sys.argv) != 2:
        print("error: one argument is expected, the folder of a run", file=sys.stderr)
        return 2
    try:
        model, config, test = training.load(Path(sys.argv[1]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{config['name']}: test {training.accuracy(model, test):.2f}%")
    return 0


if __name__ == "__main__":
    sys.exit(main())
