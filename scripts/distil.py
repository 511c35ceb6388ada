"""Distils a student from a teacher; fine-tunes the teacher first where it is missing.

python scripts/distil.py --config configs/sst2.yaml [key=value ...]
"""

import sys
from collections.abc import Sequence

from reptile_distil.cli import DRY_RUN, config_of, make_parser, run, say_what_is_next, say_what_starts, terminal_width


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the method, and those it is compared with, and prints their scores beside the teacher's."""
    parser = make_parser("Distil a student from a teacher (`method` says how).")
    parser.add_argument("--overwrite", action="store_true", help="start afresh, whatever run lies there")
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN)
    arguments = parser.parse_intermixed_args(argv)
    config = config_of(arguments)
    methods = dict.fromkeys((config.method, *config.compare_with))
    say_what_starts(config, ", ".join(methods))
    if arguments.dry_run:
        from reptile_distil.experiments.dry_run import plan_distillation
        from reptile_distil.experiments.dry_run_text import describe_plan, encodable_on

        print(encodable_on(sys.stdout, describe_plan(plan_distillation(config, overwrite=arguments.overwrite))))
        return

    from reptile_distil.experiments.experiment import Experiment
    from reptile_distil.runs.results import comparison_table

    experiments = [Experiment(config.with_values(method=method, compare_with=())) for method in methods]
    results = []
    trains_teacher = config.teacher.finetuned is None and config.needs_teacher(config.method)
    if trains_teacher or len(experiments) > 1:
        for experiment in experiments:
            experiment.check_run(overwrite=arguments.overwrite)
    if trains_teacher:
        results.append(experiments[0].fit_teacher(wait=True))
    results += [experiment.fit(overwrite=arguments.overwrite) for experiment in experiments]
    print(comparison_table(results, width=terminal_width(sys.stdout)))
    say_what_is_next(experiments[0].folder.model)


if __name__ == "__main__":
    sys.exit(run(main))
