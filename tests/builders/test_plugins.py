"""Methods and losses of the user's own, by name: where their code may come from, and what a run makes of them."""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from reptile_distil import Experiment, load_config
from reptile_distil.builders.own_method import OwnMethod
from reptile_distil.errors import CallbackError, ConfigError, ModelError, ReptileDistilError, RunError
from reptile_distil.experiments.dry_run import plan_distillation
from reptile_distil.experiments.finished_run import open_run_folder
from reptile_distil.export.model_card import render_card
from reptile_distil.export.report import make_report
from reptile_distil.models.classifier import Classifier
from reptile_distil.plugin_names import folder_name
from reptile_distil.tables.commands import commands
from reptile_distil.tables.config import load_table_config
from tests.builders.conftest import write_package
from tests.helpers.experiments import epochs_of, weights_of
from tests.helpers.models import batch, bert
from tests.helpers.paths import CONFIGS, ROOT, TINY

FADING = "method=my_pkg.methods:FadingTeacher"


class StopAt:
    """Ends a run with a fault at a step, after a checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, run, step, logs, rates):
        if step == self.step and run.method != "teacher":
            raise RuntimeError("enough")


def test_a_method_and_a_loss_of_ones_own_are_run_by_name(own, tiny):
    experiment = tiny(
        FADING, "method_options.fade=3", "loss.name=my_pkg.losses:CosineLoss", "loss.options={share: 0.5}"
    )
    assert experiment.folder.path.name == "fading-teacher-seed42"
    results = experiment.fit()
    assert results["method"] == "my_pkg.methods:FadingTeacher"
    assert results["plugins"]["method"]["name"] == "my_pkg.methods:FadingTeacher"
    assert len(results["plugins"]["loss.name"]["sha256"]) == 64
    assert results["decisive"]["method_options.fade"] == 3
    (epoch,) = epochs_of(experiment.folder)
    assert epoch["train"]["cosine_loss"] > 0
    assert epoch["train"]["teacher_share"] == pytest.approx((1 + 2 / 3 + 1 / 3 + 0 + 0) / 5)
    assert experiment.evaluate() == results["scores"]
    assert tiny(FADING, "method_options.fade=3", *experiment_loss()).fit() == results  # a finished one is only read
    with pytest.raises(RunError, match=r"method_options\.fade"):
        tiny(FADING, "method_options.fade=4", *experiment_loss()).fit()


def experiment_loss():
    return "loss.name=my_pkg.losses:CosineLoss", "loss.options={share: 0.5}"


@pytest.mark.parametrize(
    "overrides",
    [
        [FADING, "method_options.fade=5"],
        ["method=reptile", "loss.hidden=1", "loss.hidden_projection=learned", "loss.hidden_embeddings=true"],
        pytest.param(["method=my_pkg.methods:MovingTeacher"], marks=pytest.mark.slow),
        pytest.param(["method=kd", "loss.name=my_pkg.losses:StatesLoss"], marks=pytest.mark.slow),
        pytest.param(["method=kd", "loss.hidden=1", "loss.hidden_projection=learned"], marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_ended_goes_on_to_the_same_bits(own, tiny, tmp_path, overrides):
    whole = tiny(*overrides)
    results = whole.fit()
    expected = weights_of(whole)
    metrics = epochs_of(whole.folder)
    shutil.rmtree(whole.folder.path)
    with pytest.raises(CallbackError, match="enough"):
        tiny(*overrides, callbacks=[StopAt(3)]).fit()
    again = tiny(*overrides)
    assert again.fit()["scores"] == results["scores"]
    for name, weight in weights_of(again).items():
        assert weight.equal(expected[name])
    for record, was in zip(epochs_of(again.folder), metrics, strict=True):
        assert record["train"] == was["train"]


def test_a_projection_is_in_checkpoints_and_not_in_the_saved_model(tiny):
    from safetensors.torch import load_file

    experiment = tiny(
        "method=kd", "loss.hidden=1", "loss.hidden_projection=learned", "checkpoint.keep_when_finished=true"
    )
    experiment.fit()
    newest = max((experiment.folder.path / "checkpoints").iterdir())
    assert load_file(newest / "tensors.safetensors")["loss/learned.0.w_hidden.weight"].shape == (16, 16)
    assert not any("w_hidden" in name for name in weights_of(experiment))


@pytest.mark.slow
def test_a_teacher_that_moves_is_scored_and_saved(own, tiny):
    experiment = tiny("method=my_pkg.methods:MovingTeacher")
    experiment.fit()
    (epoch,) = epochs_of(experiment.folder)
    assert epoch["teacher_drift"] > 0


def test_weights_that_a_method_writes_through_data_are_computed_with_in_half_precision(own, tiny):
    experiment = tiny("method=my_pkg.methods:Unnoticed", "precision=bf16", "train.max_steps=3")
    results = experiment.fit()
    assert experiment.evaluate() == results["scores"]  # of the model that was saved


@pytest.mark.parametrize("owner", ["teacher", "student"])
def test_both_models_count_as_changed_after_each_step(owner):
    models = {name: Classifier(bert(1), autocast_dtype=torch.bfloat16).eval() for name in ("teacher", "student")}
    weight = models[owner].model.classifier.weight

    def step(given):
        models[owner](given)
        weight.data.mul_(2)
        return {"loss": 1.0}

    mine = SimpleNamespace(step=step)
    method = OwnMethod(mine, "a.b:Mine", moves_teacher=False, models=tuple(models.values()))
    for _ in range(2):
        method.step(batch())
        expected = Classifier(models[owner].model, autocast_dtype=torch.bfloat16).eval()(batch())
        assert torch.equal(models[owner](batch()), expected)


def test_code_that_has_changed_is_not_gone_on_with(own, tiny, tmp_path):
    with pytest.raises(CallbackError):
        tiny(FADING, callbacks=[StopAt(3)]).fit()
    file = tmp_path / "elsewhere" / "my_pkg" / "methods.py"
    file.write_text(file.read_text() + "\n# changed\n")
    with pytest.raises(RunError, match=r"the code of my_pkg\.methods:FadingTeacher has changed since this run began"):
        tiny(FADING).fit()


@pytest.mark.parametrize("overrides", [[FADING], ["method=kd", "loss.name=my_pkg.losses:CosineLoss"]])
def test_a_finished_run_of_other_code_is_not_taken_for_one_of_todays(own, tiny, tmp_path, overrides):
    results = tiny(*overrides).fit()
    assert tiny(*overrides).fit() == results
    name = next(plugin["name"] for plugin in results["plugins"].values())
    file = tmp_path / "elsewhere" / f"{name.partition(':')[0].replace('.', '/')}.py"
    text = file.read_text()
    file.write_text(text + "\n# changed\n")
    with pytest.raises(RunError, match=rf"the code of {name} has changed since this run was made"):
        tiny(*overrides).fit()
    file.write_text(text)
    assert tiny(*overrides).fit() == results


def test_options_of_ones_own_decide_whatever_they_are_called():
    own = ["task=rte", FADING, "method_options={log_every: 1, packing: 2}", *experiment_loss()[:1]]
    settings = load_config(CONFIGS / "base.yaml", [*own, "loss.options={keep_logits: 3}"]).defining_settings(FADING[7:])
    assert settings["method_options.log_every"] == 1
    assert settings["method_options.packing"] == 2
    assert settings["loss.options.keep_logits"] == 3
    assert "train.log_every" not in settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=nowhere.methods:Mine"], "Python finds no module nowhere: install its package"),
        (["method=my_pkg.nothing:Mine"], "Python finds no module my_pkg.nothing"),
        (["method=my_pkg.methods:Nobody"], "my_pkg.methods has no Nobody"),
        (["method=my_pkg.methods:function"], "function is no class but a function"),
        (["method=my_pkg.methods:NoStep"], "is no method: the class has no step"),
        (["method=my_pkg.methods:FewArguments"], "FewArguments got an unexpected keyword argument 'student_optimizer'"),
        (["method=my_pkg.broken:Mine"], "my_pkg.broken fails on import: ZeroDivisionError: division by zero"),
        (["method=my_pkg.hungry:Mine"], "my_pkg.hungry fails on import: it needs nowhere_to_be_found"),
        (["method=kd", "loss.name=my_pkg.losses:NoLoss"], "is no loss: the class is no subclass of DistillationLoss"),
        (["method=kd", "loss.name=my_pkg.losses:CosineLoss", "loss.options={gama: 1}"], "keyword argument 'gama'"),
        (["method=kd", "loss.name=my_pkg.losses:CosineLoss", "loss.options={share: -1}"], "share = -1: expected"),
        (
            ["method=kd", "loss.name=my_pkg.losses:CosineLoss", "loss.options={alpha: 1}"],
            "loss.options.alpha: is given",
        ),
        ([FADING, "method_options={student: 1}"], "method_options.student: is given by the run itself"),
        ([FADING, "method_options={fade: 0}"], "FadingTeacher cannot be made: ValueError: fade = 0: expected"),
        (["method=kd", "loss.name=my_pkg.losses:AttentionsLoss"], "set compute.attention=eager"),
        (["method=my_pkg.methods:Untouchable"], "must hold tensors by name, but 'count' is 3"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(own, tiny, overrides, message):
    with pytest.raises(ReptileDistilError) as error:
        tiny(*overrides, "train.max_steps=3").fit()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([3], "must return a dict of scalars, 'loss' among them, not 3"),
        ([{"grad_norm": 1.0}], "must return a dict of scalars, 'loss' among them"),
        ([{"loss": 1.0, "gap": 1.0}], "moves_teacher = True"),
        ([{"loss": 1.0, "step": 1}], "'step', which is no name for a value in the log"),
        ([{"loss": 1.0, "lr": 1e-3}], "'lr', which is no name for a value in the log"),
        ([{"loss": torch.zeros(2)}], "which is no scalar"),
        ([{"loss": 1.0}, {"loss": 1.0, "other": 2.0}], "the same names in every step, but 'other' varies"),
    ],
)
def test_a_step_that_returns_something_else_is_refused(returned, message):
    steps = iter(returned)
    own = OwnMethod(SimpleNamespace(step=lambda batch: next(steps)), "a.b:Mine", moves_teacher=False, models=())
    given = {"input_ids": torch.ones(1, 1)}
    for _ in returned[1:]:
        own.step(given)
    with pytest.raises(RunError, match=re.escape(message)):
        own.step(given)


@pytest.mark.parametrize(
    ("optimizers", "message"),
    [({"lr": None}, "must have names for log files, not 'lr'"), ({"mine": 3}, "optimizers['mine'] is no optimizer")],
)
def test_optimizers_that_are_none_are_refused(optimizers, message):
    own = OwnMethod(SimpleNamespace(optimizers=optimizers), "a.b:Mine", moves_teacher=False, models=())
    with pytest.raises(RunError, match=re.escape(message)):
        own.optimizers()


@pytest.mark.parametrize(("has", "lacks"), [("state_dict", "load_state_dict"), ("load_state_dict", "state_dict")])
def test_half_of_a_state_is_refused(has, lacks):
    own = OwnMethod(SimpleNamespace(**{has: dict}), "half:HalfState", models=(), moves_teacher=False)
    with pytest.raises(RunError, match=rf"^method half:HalfState has {has}\(\) but no {lacks}\(\): "):
        own.state()


def test_what_is_refused_is_refused_before_the_teacher_is_trained(own, tiny, tmp_path):
    for overrides in (
        ["method=my_pkg.methods:Nobody"],
        ["method=kd", "loss.name=my_pkg.losses:NoLoss"],
        [FADING, "method_options.fade=0"],
    ):
        with pytest.raises(ConfigError):
            tiny(*overrides).fit()
        with pytest.raises(ConfigError):
            tiny(*overrides).check_pair()
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))


@pytest.mark.slow
def test_attentions_are_there_where_attention_is_written_out(own, tiny):
    experiment = tiny("method=kd", "loss.name=my_pkg.losses:AttentionsLoss", "compute.attention=eager")
    experiment.fit()
    assert epochs_of(experiment.folder)[0]["train"]["maps_loss"] > 0


@pytest.mark.parametrize("kind", ["models", "data", "runs"])
def test_no_code_is_taken_from_a_folder_of_models_data_or_runs(tiny, tmp_path, monkeypatch, kind):
    folder = tmp_path / ("runs" if kind == "runs" else kind)
    write_package(folder, f"lies_in_{kind}")
    monkeypatch.syspath_prepend(str(folder))
    place = {"models": f"teacher.finetuned={folder}", "data": f"data.path={folder}", "runs": "seed=1"}[kind]
    with pytest.raises(ConfigError, match=f"a folder of {kind}, from which no code is taken"):
        tiny(f"method=lies_in_{kind}.methods:FadingTeacher", place).check_plugins()
    assert f"lies_in_{kind}.methods" not in sys.modules


def test_no_code_is_taken_from_the_current_folder_unless_it_is_named(tiny, tmp_path, monkeypatch):
    write_package(tmp_path, "is_here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with pytest.raises(ConfigError, match="was found in the current folder alone, from which no code is taken"):
        tiny("method=is_here.methods:FadingTeacher").check_plugins()
    assert "is_here.methods" not in sys.modules
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tiny("method=is_here.methods:FadingTeacher").check_plugins()


@pytest.mark.slow
def test_nor_by_a_command_that_is_started_in_it(tmp_path):
    write_package(tmp_path, "lies_here")
    (tmp_path / "run.py").write_text("")
    words = [sys.executable, "-m", "reptile_distil", "distil", "--config", str(TINY), "method=lies_here.losses:NoLoss"]
    outcomes = []
    for path in (str(ROOT), f"{ROOT}{os.pathsep}{tmp_path}"):
        done = subprocess.run(
            words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        outcomes.append(done.stderr)
    assert "was found in the current folder alone, from which no code is taken" in outcomes[0]
    assert "is no method: the class has no step(batch)" in outcomes[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=my_pkg.methods"], "expected 'finetune', 'kd'"),
        (["method=/tmp/methods.py:Mine"], "or a class of your own, package.module:Name"),
        (["method=.methods:Mine"], "or a class of your own, package.module:Name"),
        (["method=a.b:Teacher"], "its run folder would be another's, 'teacher'"),
        (["method=a.b:KD"], "its run folder would be another's, 'kd'"),
        (["method=a.b:Mine", "compare_with=[c.d:Mine]"], "its run folder would be another's, 'mine'"),
        (["method=a.b:Mine", "compare_with=[c.d:Other]", "method_options={x: 1}"], "method_options are of one method"),
        (["method=a.b:Mine", "compute.cuda_graphs=true"], "cannot be used with a method of one's own"),
        (["method=a.b:Mine", "distributed.shard=true"], "cannot be used with a method of one's own"),
        (["method=a.b:Mine", "data.transfer.fraction=0.5"], "data.transfer, rows without labels, cannot be used with"),
        (["method=a.b:Mine", "teachers=[x]"], "teachers belongs to method kd alone"),
        (["method=kd", "method_options.x=1"], "method_options.x has no effect on method kd"),
        (["method=kd", "loss.options={x: 1}"], "options belongs to name"),
        (["method=kd", "loss.name=a.b:Mine", "kd.keep_logits=true"], "loss.name may compare more"),
        (["loss.relations.heads=4"], "heads belongs to the term's weight, which is 0"),
        (["loss.attention.of=probabilities"], "of belongs to the term's weight, which is 0"),
        (["loss.hidden_projection=learned"], "hidden_projection belongs to hidden, which is 0"),
        (["loss.relations.weight=1", "data.packing=true"], "or loss.relations.weight to 0"),
        (["loss.relations.weight=1", "compute.compile=true"], "compute.compile gives no queries and keys"),
        (["loss.hidden=1", "loss.hidden_projection=learned", "distributed.shard=true"], "choose one of the two"),
        (["loss.attention.weight=1", "kd.keep_logits=true", "method=kd"], "not what loss.attention.weight compare"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(overrides, message):
    with pytest.raises(ConfigError) as error:
        load_config(TINY, overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("kd", "kd"), ("a:MyDistiller", "my-distiller"), ("a.b:KDPlus", "kd-plus"), ("a:my_own2", "my-own2")],
)
def test_a_run_folder_has_the_classs_name(name, folder):
    assert folder_name(name) == folder


def test_a_method_of_ones_own_can_be_planned_printed_and_reported(own, tiny, tmp_path):
    config = load_config(TINY, [f"runs_dir={tmp_path}/runs", FADING, "method_options={fade: 2}", "compare_with=[kd]"])
    plan = plan_distillation(config)
    assert [run.role for run in plan.runs] == ["teacher", "my_pkg.methods:FadingTeacher", "kd"]
    assert load_config_text(config, tmp_path) == config
    experiment = tiny(FADING)
    experiment.fit()
    assert open_run_folder(experiment.folder.path).results.method == "my_pkg.methods:FadingTeacher"


@pytest.mark.slow
def test_a_run_of_ones_own_method_has_a_model_card(own, tiny):
    experiment = tiny(FADING)
    experiment.fit()
    card = render_card(make_report(experiment.folder.path))
    assert "FadingTeacher" in card
    assert "toy-sentence-fading-teacher" in card


def load_config_text(config, tmp_path):
    file = tmp_path / "printed.yaml"
    file.write_text(config.to_yaml())
    return load_config(file)


def test_several_processes_are_refused_unless_the_method_says_that_it_takes_them(own, tiny):
    from reptile_distil.builders.plugins import check_plugins

    config = tiny(FADING).config
    check_plugins(config, 1)
    with pytest.raises(ConfigError, match="takes one process, but 2 were started"):
        check_plugins(config, 2)
    sys.modules["my_pkg.methods"].FadingTeacher.takes_several_processes = True
    check_plugins(config, 2)


def test_terms_for_two_widths_are_refused_or_run_end_to_end(tiny, tmp_path):
    """A student of another width and number of heads; the sentence comes before the teacher is trained."""
    import transformers

    from reptile_distil.models.toy import toy_config, toy_tokenizer

    shape = toy_config("toy-bert-2L-16H")
    shape.hidden_size, shape.num_attention_heads, shape.intermediate_size, shape.num_hidden_layers = 24, 3, 32, 1
    folder = tmp_path / "narrow"
    transformers.BertForSequenceClassification(shape).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    start = ("method=kd", "student.init=pretrained", f"student.pretrained={folder}", "student.num_layers=null")
    with pytest.raises(ModelError, match=r"loss\.relations\.heads = 12 does not divide the teacher's width of 16"):
        tiny(*start, "loss.relations.weight=1").fit()
    with pytest.raises(ModelError, match=r"loss\.relations\.teacher_layer = 2: the teacher's layers are 0 to 1"):
        tiny(*start, "loss.relations={weight: 1, heads: 8, teacher_layer: 2}").fit()
    with pytest.raises(ModelError, match=r"or loss\.hidden_projection: learned"):
        tiny(*start, "loss.hidden=1").fit()
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))
    terms = ("loss.relations={weight: 1, heads: 8}", "loss.attention.weight=1", "loss.hidden=1")
    experiment = tiny(*start, *terms, "loss.hidden_projection=learned")
    plan = plan_distillation(experiment.config)
    experiment.fit()
    (epoch,) = epochs_of(experiment.folder)
    assert min(epoch["train"][f"{name}_loss"] for name in ("relations", "attention", "hidden")) > 0
    assert plan.runs[-1].measured is not None
    assert "loss.relations.heads" in json.loads((experiment.folder.path / "results.json").read_text())["decisive"]


def blocks_of(page, language, words):
    (block,) = (
        text
        for text in re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
        if words in text
    )
    return block


def test_the_readmes_example_runs(tmp_path, monkeypatch):
    package = tmp_path / "elsewhere" / "my_package"
    package.mkdir(parents=True)
    (package / "methods.py").write_text(blocks_of("reptile_distil/README.md", "python", "class FadingTeacher"))
    loss, _, _ = blocks_of("reptile_distil/README.md", "python", "class CosineLoss").partition("\noptimizer")
    (package / "losses.py").write_text(loss)
    monkeypatch.syspath_prepend(str(package.parent))
    (tmp_path / "mine.yaml").write_text(
        f"extends: {TINY}\n" + blocks_of("configs/README.md", "yaml", "my_package.methods")
    )
    overrides = (f"runs_dir={tmp_path}/runs", "loss.name=my_package.losses:CosineLoss")
    config = load_config(tmp_path / "mine.yaml", overrides)
    experiment = Experiment(config.with_values(compare_with=()))
    experiment.fit()
    (epoch,) = epochs_of(experiment.folder)
    assert experiment.folder.path.name == "fading-teacher-seed42"
    assert epoch["train"]["alpha"] == pytest.approx(0.5 * (1 - 2 / 500))


@pytest.fixture
def table_of_own(own, tmp_path):
    (tmp_path / "table.yaml").write_text(
        f"extends: {TINY}\nruns_dir: {tmp_path}/runs\ntasks: [toy-sentence]\nseeds: [42]\n"
        "methods: [kd, my_pkg.methods:FadingTeacher, short]\n"
        "variants:\n  short: {method: 'my_pkg.methods:FadingTeacher', method_options: {fade: 1}}\n"
    )
    return tmp_path / "table.yaml"


@pytest.mark.slow
def test_a_table_with_methods_of_ones_own_is_made(table_of_own, call, tmp_path):
    code, _, err = call("table", config=table_of_own)
    assert code == 0, err
    assert "my_pkg.methods:FadingTeacher" in (tmp_path / "runs" / "table.md").read_text()


def test_a_row_of_a_table_may_be_ones_own(table_of_own):
    table = load_table_config(table_of_own)
    assert [cell.folder.name for cell in table.cells] == [
        "teacher-seed42",
        "kd-seed42",
        "fading-teacher-seed42",
        "short-seed42",
    ]
    assert {cell.config.method for cell in table.cells[2:]} == {"my_pkg.methods:FadingTeacher"}
    words = list(commands(table, ["python", "scripts/table.py"], table_of_own, ()))[2]
    assert load_table_config(table_of_own, [word for word in words if "=[" in word]).rows == (
        "teacher",
        "my_pkg.methods:FadingTeacher",
    )
