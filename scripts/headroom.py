"""How much could any teacher be worth on a task? Students from the labels alone up to an oracle's targets.

python scripts/headroom.py --config FILE [--times 8] [--teachers 3] data.validation_fraction=0.2 [key=value ...]
"""

import sys
from collections.abc import Sequence

from reptile_distil.cli import check_output, config_of, make_parser, run, say_what_starts


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the student of a run, or each of a table, of method kd; prints a line for each kind of targets."""
    parser = make_parser("What better targets than a frozen teacher's would be worth to a student of kd, or a table's.")
    parser.add_argument("--times", type=int, default=8, help="labels of the better informed teacher, in multiples (8)")
    parser.add_argument("--teachers", type=int, default=3, help="how many teachers are averaged (3)")
    parser.add_argument("--points", type=int, default=5, help="points of a run at which its student is scored (5)")
    parser.add_argument("--overwrite", action="store_true", help="measure again what was measured with other settings")
    arguments = parser.parse_intermixed_args(argv)

    from reptile_distil.config.yaml_files import find_config, read_layers

    file, _ = read_layers(find_config(arguments.config))
    is_table = "tasks" in file or any(item.startswith("tasks=") for item in arguments.overrides)
    if not is_table:
        config = config_of(arguments)
        say_what_starts(config, "what any teacher could be worth")

    from reptile_distil.audit.headroom import HeadroomSettings
    from reptile_distil.audit.headroom_table import HeadroomTable
    from reptile_distil.runtime.files import write_text
    from reptile_distil.tables.config import describe_table, load_table_config

    settings = HeadroomSettings(arguments.times, arguments.teachers, arguments.points)
    if is_table:
        table = load_table_config(arguments.config, arguments.overrides, scores_dev=False)
        if arguments.print_config:
            print(describe_table(table), end="")
            return
        headroom = HeadroomTable.of_table(table, settings)
    else:
        headroom = HeadroomTable.of_run(config, settings)
    as_csv, as_markdown = (headroom.output.with_name(f"{headroom.output.name}.{kind}") for kind in ("csv", "md"))
    for path in (as_csv, as_markdown, headroom.output / "students.json"):
        check_output("runs_dir", path, makes_folders=True)

    def report() -> None:  # after each student, so that a command that is stopped has left something
        write_text(as_csv, headroom.to_csv())

    headroom.run(report, overwrite=arguments.overwrite)
    if any(headroom.measured.values()):
        write_text(as_csv, headroom.to_csv(with_differences=True))
        markdown = headroom.to_markdown()
        write_text(as_markdown, markdown + "\n")
        print(markdown)
        print(f"written to {as_markdown} and {as_csv}", file=sys.stderr)
    if headroom.failures:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(run(main))
