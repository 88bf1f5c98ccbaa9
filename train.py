"""Train a neural operator: python train.py [--config_file FILE] [--section.option VALUE ...].

Without arguments it generates a small Navier-Stokes data set and trains on it. --help lists all
options.

Exit status: 0 done; 2 wrong option or value, missing or damaged data (one line on stderr, nothing
written); 3 the training diverged; 130 after SIGINT or SIGTERM, with a checkpoint saved.
"""

import sys


def main(argv: list[str]) -> int:
    """Run the command and return its exit status."""
    # The options are checked before JAX is imported: a wrong one is told at once.
    from tensorgrad_jax.training.config import parse
    from tensorgrad_jax.training.options import ConfigError

    try:
        config = parse(argv)
        from tensorgrad_jax.backend.allocator import keep_freed_memory

        keep_freed_memory()
        from tensorgrad_jax.data import DataError
        from tensorgrad_jax.training.checkpoints import InterruptedRunError
        from tensorgrad_jax.training.loop import DivergedError
        from tensorgrad_jax.training.run import config_to_resume, run
    except ConfigError as error:
        return _fail(error, 2)
    try:
        if config.opt.resume_from_dir is not None:
            config = config_to_resume(argv, config)
        run(config)
    except (ConfigError, DataError) as error:
        return _fail(error, 2)
    except DivergedError as error:
        return _fail(error, 3)
    except InterruptedRunError as error:
        print(error, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _fail(error: Exception, status: int) -> int:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
