"""scripts/table.py --dry-run: every cell is looked at, whatever is missing is named, and nothing is written."""

import re

import pytest

from reptile_distil.data import toy
from reptile_distil.models.pretrained import load_pretrained
from reptile_distil.models.toy import toy_tokenizer
from tests.helpers.paths import ROOT, TINY_TABLE

GLUE = "cola sst2 mrpc stsb qqp mnli qnli rte wnli".split()


def lines(out):
    """The cells of each line of the table, by task and row."""
    block = out.split("\n\n")[1].splitlines()[1:]
    return {tuple(words[:2]): words[2:] for words in (re.split(r"  +", line) for line in block)}


def test_each_task_and_row_has_a_line_and_nothing_is_written(call, tmp_path):
    code, out, _ = call("table", "--dry-run", "methods=[kd]", "seeds=[1,2,3]", "train.epochs=2", config=TINY_TABLE)
    assert code == 0
    assert not (tmp_path / "runs").exists()
    found = lines(out)
    assert list(found) == [(task, row) for task in ("toy-sentence", "toy-regression") for row in ("teacher", "kd")]
    assert {words[0] for words in found.values()} == {"3"}  # cells
    assert found["toy-sentence", "teacher"][1:3] == ["0", "5"]  # finished, steps
    assert found["toy-regression", "kd"][1:3] == ["0", "10"]
    assert "cells      12: 0 finished, 0 begun, 12 left" in out
    # A path is not broken, however long.
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80


def test_one_run_of_each_row_and_task_is_measured_and_counts_for_every_seed(call, monkeypatch, caplog):
    monkeypatch.setattr("reptile_distil.experiments.trial_steps.TrialSteps.seconds", lambda self, **_: 60.0)
    code, out, _ = call(
        "table", "--dry-run", "tasks=[toy-sentence]", "methods=[finetune]", "seeds=[1,2,3]", config=TINY_TABLE
    )
    assert code == 0
    assert caplog.messages == ["measuring a few steps: finetune on toy-sentence"]
    assert lines(out)["toy-sentence", "finetune"][4] == "3.0 min"
    assert "about 3.0 min, by one worker on cpu." in out


def test_finished_cells_are_counted_and_not_measured(call, caplog, tmp_path):
    one = ["tasks=[toy-sentence]", "methods=[finetune]"]
    call("table", "--only-runs", *one, "seeds=[1]", config=TINY_TABLE)
    caplog.clear()
    code, out, _ = call("table", "--dry-run", *one, "seeds=[1]", config=TINY_TABLE)
    assert code == 0
    assert caplog.messages == []
    assert lines(out)["toy-sentence", "finetune"] == ["1", "1", "-", "-", "-", "-"]
    assert "cells      1: 1 finished, 0 begun, 0 left" in out
    assert "time " not in out.partition("\n\n")[2].split("\n\n")[-1]


def test_a_cell_with_other_settings_is_named_and_the_others_are_planned(call, tmp_path):
    one = ["tasks=[toy-sentence]", "methods=[finetune]"]
    call("table", "--only-runs", *one, "seeds=[1]", config=TINY_TABLE)
    code, out, err = call("table", "--dry-run", *one, "seeds=[1,2]", "train.lr=2e-3", config=TINY_TABLE)
    assert code == 2
    flat = " ".join(out.split())
    assert "Could not be run: - toy-sentence finetune seed 1: " in flat
    assert "holds a finished run with train.lr" in flat
    assert lines(out)["toy-sentence", "finetune"][:3] == ["2", "0", "5"]
    assert err.endswith("error: toy-sentence finetune seed 1: could not be run, for the reasons above\n")


def test_a_row_that_cannot_be_run_is_named_once(call):
    deep = "variants.deep={method: reptile, student: {num_layers: 5}}"  # the teacher has 2 layers
    one = ["tasks=[toy-sentence]", "methods=[deep, finetune]", "seeds=[1,2]"]
    code, out, err = call("table", "--dry-run", *one, deep, config=TINY_TABLE)
    assert code == 2
    assert out.count("toy-sentence deep: ") == 1
    assert lines(out)["toy-sentence", "deep"] == ["2", "0", "-", "-", "-", "-"]
    assert lines(out)["toy-sentence", "finetune"][2] == "5"
    assert err.endswith("error: toy-sentence deep: could not be run, for the reasons above\n")


def test_the_published_table_offline_names_each_model_and_data_set_that_is_missing(call, tmp_path):
    """What `scripts/table.py --config configs/table.yaml` would run with a hub, checked as far as it goes without."""
    code, out, err = call("table", "--dry-run", config=ROOT / "configs" / "table.yaml")
    assert code == 2
    assert not (tmp_path / "runs").exists()
    assert "cells      180: 0 finished, 0 begun, 180 left" in out
    assert list(lines(out)) == [(task, row) for task in GLUE for row in ("teacher", "finetune", "kd", "reptile")]
    flat = " ".join(out.split())
    assert "model google-bert/bert-base-uncased, huawei-noah/TinyBERT_General_6L_768D: neither a folder here" in flat
    assert f"data of {', '.join(GLUE)}: GLUE's cola (nyu-mll/glue) is not in the local cache" in flat
    assert err.endswith(
        "error: 11 of the models and data sets, named above, are not available here, so the cells that need them could "
        "not be checked\n"
    )


RTE = "index\tsentence1\tsentence2\tlabel\n"


def write_rte(folder, labels=("entailment", "not_entailment")):
    (folder / "RTE").mkdir()
    for name in ("train", "dev"):
        rows = "".join(f"{index}\tthe film was good\tit was bad\t{labels[index % 2]}\n" for index in range(8))
        (folder / "RTE" / f"{name}.tsv").write_text(RTE + rows)


def test_data_are_read_even_where_the_models_are_missing(call, tmp_path):
    write_rte(tmp_path, labels=("entailment", "perhaps"))
    options = [f"data.path={tmp_path}", "data.check_rows=false", "tasks=[rte]", "methods=[finetune]", "seeds=[1]"]
    code, out, _ = call("table", "--dry-run", *options, config=ROOT / "configs" / "table.yaml")
    assert code == 2
    flat = " ".join(out.split())
    assert "- data of rte: " in flat
    assert "unknown label 'perhaps'" in flat


def test_a_pair_of_models_is_checked_even_where_the_data_are_missing(call, tmp_path):
    pair = ["student.init=pretrained", "student.num_layers=null", "student.pretrained=toy-bert-1L-32H"]
    code, out, _ = call("table", "--dry-run", "tasks=[rte]", "methods=[kd, reptile]", *pair, config=TINY_TABLE)
    assert code == 2
    assert "- data of rte: " in out
    assert "- rte reptile: teacher 'bert.embeddings" in out
    assert "rte kd:" not in out


def test_a_table_whose_models_and_data_are_folders_is_measured(call, tmp_path):
    write_rte(tmp_path)
    load_pretrained("toy-bert-2L-16H", toy.TASKS["toy-pair"], seed=0).save_pretrained(tmp_path / "bert")
    toy_tokenizer().save_pretrained(tmp_path / "bert")
    options = [f"data.path={tmp_path}", "data.check_rows=false", "data.max_train_rows=null", "tasks=[rte]"]
    code, out, err = call("table", "--dry-run", *options, f"teacher.pretrained={tmp_path}/bert", config=TINY_TABLE)
    assert code == 0, err
    assert lines(out)["rte", "kd"][:3] == ["1", "0", "1"]


def test_a_full_disk_is_refused(call, monkeypatch):
    monkeypatch.setattr("reptile_distil.tables.dry_run.free_bytes", lambda path: 1000)
    one = ["tasks=[toy-sentence]", "methods=[finetune]"]
    code, out, err = call("table", "--dry-run", *one, config=TINY_TABLE)
    assert code == 2
    assert "disk " in out
    assert "GB are needed, but only 0.00 GB are free" in err


@pytest.mark.parametrize("option", ["--only-runs", "--only-table", "--print-commands"])
def test_it_does_not_go_with_what_does_something_else(call, option):
    assert call("table", "--dry-run", option, config=TINY_TABLE)[0] == 2
