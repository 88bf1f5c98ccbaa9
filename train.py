"""Train a neural operator: python train.py [--config_file FILE] [--section.option VALUE ...].

Without arguments it generates a small Navier-Stokes data set and trains on it. --help lists all
options.

Exit status: 0 done; 1 a file could not be written or memory ran out, the last checkpoint is intact;
2 wrong option or value, missing or damaged data, nothing written; 3 the training diverged, the last
checkpoint is from before; 130 after SIGINT, SIGTERM or SIGHUP. Each but the first with one line on
stderr.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

NOTHING = "nothing was trained yet, the same command begins again"


def main(argv: list[str], stop: Any = None) -> int:
    """Run the command and return its exit status.

    Args:
        argv: the arguments.
        stop: the `Stop` that ends the process after a signal, if there is one.
    """
    # The options are checked before JAX is imported: a wrong one is told at once.
    from tensorgrad_jax.training.config import folder_to_resume, parse
    from tensorgrad_jax.training.options import ConfigError

    try:
        resumed = folder_to_resume(argv)
        config = None if resumed else parse(argv)
        from tensorgrad_jax.backend.allocator import keep_freed_memory

        keep_freed_memory()
        from tensorgrad_jax.data import DataError
        from tensorgrad_jax.training.loop import DivergedError, InterruptedRunError
        from tensorgrad_jax.training.run import config_to_resume, run
    except ConfigError as error:
        return _fail(error, 2)

    status = 2

    def begun(folder: Path) -> None:
        nonlocal status
        status = 1  # what is wrong with the data from now on was done to them during the run
        if stop is not None:
            stop.advice = f"continue with --opt.resume_from_dir {folder}"

    try:
        run(config or config_to_resume(argv, Path(str(resumed))), begun=begun)
    except (ConfigError, DataError) as error:
        return _fail(error, status)
    except DivergedError as error:
        return _fail(error, 3)
    except InterruptedRunError as error:
        print(error, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename and error.strerror else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except MemoryError as error:
        return _fail(f"no memory left ({error or 'in Python'})", 1)
    except RuntimeError as error:  # what JAX raises where a device has no memory left
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _fail(error, 1)
    return 0


def _fail(error: object, status: int) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    print("error:", text if len(text) <= 1000 else text[:997] + "...", file=sys.stderr)
    return status


def _leave(number: int, frame: Any) -> None:
    if sys.stderr is not None:
        os.write(2, f"stopped; {NOTHING}\n".encode())
    os._exit(130)


if __name__ == "__main__":
    # Importing the package, and JAX with it, takes a second or two: in it a signal is obeyed here.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)
    from tensorgrad_jax.training.stops import Stop, keep_streams

    keep_streams()
    stop = Stop(NOTHING)
    stop.end(main(sys.argv[1:], stop))
