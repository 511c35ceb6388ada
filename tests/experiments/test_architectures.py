"""What works with which architecture: the table of configs/README.md is what is measured here on tiny random models."""

import itertools

import pytest
import transformers

from reptile_distil.errors import ReptileDistilError
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.export.onnx_export import export_onnx
from tests.helpers.architectures import CONFIGS, save, words
from tests.helpers.paths import CONFIGS as FILES
from tests.helpers.paths import TINY

COLUMNS = ("kd", "reptile", "copying layers", "ONNX", "packing")
FEW = ("ALBERT", "I-BERT", "Llama")
MORE = tuple(kind for kind in CONFIGS if kind not in FEW)


def table():
    """The README's rows: by architecture what works, and what does not."""
    lines = (FILES / "README.md").read_text().splitlines()
    start = lines.index("| architecture | " + " | ".join(COLUMNS) + " |")
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = dict(zip(COLUMNS, cells, strict=True))
    return rows


def result_or_refusal(call):
    """What the call returns; None where it refuses in one sentence. Any other exception is a fault."""
    try:
        return call()
    except ReptileDistilError as error:
        sentence = str(error)
    assert sentence
    assert "\n" not in sentence
    return None


class Pair:
    """A teacher of two layers and a student of one, of one kind, in folders."""

    def __init__(self, kind, folder):
        self.teacher, self.student = save(folder / "teacher", kind), save(folder / "student", kind, 1, seed=1)
        self.folder = folder

    def experiment(self, *overrides):
        return Experiment.from_yaml(
            TINY,
            *(f"runs_dir={self.folder}/runs", f"teacher.pretrained={self.teacher}", "data.max_length=24"),
            *(f"student.pretrained={self.student}", "student.init=pretrained", "student.num_layers=null"),
            *("train.max_steps=2", "teacher.train.max_steps=2"),
            *overrides,
        )

    def takes_a_step(self, *overrides):
        """Whether a step is taken, and is a number; where it is refused, in one sentence and before it."""
        experiment = self.experiment(*overrides)

        def prepare():
            components = experiment.setup.prepare_student(self.teacher, stand_in=True)
            return components, experiment.setup.assemble(experiment.config.method, components)[1]

        if (ready := result_or_refusal(prepare)) is None:
            return False
        components, built = ready
        logs = built.method.step(next(iter(components.data["train"].epoch(1))))
        assert logs["loss"].isfinite()
        return True

    def exports(self):
        model, tokenizer = self.experiment("method=finetune").setup.prepare_student(None)[1:3]
        file = self.folder / "onnx" / "model.onnx"
        works = result_or_refusal(lambda: export_onnx(model, tokenizer, file)) is not None
        assert file.parent.exists() == file.exists() == works
        return works

    def measure(self):
        works = {
            "kd": self.takes_a_step("method=kd"),
            "reptile": self.takes_a_step("method=reptile"),
            "copying layers": self.takes_a_step("method=kd", *COPIED),
            "ONNX": self.exports(),
            "packing": self.takes_a_step("method=kd", "data.packing=true"),
        }
        return {column: "yes" if works[column] else "no" for column in COLUMNS}


COPIED = ("student.init=teacher_layers", "student.pretrained=null", "student.num_layers=1")


@pytest.mark.parametrize("kind", [*FEW, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE)])
def test_the_readmes_table_is_what_is_measured(tmp_path, kind):
    pytest.importorskip("onnxruntime")
    assert table()[kind] == Pair(kind, tmp_path).measure()


def test_the_readmes_table_names_each_architecture_that_is_measured():
    assert list(table()) == list(CONFIGS)


QUICK = [("GPT-2", "left", "kd"), ("Qwen3", "right", "reptile"), ("Llama", "left", "reptile")]
ALL = itertools.product(("GPT-2", "Llama", "Qwen3"), ("left", "right"), ("kd", "reptile"))


@pytest.mark.parametrize(
    ("kind", "side", "method"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in QUICK)],
)
def test_a_decoder_says_the_same_of_a_text_alone_and_in_a_batch(tmp_path, kind, side, method):
    """Its tokenizer knows no padding and its configuration none either; the student it leaves knows both."""
    pair = Pair(kind, tmp_path)
    for folder in (pair.teacher, pair.student):
        words(padding_side=side).save_pretrained(folder)
    experiment = pair.experiment(f"method={method}", "train.max_steps=8", "train.lr=1e-2")
    experiment.fit()
    folder = experiment.folder.model
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert tokenizer.pad_token == "[SEP]"
    assert model.config.pad_token_id == tokenizer.pad_token_id == 3
    assert tokenizer.padding_side == ("right" if kind == "GPT-2" else side)  # GPT-2 counts from the left
    texts = ["good", "the film was not good and the plot was bad", "bad plot"]
    classify = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    alone, batched = (
        [{row["label"]: row["score"] for row in rows} for rows in said]
        for said in (
            [classify(text) if isinstance(classify(text)[0], dict) else classify(text)[0] for text in texts],
            classify(texts, batch_size=3),
        )
    )
    for one, other, ours in zip(alone, batched, experiment.predict(texts), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
        assert one == pytest.approx(dict(ours.probabilities), abs=1e-5)
    assert alone[0] != pytest.approx(alone[2], abs=1e-4)


@pytest.mark.parametrize(
    "kind",
    [
        "XLNet",
        "DeBERTa-v2, v3",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("EuroBERT", "XLM-R", "DeBERTa", "I-BERT")),
    ],
)
def test_distillation_from_fine_tuning_to_a_students_predictions(tmp_path, kind):
    experiment = Pair(kind, tmp_path).experiment("method=reptile", "compare_with=[]")
    results = experiment.fit()
    assert results["num_steps"] == 2
    assert results["latency"]["batches"].keys() == {"1", "32"}
    texts = ["good", "the film was not good and the plot was bad"]
    alone = [experiment.predict([text])[0].probabilities for text in texts]
    for one, ours in zip(alone, experiment.predict(texts), strict=True):
        assert dict(one) == pytest.approx(dict(ours.probabilities), abs=1e-5)


@pytest.mark.parametrize("kind", ["Llama", *(pytest.param(k, marks=pytest.mark.slow) for k in ("GPT-2", "Qwen3"))])
def test_a_text_without_a_token_is_a_row_like_any_other(tmp_path, kind):
    experiment = Pair(kind, tmp_path).experiment("method=finetune")
    experiment.fit()
    said = experiment.predict(["", "a good film", ""])
    assert all(0 < row.probabilities["positive"] < 1 for row in said)
    assert said[0] == said[2]
