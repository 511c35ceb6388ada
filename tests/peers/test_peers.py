"""The comparison with other loops runs, on models of a few thousand weights, and all contenders do the same work."""

import pytest
import transformers

from reptile_distil.models.toy import toy_config, toy_tokenizer
from tests.peers import compare

ROWS = [("a good film", 1), ("a bad film", 0), ("good", 1), ("bad acting in a bad film", 0)] * 10


@pytest.mark.slow
def test_each_contender_trains_on_the_same_rows_and_is_measured(tmp_path, capsys):
    for split in ("train", "dev"):
        lines = [f"{sentence}\t{label}" for sentence, label in ROWS]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    for name, layers in (("teacher", "toy-bert-2L-16H"), ("student", "toy-bert-1L-16H")):
        config = toy_config(layers)
        config.max_position_embeddings, config.num_labels = 128, 2
        transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / name)
        toy_tokenizer().save_pretrained(tmp_path / name)
    folders = (f"--{name}={tmp_path / name}" for name in ("teacher", "student"))
    (tmp_path / "cache").mkdir()
    compare.main([f"--data={tmp_path}", *folders, "--rounds=1", "--epochs=2", f"--cache={tmp_path}/cache"])
    assert not list((tmp_path / "cache").iterdir()), "runs write into a copy"
    said = capsys.readouterr()
    assert [line.split("|")[1].strip() for line in said.out.splitlines()[2:]] == list(compare.CONTENDERS)
    assert said.err.count("cpu_seconds") == len(compare.CONTENDERS)
