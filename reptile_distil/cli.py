"""What the scripts share: their options, their log lines, and one sentence instead of a traceback."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from reptile_distil.config import Config, describe, load_config
from reptile_distil.errors import ReptileDistilError

EXIT_FAULT = 2  # a fault that the user can mend
EXIT_INTERRUPTED = 130  # as shells do for Ctrl-C
EXIT_BROKEN_PIPE = 141  # as shells do for a program whose reader has gone, as `head` does

# Faults of the machine, the disk or a path that the user gave; any other is ours, and keeps its traceback.
_MENDABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ENFILE),
)


def make_parser(description: str, *, config_required: bool = True) -> argparse.ArgumentParser:
    """A parser with the options of every script: --config, key=value overrides, --print-config."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--config", type=Path, required=config_required, help="YAML file, for example configs/sst2.yaml"
    )
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example seed=1 train.epochs=3")
    return parser


def config_of(arguments: argparse.Namespace) -> Config:
    """The configuration that the options name; prints it and ends the script for --print-config."""
    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(describe(config), end="", flush=True)
        sys.exit(0)
    return config


def run(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> int:
    """Calls `main`; returns the exit code. A fault the user can mend is one sentence on stderr and code 2."""
    _log_to_stderr()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack a letter of a help text or a label
    _hide_script_folder()
    try:
        main(arguments)
        sys.stdout.flush()
    except ReptileDistilError as error:
        return _fail(str(error))
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        _forget_stdout()
        return _fail(f"{error.filename or 'the run folder or the output'}: {error.strerror}")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _fail("out of memory on the device: lower train.micro_batch_size, data.max_length or eval_batch_size")
    except KeyboardInterrupt:
        print("interrupted; the run is not finished, and starts anew the next time", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return EXIT_FAULT


def _is_out_of_memory(error: Exception) -> bool:
    """Whether it is Python's, NumPy's or PyTorch's way to say so. PyTorch is not imported to find out."""
    is_pytorchs = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or is_pytorchs


def _forget_stdout() -> None:
    """What is still to be written there would fail once more when the process ends, with a traceback."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _hide_script_folder() -> None:
    """Takes the script's own folder off the import path, where scripts/evaluate.py hides the package `evaluate`."""
    folder = Path(sys.argv[0]).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != folder]


def _log_to_stderr() -> None:
    """Our own lines from INFO on, others' from WARNING on; a second call adds nothing."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("reptile_distil").setLevel(logging.INFO)
