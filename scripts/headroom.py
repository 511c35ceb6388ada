"""How much could any teacher be worth on a task? Students from the labels alone up to an oracle's targets.

python scripts/headroom.py --config FILE [--times 8] [--teachers 3] [tasks=[...]] [key=value ...]
"""

import sys
from collections.abc import Sequence

from reptile_distil.cli import make_parser, run


def main(argv: Sequence[str] | None = None) -> None:
    """Measures each cell of a table of kd, prints a line for each kind of targets, and writes them beside the runs."""
    parser = make_parser("What better targets than a frozen teacher's would be worth to the student of a table.")
    parser.add_argument("--times", type=int, default=8, help="labels of the better informed teacher, in multiples (8)")
    parser.add_argument("--teachers", type=int, default=3, help="how many teachers are averaged (3)")
    parser.add_argument("--points", type=int, default=5, help="points of a run at which its student is scored (5)")
    arguments = parser.parse_intermixed_args(argv)

    from reptile_distil.tables.config import describe_table, load_table_config

    table = load_table_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(describe_table(table), end="")
        return

    from reptile_distil.audit.headroom import HeadroomSettings
    from reptile_distil.audit.headroom_table import HeadroomTable
    from reptile_distil.runtime.files import write_text

    settings = HeadroomSettings(arguments.times, arguments.teachers, arguments.points)
    headroom = HeadroomTable(table, settings)
    output = headroom.folder

    def report() -> None:  # after each student, so that a command that is stopped has left something
        write_text(output.with_name(f"{output.name}.csv"), headroom.to_csv())

    headroom.run(report)
    if headroom.measured:
        report()
        markdown = headroom.to_markdown()
        write_text(output.with_name(f"{output.name}.md"), markdown + "\n")
        print(markdown)
        print(f"written to {output}.md and .csv", file=sys.stderr)
    if headroom.failures:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(run(main))
