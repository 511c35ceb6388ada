"""Makes the zip for the GLUE leaderboard from finished runs, or checks one.

python scripts/submit.py --runs runs/*/reptile-seed42 [--output submission.zip] [--fill-missing] [key=value ...]
python scripts/submit.py --check submission.zip
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reptile_distil.cli import check_output, run
from reptile_distil.errors import DataError
from reptile_distil.runtime.launcher import launched_rank


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each file of the zip: its rows, and where they come from; or what is wrong with a zip."""
    parser = argparse.ArgumentParser(description="Make or check a submission to the GLUE leaderboard.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--runs", nargs="+", metavar="DIR", help="run folders, one for each task")
    what.add_argument("--check", type=Path, metavar="ZIP", help="say what is wrong with a submission")
    parser.add_argument("--output", type=Path, default=Path("submission.zip"), help="default: submission.zip")
    parser.add_argument(
        "--fill-missing", action="store_true", help="predict the majority class of the training set where no run is"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run, for example data.path=glue")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.check and (arguments.fill_missing or arguments.overrides):
        parser.error("--check takes a zip and nothing else")

    from reptile_distil.export.submission import check_submission, find_runs, predict_files, write_submission

    if arguments.check:
        if problems := check_submission(arguments.check):
            print(*problems, sep="\n")
            raise DataError(f"{arguments.check}: {len(problems)} problem{'s' * (len(problems) > 1)}, as said above")
        print(f"{arguments.check}: eleven files, all as the leaderboard wants them")
        return
    check_output("--output", arguments.output, makes_folders=True)
    # --runs takes whatever stands behind it, the overrides too.
    overrides = [item for item in arguments.runs if "=" in item and not Path(item).exists()]
    runs = find_runs([item for item in arguments.runs if item not in overrides], [*overrides, *arguments.overrides])
    contents = predict_files(runs, fill_missing=arguments.fill_missing)
    if launched_rank() == 0:
        write_submission(arguments.output, {name: content.predictions for name, content in contents.items()})
    for name, content in contents.items():
        print(f"{name}\t{len(content.predictions)} rows\t{content.origin}")
    print(f"{arguments.output}: written")


if __name__ == "__main__":
    sys.exit(run(main))
