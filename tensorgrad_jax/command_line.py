"""What the commands of this package have in common: how a wrong option is told."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """A parser whose mistakes are one line on stderr and exit status 2, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit."""
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)
