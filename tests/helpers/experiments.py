"""What a test looks at in the folder of a run."""

import json


def weights_of(experiment):
    from safetensors.torch import load_file

    return load_file(experiment.folder.model / "model.safetensors")


def epochs_of(folder):
    records = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == "epoch"]
