"""A model or a data set of the hub in the cache: whole, in part, of another revision, or not available."""

import logging
import re
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants

from reptile_distil.data.tasks import GLUE
from reptile_distil.errors import DataError, ModelError
from reptile_distil.models.pretrained import load_pretrained
from reptile_distil.models.tokenizer import load_tokenizer
from reptile_distil.runtime import hub as hub_module
from reptile_distil.runtime.each_line_once import log_once
from reptile_distil.runtime.snapshots import find_model_snapshot
from reptile_distil.sources import splits
from reptile_distil.sources.splits import load_split
from tests.helpers import repositories
from tests.helpers.hub import Hub, may_be_asked

NAME = "google-bert/bert-base-uncased"
READ = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
DATA = "nyu-mll/glue"


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """A hub with a model and GLUE's smallest tasks, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    with Hub() as hub:
        may_be_asked(hub, monkeypatch)
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        hub.publish(NAME, repositories.bert())
        hub.publish(DATA, repositories.glue("sst2", "mnli"), kind="datasets")
        yield hub
    huggingface_hub.close_session()


@pytest.fixture(autouse=True)
def new_process():
    """Nothing is remembered from another test."""
    find_model_snapshot.cache_clear()
    log_once.cache_clear()


@pytest.fixture
def go_offline(monkeypatch, hub):
    def go_offline():
        hub.stop()
        monkeypatch.setattr(hub_module, "TIMEOUT", 0.5)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        hub.requests.clear()

    return go_offline


def keep(name, files, kind="model", **options):
    """Puts these files of a repository into the cache, as a client does that needs no other; their folder."""
    paths = [huggingface_hub.hf_hub_download(name, file, repo_type=kind, **options) for file in files]
    return Path(paths[0]).parent


def test_a_model_is_downloaded_once_with_all_that_is_read_and_nothing_else(hub):
    folder = find_model_snapshot(NAME)
    assert sorted(path.name for path in folder.iterdir()) == sorted(hub.sent()) == READ
    find_model_snapshot.cache_clear()
    hub.requests.clear()
    assert find_model_snapshot(NAME) == folder
    assert hub.requests == []


def test_weights_for_torch_load_are_downloaded_only_where_there_are_no_others(hub):
    pickled = repositories.tinybert()["pytorch_model.bin"]
    hub.publish("some/both", {**repositories.bert(), "pytorch_model.bin": pickled})
    hub.publish("some/old", repositories.tinybert())
    assert not (find_model_snapshot("some/both") / "pytorch_model.bin").exists()
    assert (find_model_snapshot("some/old") / "pytorch_model.bin").read_bytes() == pickled


def test_a_model_of_the_hub_gives_the_weights_and_words_that_were_published(hub):
    hub.publish("some/sharded", repositories.sharded_bert())
    one, other = (load_pretrained(name, GLUE["sst2"], seed=0) for name in (NAME, "some/sharded"))
    for (name, theta), (_, same) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert theta.equal(same), name
    assert load_tokenizer(NAME).convert_ids_to_tokens([5, 6]) == ["a", "the"]


@pytest.mark.parametrize("missing", READ)
def test_a_model_that_lacks_any_one_file_is_completed(hub, missing):
    keep(NAME, [file for file in READ if file != missing])
    hub.requests.clear()
    assert (find_model_snapshot(NAME) / missing).is_file()
    assert hub.sent() == [missing]


@pytest.mark.parametrize("missing", READ)
def test_a_download_that_broke_off_is_completed(missing):
    folder = find_model_snapshot(NAME)
    (folder / missing).unlink()
    find_model_snapshot.cache_clear()
    assert find_model_snapshot(NAME) == folder
    assert (folder / missing).read_bytes() == repositories.bert()[missing]


def test_the_revision_of_main_is_read_not_one_that_was_asked_for_by_its_commit(hub):
    main = find_model_snapshot(NAME)
    other = hub.publish(NAME, repositories.bert(seed=5))
    huggingface_hub.snapshot_download(NAME, revision=other)
    find_model_snapshot.cache_clear()
    assert find_model_snapshot(NAME) == main


@pytest.mark.parametrize("missing", READ)
def test_a_download_that_broke_off_is_known_as_such_without_the_hub_too(missing, go_offline):
    (find_model_snapshot(NAME) / missing).unlink()
    find_model_snapshot.cache_clear()
    go_offline()
    essential = missing in ("config.json", "model.safetensors")
    if essential:
        with pytest.raises(ModelError, match=rf"^{NAME}: neither a folder .* \(\S+ lacks \S*.*{missing}.*\), and the"):
            find_model_snapshot(NAME)
    else:  # words are there in another file: better than nothing, as long as the hub cannot be asked
        assert not (find_model_snapshot(NAME) / missing).exists()


def test_a_missing_shard_is_no_whole_model(hub, go_offline):
    hub.publish(NAME, repositories.sharded_bert())
    (find_model_snapshot(NAME) / "model-00002-of-00002.safetensors").unlink()
    find_model_snapshot.cache_clear()
    go_offline()
    with pytest.raises(ModelError, match=r"lacks whole model\.safetensors"):
        find_model_snapshot(NAME)


def test_an_older_whole_revision_serves_while_the_hub_is_away(hub, go_offline, caplog):
    older = find_model_snapshot(NAME)
    find_model_snapshot.cache_clear()
    hub.publish(NAME, repositories.bert(seed=5))
    keep(NAME, ["config.json"])
    go_offline()
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="reptile_distil"):
        assert find_model_snapshot(NAME) == older
    assert caplog.messages == [f"{NAME}: the newest revision in the cache is not whole, so this one is used: {older}"]


def test_a_newer_revision_that_was_begun_is_completed(hub):
    find_model_snapshot(NAME)
    find_model_snapshot.cache_clear()
    commit = hub.publish(NAME, {**repositories.bert(seed=5)})
    keep(NAME, ["config.json"])
    folder = find_model_snapshot(NAME)
    assert folder.name == commit
    assert sorted(path.name for path in folder.iterdir()) == READ


def test_a_whole_model_that_the_hub_no_longer_gives_is_used(hub):
    folder = keep(NAME, READ)
    del hub.repositories[f"models/{NAME}"]
    assert find_model_snapshot(NAME) == folder


@pytest.mark.parametrize("name", ["a/b/c", "two words", "x" * 300, "a--b", "no/such-model"])
def test_a_name_that_the_hub_does_not_know_is_one_sentence(name):
    with pytest.raises(ModelError, match=rf"^{re.escape(name)}: [^\n]+$"):
        load_tokenizer(name)


def test_a_repository_without_a_tokenizer_is_one_sentence(hub):
    files = {file: content for file, content in repositories.bert().items() if not file.startswith(("tok", "vocab"))}
    hub.publish("some/model", files)
    with pytest.raises(ModelError, match=r"^some/model: the hub gives no tokenizer files for it: choose another"):
        find_model_snapshot("some/model")


# The data set


def test_one_task_is_downloaded_with_all_its_splits_and_no_other(hub):
    assert len(load_split(GLUE["sst2"], "dev", None, check_rows=False)) == 12
    names = [f"sst2/{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")]
    assert sorted(hub.sent()) == names
    hub.requests.clear()
    rows = load_split(GLUE["sst2"], "train", None, check_rows=False)
    assert (rows["label"][:4], rows.num_rows) == ([0, 1, 0, 1], 48)
    assert hub.requests == []


def test_a_data_set_is_named_once_for_all_its_splits(caplog):
    with caplog.at_level(logging.INFO, logger="reptile_distil"):
        for split in ("train", "dev_matched", "dev_mismatched"):
            load_split(GLUE["mnli"], split, None, check_rows=False)
    (line,) = [line for line in caplog.messages if "mnli" in line]
    assert re.fullmatch(rf"hub data set {DATA} mnli: read from /\S+/mnli", line)


def test_a_snapshot_that_was_made_elsewhere_is_read_without_the_hub(go_offline):
    huggingface_hub.snapshot_download(DATA, repo_type="dataset")
    go_offline()
    assert len(load_split(GLUE["sst2"], "train", None, check_rows=False)) == 48


def test_a_split_that_is_not_there_is_named_while_the_hub_is_away(go_offline):
    keep(DATA, ["sst2/train-00000-of-00001.parquet"], "dataset")
    go_offline()
    assert len(load_split(GLUE["sst2"], "train", None, check_rows=False)) == 48
    with pytest.raises(DataError, match=rf"^the dev split of GLUE's sst2 \({DATA}\) is not in the local cache and"):
        load_split(GLUE["sst2"], "dev", None)


def test_splits_of_two_revisions_are_never_mixed(hub, go_offline):
    huggingface_hub.snapshot_download(DATA, repo_type="dataset")
    hub.publish(DATA, repositories.glue("sst2"), kind="datasets")
    keep(DATA, ["sst2/train-00000-of-00001.parquet"], "dataset")
    (whole,) = {path.parent for path in Path(constants.HF_HUB_CACHE).glob("datasets--*/snapshots/*/sst2/test-*")}
    go_offline()
    for split in ("train", "dev"):
        assert splits._find_hub_folder(GLUE["sst2"], split) == whole


def test_a_data_set_that_is_not_there_is_one_sentence(hub):
    del hub.repositories[f"datasets/{DATA}"]
    with pytest.raises(DataError, match=rf"^{DATA}: the hub has no dataset of this name that is open to all: [^\n]+$"):
        load_split(GLUE["sst2"], "train", None)
