"""Fine-tunes the teacher of a configuration, or its student without a teacher, on the task's labels.

python scripts/finetune.py --config configs/sst2.yaml [--model student] [key=value ...]
"""

import sys
from collections.abc import Sequence

from reptile_distil.cli import DRY_RUN, config_of, make_parser, run, say_what_starts, terminal_width
from reptile_distil.config.config import given_settings
from reptile_distil.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tunes one model and prints its scores."""
    parser = make_parser("Fine-tune the teacher, or the student alone, on a task.")
    parser.add_argument("--model", choices=("teacher", "student"), default="teacher", help="which one (teacher)")
    parser.add_argument("--overwrite", action="store_true", help="start afresh, whatever run lies there")
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN)
    arguments = parser.parse_intermixed_args(argv)
    if arguments.model == "teacher":
        if not arguments.print_config:
            _refuse_idle_overrides(arguments.overrides)
        arguments.overrides.insert(0, "teacher.finetuned=null")  # a file's, which distil.py takes
    config = config_of(arguments)
    say_what_starts(config, f"fine-tuning the {arguments.model}")
    if arguments.dry_run:
        from reptile_distil.experiments.dry_run import plan_runs
        from reptile_distil.experiments.dry_run_text import describe_plan, encodable_on

        role = "teacher" if arguments.model == "teacher" else "finetune"
        print(encodable_on(sys.stdout, describe_plan(plan_runs(config, {role: arguments.overwrite}))))
        return

    from reptile_distil.experiments.experiment import Experiment
    from reptile_distil.runs.results import comparison_table

    if arguments.model == "teacher":
        results = Experiment(config).fit_teacher(overwrite=arguments.overwrite)
    else:
        results = Experiment(config.with_values(method="finetune")).fit(overwrite=arguments.overwrite)
    print(comparison_table([results], width=terminal_width(sys.stdout)))


def _refuse_idle_overrides(overrides: Sequence[str]) -> None:
    """Raises `ConfigError` for what the command line gives and the teacher's fine-tuning has no use for."""
    for key, value in given_settings(overrides).items():
        if value in (None, []):
            continue
        if key.startswith("train."):
            reason = f"is the student's: for the teacher give teacher.{key}, for the student alone --model student"
        elif key == "output_dir":
            reason = "is the student's run folder: give runs_dir, in which the teacher's lies, or --model student"
        elif key in ("teacher.finetuned", "teacher.label_names"):
            reason = "is of a teacher that is used as it is: leave it out to fine-tune teacher.pretrained"
        else:
            continue
        raise ConfigError(f"command line: {key} {reason}")


if __name__ == "__main__":
    sys.exit(run(main))
