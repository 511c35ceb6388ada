"""Where a model's files are looked for, and what is refused before anything is computed."""

import functools
import os
import time
from types import SimpleNamespace

import pytest
import torch
import transformers

from reptile_distil.errors import ModelError
from reptile_distil.models import loading
from reptile_distil.models.loading import is_model_of_a_run, load_config_file
from reptile_distil.models.pretrained import (
    load_finetuned,
    load_pretrained,
)
from reptile_distil.models.tokenizer import load_tokenizer
from reptile_distil.models.toy import toy_tokenizer
from tests.helpers.models import bert
from tests.helpers.saved_models import (
    MNLI,
    RTE,
    edit_config,
    save,
)


def test_a_missing_folder_is_one_sentence(tmp_path):
    for load in (
        lambda name: load_pretrained(name, MNLI, seed=0),
        lambda name: load_finetuned(name, MNLI),
        load_tokenizer,
    ):
        with pytest.raises(ModelError, match=rf"^{tmp_path}/nowhere: no such folder[^\n]*$"):
            load(f"{tmp_path}/nowhere")


def test_a_folder_without_a_model_is_one_sentence(tmp_path):
    for load in (
        lambda name: load_pretrained(name, MNLI, seed=0),
        lambda name: load_finetuned(name, MNLI),
        load_tokenizer,
    ):
        with pytest.raises(
            ModelError, match=rf"^{tmp_path}: no model or tokenizer can be loaded from this folder: [^\n]*$"
        ):
            load(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "{}"])
def test_a_broken_config_is_one_sentence(tmp_path, text):
    folder = save(bert(2), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=rf"^{folder}: no model or tokenizer can be loaded from this folder: [^\n]*$"):
        load_pretrained(folder, MNLI, seed=0)


@pytest.mark.parametrize(
    "load", [lambda name: load_pretrained(name, MNLI, seed=0), lambda name: load_finetuned(name, MNLI)]
)
def test_weights_that_were_cut_off_in_a_download_are_one_sentence(tmp_path, load):
    folder = save(bert(2), tmp_path, MNLI.label_names)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match=rf"^{folder}: [^\n]*$"):
        load(folder)


def test_a_fine_tuned_head_of_another_shape_than_the_config_says_is_one_sentence(tmp_path):
    folder = save(bert(2, num_labels=2), tmp_path)
    edit_config(tmp_path, id2label=dict(enumerate(MNLI.label_names)))
    with pytest.raises(ModelError, match=rf"^{folder}: [^\n]*$"):
        load_finetuned(folder, MNLI)


def test_a_hub_name_without_a_network_fails_at_once_and_says_what_to_do():
    for load in (
        lambda name: load_pretrained(name, MNLI, seed=0),
        lambda name: load_finetuned(name, MNLI),
        load_tokenizer,
    ):
        start = time.monotonic()
        with pytest.raises(ModelError, match=r"^somebody/no-such-model: [^\n]*folder[^\n]*$"):
            load("somebody/no-such-model")
        assert time.monotonic() - start < 2


def test_a_folder_is_loaded_without_asking_the_network(tmp_path, monkeypatch):
    folder = save(bert(2), tmp_path, MNLI.label_names)
    toy_tokenizer().save_pretrained(folder)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = []
    monkeypatch.setattr("socket.socket.connect", lambda *address: asked.append(address))
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **_: asked.append(address) or [])
    load_pretrained(folder, MNLI, seed=0)
    load_finetuned(folder, MNLI)
    load_tokenizer(folder)
    assert asked == []


def test_loading_prints_nothing_and_leaves_transformers_as_talkative_as_it_was(tmp_path, capfd):
    folder = save(bert(2, num_labels=2), tmp_path)
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    load_pretrained(folder, MNLI, seed=0)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_absurd_sizes_are_refused_before_they_fill_the_memory(tmp_path):
    folder = save(bert(2), tmp_path, MNLI.label_names)
    edit_config(tmp_path, num_labels=10**9)
    for load in (
        lambda: load_pretrained(folder, MNLI, seed=0),
        lambda: load_finetuned(folder, MNLI),
        lambda: load_tokenizer(folder),
    ):
        with pytest.raises(
            ModelError, match=f"^{folder}/config.json: num_labels = 1000000000: expected 10000 or less$"
        ):
            load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": -4}, "the model fails on its first tokens: RuntimeError"),
        ({"attention_probs_dropout_prob": 2}, "the model fails on its first tokens: ValueError|no model or tokenizer"),
    ],
)
def test_a_model_that_cannot_compute_is_refused_when_it_is_loaded(tmp_path, changes, message):
    folder = save(bert(2), tmp_path, MNLI.label_names)
    edit_config(tmp_path, **changes)
    for load in (lambda: load_pretrained(folder, MNLI, seed=0), lambda: load_finetuned(folder, MNLI)):
        with pytest.raises(ModelError, match=f"^{folder}: ({message})"):
            load()


def test_attention_code_from_the_hub_is_refused_when_a_model_is_loaded(tmp_path):
    folder = save(bert(2), tmp_path, MNLI.label_names)
    edit_config(tmp_path, attn_implementation="somebody/code")
    if "/" not in str(transformers.AutoConfig.from_pretrained(folder)._attn_implementation):
        pytest.skip("this version of transformers does not read it from a file")
    for load in (lambda: load_pretrained(folder, MNLI, seed=0), lambda: load_finetuned(folder, MNLI)):
        with pytest.raises(
            ModelError, match=f"^{folder}: config.json asks for the attention code 'somebody/code' from"
        ):
            load()


def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path):
    model = bert(2)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[3, 4] = float("nan")
    folder = save(model, tmp_path, MNLI.label_names)
    message = f"^{folder}: the weights 'bert.encoder.layer.1.output.dense.weight' hold infinite or undefined numbers"
    for load in (lambda: load_pretrained(folder, MNLI, seed=0), lambda: load_finetuned(folder, MNLI)):
        with pytest.raises(ModelError, match=message):
            load()


def test_a_model_with_other_outputs_than_its_config_says_is_refused(tmp_path, monkeypatch):
    folder = save(bert(2), tmp_path, MNLI.label_names)
    forward = transformers.BertForSequenceClassification.forward

    @functools.wraps(forward)
    def wider(self, *args, **options):
        return SimpleNamespace(logits=forward(self, *args, **options).logits.repeat(1, 2))

    monkeypatch.setattr(transformers.BertForSequenceClassification, "forward", wider)
    with pytest.raises(ModelError, match=rf"^{folder}: gives \(1, 6\) numbers for one text, not 3$"):
        load_finetuned(folder, MNLI)


def test_trying_a_model_out_leaves_its_mode_and_the_random_numbers_alone(tmp_path):
    folder = save(bert(2, dropout=0.5), tmp_path, MNLI.label_names)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert not load_finetuned(folder, MNLI).training
    assert torch.equal(torch.rand(3), expected)


def test_damaged_files_in_the_cache_are_one_sentence_with_their_folder(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{")
    monkeypatch.setattr(loading, "find_model_snapshot", lambda name: tmp_path)
    with pytest.raises(ModelError, match=rf"^some/name: no model or tokenizer can be loaded from {tmp_path}: [^\n]+$"):
        load_tokenizer("some/name")


PLACES = {
    ("checkpoint-500",): "checkpoint-500/ in it has one: give {}/checkpoint-500",
    ("model",): "model/ in it has one: give {}/model",
    ("out/best",): "out/best/ in it has one: give {}/out/best",
    ("checkpoint-500", "checkpoint-1000"): (
        "checkpoint-1000/, checkpoint-500/ in it have one: give one of them, such as {}/checkpoint-1000"
    ),
    ("a", "b", "c", "d", "e", "f"): "f/, e/, d/, c/ and 2 more in it have one: give one of them, such as {}/f",
}


@pytest.mark.parametrize("ending", ["", "/"])
@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("load", [load_tokenizer, load_config_file, lambda name: load_finetuned(name, RTE)])
def test_a_folder_one_level_too_high_is_one_sentence_that_names_what_lies_in_it(tmp_path, load, places, ending):
    for age, place in enumerate(places):
        folder = tmp_path / "run" / place
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        os.utime(folder / "config.json", (age, age))
    run = f"{tmp_path}/run"
    with pytest.raises(ModelError) as fault:
        load(run + ending)
    assert str(fault.value) == f"{run}{ending}: has no config.json, but {PLACES[places].format(run)}"


@pytest.mark.parametrize(
    "way", [".", "./", "../model", "../model/", "{}/run/model/", "{}/run/model/onnx/..", "{}/link"]
)
def test_a_runs_model_is_one_however_it_is_named(tmp_path, monkeypatch, way):
    """What a run has trained needs no `teacher.label_names`."""
    model = tmp_path / "run" / "model"
    (model / "onnx").mkdir(parents=True)
    for file in (tmp_path / "run" / "config.yaml", model / "config.json", tmp_path / "run" / "results.json"):
        file.write_text("{}")
    (tmp_path / "link").symlink_to(model)
    monkeypatch.chdir(model)
    assert is_model_of_a_run(way.format(tmp_path))
    assert not is_model_of_a_run(str(model / "onnx"))
