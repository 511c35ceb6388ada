"""Measures the time and memory of a training step: fine-tuning, KD, Reptile, MetaDistil, and Reptile as released.

python scripts/benchmark.py --lengths 32 sst2 rte [--batch-sizes 32] [--depths 12:6] [--widths 384] [--json FILE]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from reptile_distil.cli import check_output, name_option, path_option, run, write_output

MOST_THREADS = 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table for each case; every combination of lengths, batch sizes, depths and widths is one."""
    arguments = parse(argv)

    from reptile_distil.benchmark.arithmetic import measure_peaks
    from reptile_distil.benchmark.report import check_can_plot, plot, to_json, to_markdown
    from reptile_distil.benchmark.steps import describe_machine, make_cases, run_case

    for option, path in (("--json", arguments.json), ("--plot", arguments.plot)):
        if path:
            check_output(option, path)
    if arguments.plot:
        check_can_plot(arguments.plot)
    check_numbers(arguments)
    settings = settings_of(arguments)
    sizes = (arguments.batch_sizes, arguments.depths, arguments.widths)
    cases = make_cases(arguments.lengths, *sizes, models=arguments.models, quantiles=settings.quantiles)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    peaks = measure_peaks(settings.device, torch.bfloat16 if settings.precision == "bf16" else torch.float32)
    machine = describe_machine(settings.device)
    print(
        f"{machine}: {peaks.flops / 1e9:.0f} GFLOP/s in a matrix product, {peaks.bandwidth / 1e9:.1f} GB/s in a copy\n"
    )
    measured = []
    for case in cases:
        measured.append((case, run_case(case, settings, peaks)))
        print(to_markdown(*measured[-1]), end="\n\n", flush=True)
        about = {"machine": machine, "torch": torch.__version__, "peaks": peaks._asdict()}
        if arguments.json:
            report = to_json(measured, **about, settings=settings._asdict())
            write_output("--json", arguments.json, json.dumps(report, indent=2) + "\n")
        if arguments.plot:
            on_one_thread = settings.device == "cpu" and torch.get_num_threads() == 1
            plot(measured, arguments.plot, machine, by_processor=on_one_thread)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    from reptile_distil.benchmark.steps import METHODS

    parser = argparse.ArgumentParser(description="Time and memory of a training step, methods taking turns.")
    parser.add_argument(
        "--lengths", nargs="+", default=["32", "sst2", "rte"], help="cola, sst2, stsb, rte, wnli, or numbers of tokens"
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32])
    parser.add_argument("--depths", nargs="+", default=["12:6"], help="teacher's and student's layers, as in 12:6")
    parser.add_argument("--widths", nargs="+", type=int, default=[384])
    parser.add_argument(
        "--models",
        nargs=2,
        type=name_option,
        metavar=("TEACHER", "STUDENT"),
        help="folders of models, instead of depths and widths",
    )
    parser.add_argument(
        "--data",
        nargs=2,
        type=name_option,
        metavar=("FOLDER", "TOKENIZER"),
        help="measure the tasks' lengths anew, in GLUE's own files",
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which (all)")
    parser.add_argument("--quiz-batch-size", type=int, metavar="N", help="rows of MetaDistil's quiz (as the batch)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="not of the released step")
    parser.add_argument("--graphs", action="store_true", help="steps from CUDA graphs, the released one apart")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--batches", type=int, default=5, help="batches of a task, short to long (5)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each method takes each batch (3)")
    parser.add_argument("--json", type=path_option, help="file to write all figures to")
    parser.add_argument("--plot", type=path_option, help="picture to write (needs matplotlib)")
    return parser.parse_args(argv)


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raises `ConfigError`, before anything is measured, for numbers that nothing can be measured with."""
    from reptile_distil.errors import ConfigError

    for option, number in (
        ("--quiz-batch-size", arguments.quiz_batch_size),
        ("--batches", arguments.batches),
        ("--rounds", arguments.rounds),
    ):
        if number is not None and number < 1:
            raise ConfigError(f"{option} {number}: expected at least 1")
    if arguments.threads is not None and not 1 <= arguments.threads <= MOST_THREADS:
        raise ConfigError(f"--threads {arguments.threads}: expected 1 to {MOST_THREADS}")


def settings_of(arguments: argparse.Namespace) -> Any:
    """How the options say to measure."""
    from reptile_distil.benchmark.steps import Settings
    from reptile_distil.benchmark.token_lengths import QUANTILES, measure_quantiles
    from reptile_distil.errors import ConfigError
    from reptile_distil.models.tokenizer import load_tokenizer
    from reptile_distil.runtime.compute import choose_device

    device = choose_device(arguments.device)
    if arguments.graphs and device != "cuda":
        raise ConfigError(f"--graphs: device {device} has no CUDA graphs; leave it out")
    quantiles = dict(QUANTILES)
    if arguments.data:
        folder, tokenizer = Path(arguments.data[0]), load_tokenizer(arguments.data[1])
        tasks = [name for name in arguments.lengths if not name.isdecimal()]
        quantiles = {name: measure_quantiles(name, folder, tokenizer) for name in tasks}
    return Settings(
        quantiles=quantiles,
        methods=tuple(arguments.methods),
        device=device,
        precision=arguments.precision,
        graphs=arguments.graphs,
        num_threads=arguments.threads,
        num_batches=arguments.batches,
        num_rounds=arguments.rounds,
        quiz_batch_size=arguments.quiz_batch_size,
    )


if __name__ == "__main__":
    sys.exit(run(main))
