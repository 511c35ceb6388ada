"""A task of one's own on a data set of the hub: the right rows of the right revision, or one sentence."""

import shutil
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants

from reptile_distil.data.tasks import HubDataset, Task
from reptile_distil.errors import DataError
from reptile_distil.sources import hub_datasets
from reptile_distil.sources.splits import load_split, own_label_names
from tests.helpers import repositories
from tests.helpers.hub import Hub, may_be_asked

NAME = "me/reviews"
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
PLAIN = {
    ".gitattributes": b"",
    "train.csv": b"text,label\ngood,positive\nbad,negative\n",
    "test.csv": b"text,label\nfine,positive\n",
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that this process may ask, and an empty cache."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", tmp_path / "modules")
    with Hub() as hub:
        may_be_asked(hub, monkeypatch)
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.address)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            datasets.config, "HUB_DATASETS_URL", hub.address + "/datasets/{repo_id}/resolve/{revision}/{path}"
        )
        hub.publish(NAME, repositories.reviews(), kind="datasets")
        yield hub
    huggingface_hub.close_session()
    hub_datasets._load.cache_clear()


@pytest.fixture
def offline(hub, monkeypatch):
    """From now on the hub is gone, and this process is a new one."""

    def offline():
        hub.stop()
        hub_datasets._load.cache_clear()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    return offline


def task(name=NAME, *, labels=("negative", "positive"), label="label", splits=SPLITS, config="small", revision=None):
    return Task(
        name="mine",
        text_columns=("text",),
        label_column=label,
        label_names=labels,
        metrics=("accuracy",) if labels else (),
        splits=dict.fromkeys(splits, ()),
        hub=HubDataset(name=name, config=config, revision=revision, splits=splits),
    )


def load(split="train", name=NAME, **options):
    hub_datasets._load.cache_clear()
    return load_split(task(name, **options), split, None).to_dict()


def test_from_an_empty_cache_the_splits_of_one_configuration_are_downloaded_once(hub):
    assert load()["label"] == [0, 1] * 20
    sent = hub.sent()
    assert not any("large" in file for file in sent)
    hub.requests.clear()
    assert len(load("dev")["label"]) == 8
    assert load("test").keys() == {"text"}  # labels of -1
    assert hub.requests == []
    assert len(load(config="large", splits={"train": "train"})["label"]) == 60


@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_from_a_full_cache_no_hub_is_needed(hub, offline, revision):
    revision = hub.repositories[f"datasets/{NAME}"].main if revision == "commit" else revision
    rows = load(revision=revision)
    offline()
    assert load(revision=revision) == rows


def test_a_pinned_revision_is_read_and_no_other(hub, offline):
    first = hub.repositories[f"datasets/{NAME}"].main
    second = hub.publish(NAME, repositories.reviews(shift=2), kind="datasets")
    assert [len(load(revision=revision)["text"]) for revision in (first, second, None)] == [40, 42, 42]
    offline()
    assert [len(load(revision=revision)["text"]) for revision in (first, second)] == [40, 42]


def test_a_revision_that_is_not_in_the_cache_is_not_replaced_by_another(hub, offline):
    load()
    other = hub.publish(NAME, repositories.reviews(shift=2), kind="datasets")
    offline()
    with pytest.raises(DataError, match=f"revision {other}, is not in the local cache and HF_HUB_OFFLINE=1 forbids"):
        load(revision=other)


def test_a_whole_snapshot_in_the_hubs_cache_is_read_without_the_hub(hub, offline):
    folder = huggingface_hub.snapshot_download(NAME, repo_type="dataset")
    offline()
    assert len(load()["label"]) == 40
    shutil.rmtree(datasets.config.HF_DATASETS_CACHE)
    (Path(folder) / "small" / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match="is not in the local cache"):
        load()


def test_class_names_of_the_data_set_are_the_label_names_unless_given(hub):
    assert own_label_names(task(labels=()), None) == ("negative", "positive")
    assert load(labels=("positive", "negative"))["label"] == [1, 0] * 20
    with pytest.raises(
        DataError, match=r"has the classes negative, positive in label, but task\.labels says bad, good"
    ):
        load(labels=("bad", "good"))


def test_files_that_are_no_parquet_are_read_too(hub):
    hub.publish("me/plain", PLAIN, kind="datasets")
    splits = {"train": "train", "test": "test"}
    assert load(name="me/plain", config=None, splits=splits)["label"] == [1, 0]
    assert load("test", "me/plain", config=None, splits=splits) == {"text": ["fine"], "label": [1]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "me/nothing"}, "me/nothing: the hub has no dataset of this name that is open to all: check the name"),
        (
            {"name": "me/closed", "config": None},
            "me/closed: .*the hub gives (it|this dataset) only to those who have asked",
        ),
        ({"config": "tiny"}, r"give one of its configurations as task\.config .*'small', 'large'"),
        ({"config": None}, r"give one of its configurations as task\.config .*'small', 'large'"),
        ({"revision": "v9"}, "me/reviews: the hub has this dataset, but not in this revision: check the name"),
        ({"splits": {"train": "all"}}, "has no split 'all', only train, validation, test: give task.splits"),
        ({"label": "stars"}, "no column 'stars' in train, the columns are 'text', 'label', 'idx'"),
        (
            {"name": "me/code", "config": None},
            "it is made by code, which is never run; task.revision=refs/convert/parquet",
        ),
        ({"name": "me/empty", "config": None}, "me/empty: cannot be loaded"),
    ],
)
def test_what_is_not_there_is_one_sentence(hub, options, message):
    hub.publish("me/closed", PLAIN, kind="datasets", gated=True)
    hub.publish("me/code", {".gitattributes": b"", "code.py": b"raise SystemExit(3)"}, kind="datasets")
    hub.publish("me/empty", {".gitattributes": b""}, kind="datasets")
    with pytest.raises(DataError, match=f"^[^\n]*{message}[^\n]*$"):
        load(**options)


def test_without_class_names_a_missing_label_column_is_named(hub):
    with pytest.raises(DataError, match="train has no column 'stars', the columns are 'text', 'label', 'idx'"):
        own_label_names(task(labels=(), label="stars"), None)


@pytest.mark.parametrize("what", ["folder", "script"])
def test_a_folder_of_that_name_in_the_working_directory_is_never_taken_for_the_hubs(hub, what):
    Path(NAME).mkdir(parents=True)
    (Path(NAME) / ("train.csv" if what == "folder" else "reviews.py")).write_text("text,label\nplanted,positive\n")
    with pytest.raises(DataError, match="a file or folder me/reviews lies here too: start elsewhere"):
        load()


def test_without_the_hub_and_a_cache_one_sentence_says_what_to_do(hub, offline):
    offline()
    with pytest.raises(
        DataError, match=r"^data set me/reviews, config small, revision main, is not in the local cache and"
    ):
        load()
