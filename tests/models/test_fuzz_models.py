"""Whatever lies in a model's folder: it is a model that works, or one sentence names the folder; no code runs."""

import json
import pickle
import shutil

import pytest
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st

from reptile_distil.data.tasks import GLUE
from reptile_distil.errors import ModelError
from reptile_distil.models.checks import check_vocabulary
from reptile_distil.models.pretrained import load_finetuned, load_pretrained
from reptile_distil.models.tokenizer import load_tokenizer
from reptile_distil.models.toy import toy_config, toy_tokenizer
from tests.helpers.fuzzing import assert_one_sentence, examples

RTE = GLUE["rte"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The folder of a sound model of 6,000 weights."""
    folder = tmp_path_factory.mktemp("sound")
    config = toy_config("toy-bert-1L-16H")
    config.id2label = dict(enumerate(RTE.label_names))
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


class Trap:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('executed').touch()",)


def check(sound, folder, change):
    """What a changed copy of the sound folder does when it is used in each of the three ways."""
    copy = folder / "model"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(sound, copy)
    change(copy)
    name = str(copy)
    loaders = (
        lambda: (load_finetuned(name, RTE), load_tokenizer(str(sound))),
        lambda: (load_pretrained(name, RTE, seed=0), load_tokenizer(str(sound))),
        lambda: (load_finetuned(str(sound), RTE), load_tokenizer(name)),
    )
    outcomes = []
    for load in loaders:
        try:
            model, tokenizer = load()
            check_vocabulary(name, model, tokenizer)
        except ModelError as error:
            assert_one_sentence(error, name)
            outcomes.append("refused")
        else:
            batch = tokenizer(["the film", "x"], ["", "was good"], padding=True, truncation=True, max_length=16)
            with torch.no_grad():
                logits = model.eval()(**batch.convert_to_tensors("pt")).logits
            assert logits.shape == (2, 2)
            assert torch.isfinite(logits).all()
            outcomes.append("works")
    assert not (folder / "executed").exists()
    return outcomes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory, and a user who consents to everything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return tmp_path


FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
ODD_CONTENTS = [b"", b"{", b"{}", b"[]", b"null", b"3", b"\xff", b"\x00" * 100, b"[" * 100_000, b'{"a": 1e999}']
ODD_VALUES = [None, 0, -1, 1, 5, 10**9, 1.5, 1e999, "", "x", "a/b", True, [], [1], {}, {"a": 1}, {"0": "x", "5": None}]
KEYS = [
    *sorted(toy_config("toy-bert-1L-16H").to_dict()),
    "auto_map",
    "num_labels",
    "attn_implementation",
    "dtype",
]
TOKENIZER_KEYS = ["tokenizer_class", "pad_token", "unk_token", "cls_token", "model_max_length", "added_tokens_decoder"]
TOKENIZER_KEYS += ["auto_map", "do_lower_case", "padding_side", "model_input_names", "extra_special_tokens"]


def set_values(folder, name, values):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


edits = st.one_of(
    st.tuples(st.just("replace"), st.sampled_from(FILES), st.sampled_from(ODD_CONTENTS) | st.binary(max_size=8)),
    st.tuples(st.just("flip"), st.sampled_from(FILES), st.tuples(st.integers(0, 10**6), st.integers(0, 255))),
    st.tuples(st.just("cut"), st.sampled_from(FILES), st.integers(0, 10**6)),
    st.tuples(st.sampled_from(["remove", "folder", "loop"]), st.sampled_from(FILES), st.none()),
    st.tuples(
        st.just("set"),
        st.just("config.json"),
        st.dictionaries(st.sampled_from(KEYS), st.sampled_from(ODD_VALUES), max_size=2),
    ),
    st.tuples(
        st.just("set"),
        st.just("tokenizer_config.json"),
        st.dictionaries(st.sampled_from(TOKENIZER_KEYS), st.sampled_from(ODD_VALUES), max_size=2),
    ),
)


def apply(edit, folder):
    kind, name, value = edit
    path = folder / name
    if kind == "set":
        set_values(folder, name, value)
        return
    content = bytearray(path.read_bytes())
    path.unlink()
    if kind == "replace":
        path.write_bytes(value)
    elif kind == "flip":
        content[value[0] % len(content)] = value[1]
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[: value % len(content)])
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(name)


@given(edits)
@examples(60)
@example(("set", "config.json", {"num_labels": 10**9}))
@example(("set", "config.json", {"num_attention_heads": -4}))
@example(("set", "config.json", {"hidden_size": 0}))
@example(("set", "config.json", {"num_attention_heads": 3}))
@example(("set", "config.json", {"id2label": {"1": "entailment", "2": "not_entailment"}}))
@example(("set", "config.json", {"attention_probs_dropout_prob": 2}))
@example(("set", "tokenizer_config.json", {"pad_token": None}))
@example(("set", "tokenizer_config.json", {"pad_token": "new"}))
@example(("set", "tokenizer_config.json", {"unk_token": None}))
def test_a_damaged_model_folder_works_or_is_refused_in_one_sentence(sound, folder, edit):
    check(sound, folder, lambda copy: apply(edit, copy))


def test_a_sound_folder_works(sound, folder):
    assert check(sound, folder, lambda copy: None) == ["works", "works", "works"]


@pytest.mark.parametrize(
    "options", [{"config.json": {"return_dict": False}}, {"config.json": {"chunk_size_feed_forward": 3}}]
)
def test_options_that_change_no_number_are_taken_as_this_package_needs_them(sound, folder, options):
    ((name, values),) = options.items()
    assert check(sound, folder, lambda copy: set_values(copy, name, values)) == ["works", "works", "works"]


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 10**8])
def test_a_safetensors_header_of_absurd_length_is_refused(sound, folder, length):
    def change(copy):
        path = copy / "model.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])

    assert check(sound, folder, change)[:2] == ["refused", "refused"]


def test_weights_that_are_no_numbers_are_refused(sound, folder):
    def change(copy):
        path = copy / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-4000] + b"\xff" * 4000)

    assert check(sound, folder, change)[:2] == ["refused", "refused"]


@pytest.mark.parametrize("model_type", ["bert", "of-its-own", None])
def test_code_in_a_models_folder_is_never_run_whatever_the_user_answers(sound, folder, model_type):
    def change(copy):
        code = "import pathlib; pathlib.Path('executed').touch()\n"
        (copy / "code.py").write_text(code + "class A: pass\nclass B: pass\n")
        map_ = {
            "AutoConfig": "code.A",
            "AutoModelForSequenceClassification": "code.B",
            "AutoTokenizer": ["code.A", "code.A"],
        }
        set_values(copy, "config.json", {"auto_map": map_, "model_type": model_type})
        set_values(copy, "tokenizer_config.json", {"auto_map": map_, "tokenizer_class": "A"})

    outcomes = check(sound, folder, change)
    assert model_type == "bert" or outcomes[:2] == ["refused", "refused"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_in_a_models_folder_is_never_run(sound, folder, save):
    def change(copy):
        (copy / "model.safetensors").unlink()
        save({"bert.embeddings.word_embeddings.weight": Trap()}, copy / "pytorch_model.bin")

    assert check(sound, folder, change)[:2] == ["refused", "refused"]


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_attention_code_from_the_hub_is_never_fetched(sound, folder, key):
    outcomes = check(sound, folder, lambda copy: set_values(copy, "config.json", {key: "somebody/kernel"}))
    assert outcomes[:2] == ["refused", "refused"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "~nobody-of-this-name/x",
        "x" * 300,
        "./\0",
        "/dev/null",
        "a/b/c",
        "http://x/y",
        "a b",
        "toy-bert-" + "9" * 5000,
    ],
)
def test_a_name_that_no_model_can_have_is_refused(folder, name):
    for load in (
        lambda: load_finetuned(name, RTE),
        lambda: load_pretrained(name, RTE, seed=0),
        lambda: load_tokenizer(name),
    ):
        with pytest.raises(ModelError) as caught:
            load()
        assert_one_sentence(caught.value, name[:200].replace("\0", "\\x00"))


@pytest.mark.slow
@given(edits)
@examples(1000)
def test_a_thousand_damaged_model_folders_work_or_are_refused_in_one_sentence(sound, folder, edit):
    check(sound, folder, lambda copy: apply(edit, copy))
