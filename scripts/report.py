"""Weighs a finished student beside its teacher and writes the model card README.md beside its weights.

python scripts/report.py --model runs/sst2/reptile-seed42/model [--onnx] [--int8] [--push USER/REPO] [key=value ...]
"""

import sys
from collections.abc import Sequence

from reptile_distil.cli import Parser, name_option, run


def main(argv: Sequence[str] | None = None) -> None:
    """Prints size, score and speed of the student, and says where its model card lies."""
    parser = Parser(description="Report card of a student: size, speed, score, ONNX, model card.")
    parser.add_argument(
        "--model", type=name_option, required=True, help="folder of a finished run, or the model/ folder in it"
    )
    parser.add_argument(
        "--teacher", type=name_option, help="folder or hub name of the teacher (default: the one of the run)"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=(), help="tokens per sequence (16 64 128)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=(1, 32), help="sequences per batch (1 32)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time to measure each combination (2)")
    parser.add_argument("--onnx", action="store_true", help="also export to ONNX, compared with PyTorch")
    parser.add_argument("--int8", action="store_true", help="also quantise the ONNX file and score it on the dev split")
    parser.add_argument("--license", default="other", help="the hub's key for the student's licence (other)")
    parser.add_argument("--push", metavar="REPO", help="upload to this repository of the hub, created private")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.path=glue")
    arguments = parser.parse_intermixed_args(argv)

    from reptile_distil.experiments.finished_run import find_run
    from reptile_distil.export.model_card import performance_tables, write_card
    from reptile_distil.export.report import make_report
    from reptile_distil.runtime.hub import check_hub, push

    folder = find_run(arguments.model) / "model"
    if arguments.push:  # before minutes of measuring
        check_hub(folder, arguments.push)
    report = make_report(
        arguments.model,
        teacher=arguments.teacher,
        overrides=arguments.overrides,
        lengths=arguments.lengths,
        batch_sizes=arguments.batch_sizes,
        seconds=arguments.seconds,
        onnx=arguments.onnx,
        int8=arguments.int8,
    )
    print(performance_tables(report))
    print(f"\nmodel card: {write_card(report, license=arguments.license)}")
    if arguments.push:
        print(f"uploaded: {push(folder, arguments.push)}")


if __name__ == "__main__":
    sys.exit(run(main))
