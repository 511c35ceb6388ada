"""What the scripts share: their options, their log lines, and one sentence instead of a traceback."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import logging
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from reptile_distil.config.config import Config, describe_config, load_config
from reptile_distil.errors import DataError, ReptileDistilError
from reptile_distil.home_folder import expand_home
from reptile_distil.runtime.interrupts import Interrupted
from reptile_distil.runtime.launcher import launched_rank, launched_several

logger = logging.getLogger(__name__)

DRY_RUN = "check everything, take a few steps on copies, print plan and estimate, and train nothing"
EXIT_FAULT = 2  # a fault that the user can mend
EXIT_STOPPED = 130  # as shells do for Ctrl-C
SECONDS_FOR_THE_MAIN_PROCESS = 10.0
EXIT_BROKEN_PIPE = 141  # as shells do for a program whose reader has gone, as `head` does

# Faults of the machine, the disk or a path that the user gave; any other is ours, and keeps its traceback.
_MENDABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EMFILE, errno.ENFILE),
)


class Parser(argparse.ArgumentParser):
    """A parser for key=value overrides that may stand anywhere, behind an option with a list of values too."""

    def __init__(self, **options: Any) -> None:
        self._lists: set[str] = set()
        super().__init__(**options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse has it."""
        if options.get("nargs") == "+":
            self._lists.update(names)
        return super().add_argument(*names, **options)

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse has it, but overrides are no values of an option with a list of them."""
        words, overrides, others = list(sys.argv[1:] if args is None else args), [], []
        in_list = False
        for word in words:
            if in_list and re.match(r"[A-Za-z_][\w.]*=", word):
                overrides.append(word)
                continue
            in_list = word in self._lists or (in_list and not word.startswith("--"))
            others.append(word)
        return super().parse_intermixed_args([*overrides, *others], namespace)


def make_parser(description: str, *, config_required: bool = True) -> argparse.ArgumentParser:
    """A parser with the options of every script: --config, key=value overrides, --print-config."""
    parser = Parser(description=description)
    parser.add_argument(
        "--config",
        type=path_option,
        required=config_required,
        help="YAML file, or the name of one that comes with the package: sst2, quickstart, table-toy, ...",
    )
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example seed=1 train.epochs=3")
    return parser


def path_option(text: str) -> Path:
    """The type of an option that is a path: `~` at its front, which not every shell replaces, is the home folder."""
    return Path(name_option(text))


def name_option(text: str) -> str:
    """The type of an option that is a path or the name of something else, with `~` as in `path_option`."""
    return expand_home(text)


def config_of(arguments: argparse.Namespace) -> Config:
    """The configuration that the options name; prints it and ends the script for --print-config."""
    if arguments.print_config:
        print(describe_config(arguments.config, arguments.overrides), end="", flush=True)
        sys.exit(0)
    return load_config(arguments.config, arguments.overrides)


def say_what_starts(config: Config, what: str) -> None:
    """One line before the imports that take seconds, so that nobody looks at a blank screen."""
    logger.info("task %s, seed %d: %s", config.task_name, config.seed, what)


def say_what_is_next(model: Path) -> None:
    """After a student's scores, where it lies and what can be done with it."""
    sys.stdout.flush()
    logger.info("the student: %s", model)
    command = " ".join(script_command("report"))
    logger.info("next: %s --model %s   # its size, its speed and its model card", command, model)


def script_command(script: str) -> list[str]:
    """The words that start a script, in the way that this one was started."""
    started = Path(sys.argv[0])
    if started.suffix == ".py":
        return ["python", str(started.with_name(script + ".py"))]
    return ["reptile-distil", script]


def run(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> int:
    """Calls `main`; returns the exit code. A fault the user can mend is one sentence on stderr and code 2."""
    _log_to_stderr()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack a letter of a help text or a label
    _hide_script_folder()
    try:
        with _only_the_main_process_prints():
            main(arguments)
            sys.stdout.flush()
        _leave_the_others()
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
        if (sentence := _explain(error)) is None:
            raise
        return _fail(sentence)
    except Interrupted as error:
        _leave_the_others()
        if launched_rank() == 0:
            print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if launched_rank() == 0:
            print(
                "stopped at once; the same command goes on from the last checkpoint, if there is one", file=sys.stderr
            )
        return EXIT_STOPPED
    return 0


def check_output(option: str, path: Path, *, makes_folders: bool = False) -> None:
    """Raises `DataError`, before the work is done, where `write_output` could not write the file of an option."""
    from reptile_distil.runtime.files import check_replaceable

    try:
        check_replaceable(path, makes_folders=makes_folders)
    except OSError as error:
        raise DataError(f"{option} {path}: cannot be written: {error.strerror}") from None


def write_output(option: str, path: Path, text: str) -> None:
    """Replaces the file that an option names by this text. Raises `DataError` where it cannot be written."""
    from reptile_distil.runtime.files import write_text  # not before it is needed: it takes safetensors

    try:
        write_text(path, text)
    except OSError as error:
        raise DataError(f"{option} {path}: cannot be written: {error.strerror}") from None


def _explain(error: MemoryError | RuntimeError) -> str | None:
    """One sentence where memory or another process of the run is lacking; None for anything else."""
    from reptile_distil.runtime.measuring import is_out_of_memory  # not before it is needed: it takes PyTorch
    from reptile_distil.runtime.processes import is_lost_process

    if isinstance(error, RuntimeError) and is_lost_process(error):
        reason = " ".join(str(error).split())[:200]
        return f"another process of this run has ended or does not answer ({reason})"
    if is_out_of_memory(error):
        return "out of memory: lower train.micro_batch_size, train.eval_batch_size or data.max_length"
    return None


def _leave_the_others() -> None:
    """Ends the exchange with the other processes of a run that is one of several."""
    if launched_several():
        from reptile_distil.runtime.processes import stop_processes

        stop_processes()


def _fail(sentence: str) -> int:
    if rank := launched_rank():
        # The main process has mostly met the same fault; it says so, and its launcher then ends this process.
        time.sleep(SECONDS_FOR_THE_MAIN_PROCESS)
        sentence = f"process {rank}: {sentence}"
    print(f"error: {sentence}", file=sys.stderr)
    return EXIT_FAULT


@contextlib.contextmanager
def _only_the_main_process_prints() -> Iterator[None]:
    """What the other processes of a run print to stdout would be the same."""
    if launched_rank() == 0:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _forget_stdout() -> None:
    """What is still to be written there would fail once more when the process ends, with a traceback."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _hide_script_folder() -> None:
    """Takes the script's own folder off the import path, where scripts/evaluate.py hides the package `evaluate`."""
    folder = os.path.dirname(os.path.realpath(sys.argv[0]))  # noqa: PTH120 (pathlib raises for a link to itself)
    sys.path[:] = [entry for entry in sys.path if not entry or os.path.realpath(entry) != folder]


def terminal_width(stream: TextIO) -> int | None:
    """Columns of the terminal that the stream writes to; None where it is none, such as a file or a pipe."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


class _WrappedLines(logging.Formatter):
    """Breaks lines between words where a terminal would break them anywhere."""

    def format(self, record: logging.LogRecord) -> str:
        line, width = super().format(record), terminal_width(sys.stderr)
        if width is None or len(line) <= width or "\n" in line:
            return line
        indent = "    "
        return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _log_to_stderr() -> None:
    """Our own lines from INFO on, others' from WARNING on, the main process's alone; a second call adds nothing."""
    is_main = launched_rank() == 0
    logging.basicConfig(level=logging.WARNING if is_main else logging.ERROR, format="%(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_WrappedLines("%(message)s"))
    logging.getLogger("reptile_distil").setLevel(logging.INFO if is_main else logging.ERROR)
    if not (is_main and sys.stderr.isatty()):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when huggingface_hub is imported
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
