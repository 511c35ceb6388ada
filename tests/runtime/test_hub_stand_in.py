"""The stand-in of the hub, asked by the hub's own client."""

import urllib.error
import urllib.request
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError

from tests.helpers import repositories
from tests.helpers.hub import Hub, may_be_asked

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(250)) * 40, "onnx/a.json": b"1"}


@pytest.fixture
def hub(monkeypatch):
    """A hub with one small model, and a client that may ask it."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    with Hub() as hub:
        may_be_asked(hub, monkeypatch)
        hub.publish("some/model", FILES)
        yield hub
    huggingface_hub.close_session()


@pytest.fixture
def download(hub, tmp_path):
    """Downloads a snapshot into a cache of its own; the folder."""

    def download(name="some/model", **options):
        return Path(huggingface_hub.snapshot_download(name, cache_dir=tmp_path / "hub", **options))

    return download


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_snapshot_holds_what_was_published_under_its_commit(hub, download):
    commit = hub.publish("some/model", FILES)
    assert contents(download()) == FILES
    assert download().name == commit
    assert sorted(hub.sent()) == sorted(FILES)


def test_a_later_revision_is_the_new_main_and_the_old_one_stays(hub, download):
    old = download()
    new = download(revision=hub.publish("some/model", {**FILES, "config.json": b"[]"}))
    assert (contents(new)["config.json"], contents(old)["config.json"]) == (b"[]", b"{}")
    assert download() == new
    assert sorted(hub.sent()) == sorted([*FILES, "config.json"])


def test_the_tree_is_listed_as_the_hub_lists_it(hub):
    listed = list(HfApi().list_repo_tree("some/model"))
    assert [entry.path for entry in listed] == ["onnx", "config.json", "model.safetensors"]
    assert listed[-1].size == listed[-1].lfs.size == 10_000
    assert HfApi().list_repo_files("some/model") == list(FILES)
    (described,) = HfApi().get_paths_info("some/model", ["config.json", "nothing"])
    assert described.blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # git hash-object


def test_a_download_that_is_cut_goes_on_with_a_range(hub, download, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut("model.safetensors", at=4321)
    assert contents(download()) == FILES
    assert [request.status for request in hub.requests if request.file == "model.safetensors"] == [200, 206]


def test_a_download_that_is_cut_for_good_fails(hub, download):
    hub.cut("model.safetensors", at=4321, times=99)
    with pytest.raises(Exception, match="peer closed connection"):
        download()


def test_a_head_request_sends_nothing_and_counts_as_no_file(hub):
    request = urllib.request.Request(f"{hub.address}/some/model/resolve/main/config.json", method="HEAD")
    with urllib.request.urlopen(request) as answer:
        assert (answer.read(), answer.headers["Content-Length"]) == (b"", "2")
    assert (len(hub.requests), hub.sent()) == (1, [])


def test_what_is_not_there_or_not_open_is_refused_as_the_hub_refuses_it(hub, download):
    hub.publish("some/closed", FILES, gated=True)
    with pytest.raises(RepositoryNotFoundError):
        download("some/nothing")
    with pytest.raises(GatedRepoError):
        download("some/closed")
    assert contents(download("some/closed", token="hf_any")) == FILES
    with pytest.raises(RemoteEntryNotFoundError):
        huggingface_hub.hf_hub_download("some/model", "nothing")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{hub.address}/api/something/else")


@pytest.mark.parametrize("task", repositories.GLUE)
def test_the_data_set_is_read_by_the_datasets_library(tmp_path, task):
    for path, content in repositories.glue(task).items():
        file = tmp_path / "glue" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    loaded = datasets.load_dataset(str(tmp_path / "glue"), task, cache_dir=str(tmp_path / "cache"))
    layout = repositories.GLUE[task]
    assert loaded.num_rows == layout.rows
    assert loaded["train"].column_names == [*layout.texts, "label", "idx"]
    assert tuple(getattr(loaded["train"].features["label"], "names", ())) == layout.labels
    (test, *_) = (split for split in layout.rows if split.startswith("test"))
    assert set(loaded[test]["label"]) == {-1}
