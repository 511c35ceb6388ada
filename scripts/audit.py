"""Does one teacher teach better than another? What a single step from each is worth to the same student.

python scripts/audit.py --config FILE [--other DIR] [--json FILE] data.validation_fraction=0.2 [key=value ...]
"""

import json
import sys
from collections.abc import Sequence

from reptile_distil.cli import (
    check_output,
    config_of,
    make_parser,
    name_option,
    path_option,
    run,
    say_what_starts,
    write_output,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains as distil.py would, measures at some points on the way, and prints a row for each."""
    parser = make_parser("What a step from a teacher that moves is worth, beside one from the teacher as it was.")
    parser.add_argument("--stages", type=float, nargs="+", help="fractions of the run to measure at (0.1 0.5 0.9)")
    parser.add_argument("--batches", type=int, help="batches to measure at each stage (200)")
    parser.add_argument("--probe-rows", type=int, help="held-out rows to measure the loss on, for each batch (256)")
    parser.add_argument("--other", type=name_option, help="folder or hub name of a second teacher to compare with")
    parser.add_argument("--json", type=path_option, help="write all values to this file")
    arguments = parser.parse_intermixed_args(argv)
    config = config_of(arguments)
    if arguments.json:
        check_output("--json", arguments.json)
    say_what_starts(config, f"auditing the teacher of {config.method}")

    from reptile_distil.audit.run import AuditSettings, audit
    from reptile_distil.audit.summary import summarise, to_json, to_markdown

    given = {"stages": arguments.stages, "num_batches": arguments.batches, "num_probe_rows": arguments.probe_rows}
    settings = AuditSettings(
        **{name: value for name, value in given.items() if value is not None}, other=arguments.other
    )

    def report(stages: list) -> None:  # after each stage, so that a run that is stopped has left something
        if arguments.json:
            about = {"task": config.task_name, "method": config.method, "seed": config.seed, **settings._asdict()}
            write_output("--json", arguments.json, json.dumps({**about, "stages": to_json(stages)}, indent=2) + "\n")

    print(to_markdown([summarise(stage) for stage in audit(config, settings, report)]))


if __name__ == "__main__":
    sys.exit(run(main))
