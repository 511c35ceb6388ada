"""Runs every task, method and seed of a table, or takes what is there, and makes the table with its statistics.

python scripts/table.py --config configs/table.yaml [tasks=[rte,cola]] [seeds=[1]] [key=value ...]
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from reptile_distil.cli import DRY_RUN, check_output, make_parser, run, script_command, terminal_width


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table and writes it as Markdown, LaTeX and CSV; exit code 1 where a cell failed.

    With --dry-run, exit code 0 says that every cell could be run, and 2 that some could not, or not be checked.
    """
    parser = make_parser("Run the cells of a table (several workers may, on one folder), and make the table.")
    engines = ("local", "ray", "slurm")
    parser.add_argument("--engine", choices=engines, help="who runs the cells, as engine.name=...; local: this process")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--only-runs", action="store_true", help="run the cells and make no table")
    only.add_argument("--only-table", action="store_true", help="make the table from what is there")
    only.add_argument("--print-commands", action="store_true", help="print one command per cell, for a scheduler")
    only.add_argument("--dry-run", action="store_true", help=DRY_RUN)
    arguments = parser.parse_intermixed_args(argv)

    from reptile_distil.errors import ConfigError
    from reptile_distil.tables.commands import commands
    from reptile_distil.tables.config import describe_table, load_table_config

    if arguments.engine is not None:
        arguments.overrides.append(f"engine.name={arguments.engine}")
        for option in ("only_table", "print_commands", "dry_run"):
            if getattr(arguments, option):
                raise ConfigError(f"--engine has no effect on --{option.replace('_', '-')}: leave one of them out")
    table = load_table_config(arguments.config, arguments.overrides)
    if table.keys.search is not None:
        for option in ("only_runs", "only_table", "print_commands", "dry_run"):
            if getattr(arguments, option):
                raise ConfigError(f"--{option.replace('_', '-')} is for a table: give search=null to make one")
    if arguments.print_config:
        print(describe_table(table), end="")
        return
    if arguments.print_commands:
        for words in commands(table, script_command("table"), arguments.config, arguments.overrides):
            print(shlex.join(words))
        return

    if table.keys.search is None and not arguments.only_runs:
        given = "runs_dir" if table.keys.output is None else "output"
        for kind in ("md", "tex", "csv"):
            check_output(given, table.output.with_name(f"{table.output.name}.{kind}"), makes_folders=True)
    if table.keys.search is not None:
        from reptile_distil.sweeps.search import run_search

        print(run_search(table, arguments.config), end="")
        return

    if arguments.dry_run:
        from reptile_distil.experiments.dry_run_text import encodable_on
        from reptile_distil.tables.dry_run import describe_table_plan, plan_table

        plan = plan_table(table)
        print(encodable_on(sys.stdout, describe_table_plan(plan)))
        plan.check()
        return

    from reptile_distil.engines.start import make_engine
    from reptile_distil.tables.data import collect
    from reptile_distil.tables.formats import to_terminal, write_table
    from reptile_distil.tables.grid import Grid
    from reptile_distil.tables.pictures import can_draw, draw_pictures

    grid = Grid([])
    if not arguments.only_table:
        runs, use_gpus = Path(table.common.runs_dir), table.common.device != "cpu"
        with make_engine(table.keys.engine, runs, table.keys.name, use_gpus=use_gpus) as engine:
            grid = Grid(table.cells, engine)
            grid.run()
    if not arguments.only_runs:
        data = collect(table)
        markdown = write_table(data, table.output)
        width = terminal_width(sys.stdout)
        print(markdown if width is None else to_terminal(data, width=width), end="")
        print(f"written to {table.output}.md, .tex, .csv and -epochs.csv", file=sys.stderr)
        if not can_draw():
            print("no pictures: they need pip install 'reptile-distil[plots]'", file=sys.stderr)
        elif pictures := draw_pictures(data, table.output):
            print(f"drawn: {', '.join(map(str, pictures))}", file=sys.stderr)
    if not arguments.only_table:
        print(grid.report(), file=sys.stderr)
    if grid.failures:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(run(main))
