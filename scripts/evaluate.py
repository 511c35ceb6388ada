"""Scores a saved model on a task's split, and writes its predictions to a file.

python scripts/evaluate.py --model runs/sst2/reptile-seed42/model [--config YAML] [--split dev] [key=value ...]
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from reptile_distil.cli import check_output, config_of, make_parser, name_option, path_option, run, write_output
from reptile_distil.errors import DataError
from reptile_distil.runtime.launcher import launched_rank


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the scores of every dev split (AX has its test split alone), or of one split."""
    parser = make_parser("Evaluate a saved model on any task and split.", config_required=False)
    parser.add_argument(
        "--model", type=name_option, required=True, help="a fine-tuned classifier: folder, hub name or finished run"
    )
    parser.add_argument("--split", help="one split, for example dev_mismatched or test (default: every dev split)")
    parser.add_argument(
        "--predictions",
        type=path_option,
        help="file to write predictions to: .tsv, or .csv or .jsonl with all probabilities (needs --split)",
    )
    arguments = parser.parse_intermixed_args(argv)
    if arguments.predictions and not arguments.split:
        parser.error("--predictions needs --split: one file holds one split")
    predictions = arguments.predictions
    if predictions and predictions.suffix not in ("", ".txt", ".tsv", ".csv", ".jsonl"):
        raise DataError(f"--predictions {predictions}: expected a name that ends in .tsv, .csv or .jsonl")
    if predictions:
        check_output("--predictions", predictions)
    if arguments.config is None:  # the configuration that the model was trained with
        # `.` and `..` have no parent of their own, and a link's is another than that of the model.
        written = Path(os.path.abspath(arguments.model))  # noqa: PTH100 (pathlib has none that does not follow links)
        places = (written, Path(os.path.realpath(written)))
        configs = (folder / "config.yaml" for place in places for folder in (place, place.parent))
        arguments.config = next((file for file in configs if file.is_file()), None)
        if arguments.config is None:
            lack = "lies in no run folder; give" if written.exists() else "no such folder; for a model of the hub, give"
            raise DataError(f"--model {arguments.model}: {lack} --config too, which says task and data")
    config = config_of(arguments)

    from reptile_distil.experiments.experiment import Experiment
    from reptile_distil.runtime.text_tables import with_sign

    experiment = Experiment(config)
    for split in (arguments.split,) if arguments.split else experiment.scored_splits or experiment.task.test_splits:
        split_predictions = experiment.predict_split(split, model=arguments.model)
        for name, score in (split_predictions.scores or {}).items():
            print(f"{split}\t{name}\t{with_sign(score)}")
        if split_predictions.scores is None:
            print(f"{split}\tno labels, so no scores")
        if predictions and launched_rank() == 0:
            write_output("--predictions", predictions, split_predictions.to_text(predictions.suffix))
            print(f"{split}\tpredictions written to {predictions}")


if __name__ == "__main__":
    sys.exit(run(main))
