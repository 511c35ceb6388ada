"""Steps from graphs equal steps taken one by one: on the CPU with a stand-in for the graph, on CUDA with CUDA's own."""

import copy
import itertools
import json
import re

import numpy as np
import pytest
import torch

from reptile_distil.data.batches import Batches
from reptile_distil.data.features import Features
from reptile_distil.errors import ConfigError, ModelError, RunError
from reptile_distil.experiments import experiment, setup
from reptile_distil.experiments.build_task import build_task
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.adamw import adamw
from reptile_distil.methods.finetune import FineTuner
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.methods.reptile_variants import Ablation
from reptile_distil.models.classifier import Student, Teacher
from reptile_distil.models.toy import toy_tokenizer
from reptile_distil.runs.state import load_optimizer, optimizer_tensors, optimizer_values
from reptile_distil.runtime.compute import without_compiling
from reptile_distil.training import cuda_graphs
from reptile_distil.training.cuda_graphs import LENGTH_STEP, WARM_UP_STEPS, GraphedSteps, check_graphs
from tests.helpers.models import batch, bert
from tests.helpers.paths import TINY

METHODS = ("finetune", "kd", "adamw", "interpolate")


class FakeRecorder:
    """Records a step by keeping it, and replays it by taking it; its logs always lie in the same place."""

    def __init__(self):
        self.taken = []

    def run(self, step):
        self.taken.append("run")
        return step()

    def record(self, step):
        self.taken.append("record")
        logs = {}

        def replay():
            self.taken.append("replay")
            for name, value in step().items():
                logs.setdefault(name, torch.empty_like(value)).copy_(value)
            return logs

        return replay


@pytest.fixture
def recorders():
    """Those that were made, in order; the last one is in use."""
    return []


@pytest.fixture
def graphed(recorders):
    """A method in graphs of the stand-in, its optimizers, and the models."""

    def new_recorder():
        recorders.append(FakeRecorder())
        return recorders[-1]

    def graphed(name):
        method, optimizers, models = build(name)
        return GraphedSteps(method, optimizers, batch_size=8, new_recorder=new_recorder), optimizers, models

    return graphed


def build(name, *, device="cpu", dtype=torch.float64, dropout=0.0, autocast_dtype=None, compiler=None):
    """One of METHODS: the method, its optimizers, and the models that it changes; compiled by a backend."""
    teacher = Teacher(bert(4, seed=1, dtype=dtype).to(device), autocast_dtype=autocast_dtype)
    student = Student(bert(2, seed=2, dtype=dtype, dropout=dropout).to(device), autocast_dtype=autocast_dtype)
    if compiler:
        for model in (teacher.model, student.model):
            model.compile(dynamic=True, backend=compiler)
    optimizer = adamw(student, lr=1e-2, eps=1e-4, weight_decay=0.1)
    shared = {"student_optimizer": optimizer}
    if name == "finetune":
        return FineTuner(student, **shared), [optimizer], {"student": student}
    if name == "kd":
        return (
            KnowledgeDistiller(teacher, student, loss=DistillationLoss(), **shared),
            [optimizer],
            {"student": student},
        )
    if name == "adamw":
        teacher_optimizer = adamw(teacher, lr=1e-2, eps=1e-4)
    else:
        teacher_optimizer = torch.optim.SGD(teacher.parameters(), lr=1e-2, fused=True)
    distiller = ReptileDistiller(
        teacher,
        student,
        loss=DistillationLoss(),
        teacher_optimizer=teacher_optimizer,
        update=name,
        inner_lr=1e-2,
        inner_eps=1e-4,
        **shared,
    )
    return distiller, [optimizer, teacher_optimizer], {"student": student, "teacher": teacher}


def schedules(optimizers):
    """Learning rates that fall by a tenth of their start with each step."""
    return [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 10) for optimizer in optimizers]


def take_steps(method, optimizers, batches):
    """Steps under a falling learning rate; returns the logs, read only at the end."""
    falling, logs = schedules(optimizers), []
    for given in batches:
        logs.append(method.step(given))
        for schedule in falling:
            schedule.step()
    return logs


def some_batches(device="cpu"):
    """Nine batches of two lengths, whole ones and one with fewer rows."""
    sizes = [(8, 7), (8, 7), (8, 9), (8, 7), (5, 7), (8, 9), (8, 7), (8, 9), (8, 7)]
    batches = [batch(rows, length, seed=seed) for seed, (rows, length) in enumerate(sizes)]
    return [{name: tensor.to(device) for name, tensor in given.items()} for given in batches]


def with_transfer_rows(given, seed):
    """The batch, without the labels of some rows: which and how many follow from the seed."""
    num_rows = len(given["labels"])
    generator = torch.Generator().manual_seed(seed)
    order, num_labelled = torch.randperm(num_rows, generator=generator), 1 + seed % (num_rows - 1)
    has_label = torch.zeros(num_rows, dtype=torch.bool)
    has_label[order[:num_labelled]] = True
    weights = has_label * (num_rows / num_labelled)
    there = given["labels"].device
    return {
        **given,
        "labels": given["labels"].masked_fill(~has_label.to(there), -1),
        "task_weights": weights.to(there),
    }


def assert_same(models, expected_models, *, atol):
    for owner, model in models.items():
        for (name, value), expected in zip(model.named_parameters(), expected_models[owner].parameters(), strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=atol, msg=f"{owner} {name}")


@pytest.mark.parametrize("name", METHODS)
def test_steps_from_graphs_equal_steps_one_by_one_under_a_falling_learning_rate(graphed, recorders, name):
    method, optimizers, models = graphed(name)
    logs = take_steps(method, optimizers, some_batches())
    plain, plain_optimizers, plain_models = build(name)
    expected = take_steps(plain, plain_optimizers, some_batches())
    assert recorders[-1].taken.count("replay") == 4
    # A learning rate is a float32 in a graph: 6e-8 of it.
    assert_same(models, plain_models, atol=1e-8)
    for step, expected_step in zip(logs, expected, strict=True):
        assert list(step) == list(expected_step)
        for key, value in step.items():
            torch.testing.assert_close(value, expected_step[key], rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", ["kd", "adamw", pytest.param("interpolate", marks=pytest.mark.slow)])
def test_a_graph_of_mixed_batches_reads_which_rows_of_each_have_labels(graphed, name):
    """Other rows of every batch are transfer rows, and their number changes too."""
    batches = [with_transfer_rows(given, seed) for seed, given in enumerate(some_batches())]
    method, optimizers, models = graphed(name)
    logs = take_steps(method, optimizers, batches)
    plain, plain_optimizers, plain_models = build(name)
    expected = take_steps(plain, plain_optimizers, batches)
    assert method.num_graphs == 2  # a shape is one, whatever its rows
    assert_same(models, plain_models, atol=1e-6)  # learning rates on the device are float32
    for step, expected_step in zip(logs, expected, strict=True):
        torch.testing.assert_close(step["task_loss"], expected_step["task_loss"], rtol=0, atol=1e-6)


@pytest.fixture
def compiler():
    """All of the compiler but the writing of kernels; it begins anew in each test."""
    torch._dynamo.reset()
    yield "eager"
    torch._dynamo.reset()


class RecordsCompiled(FakeRecorder):
    """Replays as CUDA's own graph would: nothing can be compiled."""

    def record(self, step):
        replay = super().record(step)

        def without_a_compiler():
            with without_compiling():
                return replay()

        return without_a_compiler


@pytest.mark.parametrize("name", ["adamw", *(pytest.param(n, marks=pytest.mark.slow) for n in METHODS if n != "adamw")])
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_models_are_compiled_before_their_step_is_recorded(name, compiler):
    method, optimizers, models = build(name, compiler=compiler)
    graphs = GraphedSteps(method, optimizers, batch_size=8, new_recorder=RecordsCompiled)
    take_steps(graphs, optimizers, some_batches())
    plain, plain_optimizers, plain_models = build(name)
    take_steps(plain, plain_optimizers, some_batches())
    assert graphs.num_graphs == 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert_same(models, plain_models, atol=1e-6)  # learning rates on the device are float32


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_model_that_is_not_compiled_yet_cannot_be_recorded(recorders, compiler):
    method, optimizers, _ = build("finetune", compiler=compiler)
    recorder = FakeRecorder()
    recorder.record = lambda step: step()
    graphs = GraphedSteps(method, optimizers, batch_size=8, new_recorder=lambda: recorder)
    for _ in range(WARM_UP_STEPS):
        graphs.step(batch())
    torch._dynamo.reset()
    with pytest.raises(
        RunError, match=r"compute.cuda_graphs = true: this model's step cannot be recorded \(.*recompil"
    ):
        graphs.step(batch())


def test_a_shape_is_recorded_after_its_warm_up_and_replayed_ever_after(graphed, recorders):
    assert WARM_UP_STEPS == 2
    method, _, _ = graphed("kd")
    taken = []
    for given in some_batches():
        before = len(recorders[-1].taken)
        method.step(given)
        taken.append(recorders[-1].taken[before:])
    run, record, replay = ["run"], ["record", "replay"], ["replay"]
    # 7 tokens, 7, 9, 7, five rows of 7, 9, 7, 9, 7
    assert taken == [run, run, run, record, run, run, replay, record, replay]
    assert method.num_graphs == 2


def held_out():
    """Reptile with equation 1 on a batch of its own; the method, its optimizers and the models."""
    teacher, student = Teacher(bert(4, seed=1, dtype=torch.float64)), Student(bert(2, seed=2, dtype=torch.float64))
    optimizers = [adamw(student, lr=1e-2, eps=1e-4), adamw(teacher, lr=1e-2, eps=1e-4)]
    distiller = ReptileDistiller(
        teacher,
        student,
        loss=DistillationLoss(),
        student_optimizer=optimizers[0],
        teacher_optimizer=optimizers[1],
        inner_lr=1e-2,
        inner_eps=1e-4,
        share_forward=False,
        ablation=Ablation(inner_batch="held_out"),
    )
    return distiller, optimizers, {"teacher": teacher, "student": student}


def test_extra_batches_are_copied_into_the_graph_and_their_shape_decides_which_graph():
    recorder = FakeRecorder()
    method, optimizers, models = held_out()
    graphed = GraphedSteps(method, optimizers, batch_size=8, new_recorder=lambda: recorder)
    plain, _, plain_models = held_out()
    for seed, inner_length in enumerate([7, 7, 7, 9, 7, 9, 9]):
        inner_batches = [batch(8, inner_length, seed=100 + seed)]
        graphed.step(batch(seed=seed), inner_batches)
        plain.step(batch(seed=seed), inner_batches)
    assert recorder.taken == ["run", "run", "record", "replay", "run", "replay", "run", "record", "replay"]
    assert_same(models, plain_models, atol=1e-8)


def test_a_smaller_batch_is_never_recorded(graphed, recorders):
    method, _, _ = graphed("finetune")
    for seed in range(5):
        method.step(batch(5, seed=seed))
    assert recorders[-1].taken == ["run"] * 5


def test_logs_are_not_overwritten_by_later_steps(graphed):
    method, _, _ = graphed("kd")
    logs = [method.step(batch(seed=seed)) for seed in range(6)]
    losses = [float(step["loss"]) for step in logs]
    assert len(set(losses)) == 6


def test_learning_rates_are_tensors_inside_a_step_and_numbers_outside(graphed):
    method, optimizers, _ = graphed("adamw")
    seen = []
    inner_step = method.method.step

    def step(given):
        seen.append([(group["lr"].item(), group["capturable"]) for o in optimizers for group in o.param_groups])
        return inner_step(given)

    method.method.step = step
    optimizers[0].param_groups[0]["lr"] = 0.25
    method.step(batch())
    assert [(round(lr, 6), capturable) for lr, capturable in seen[0]] == [(0.25, True)] + [(0.01, True)] * 3
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    assert all(type(group["lr"]) is float for group in groups)
    assert [(group["lr"], group["capturable"]) for group in groups] == [(0.25, False)] + [(0.01, False)] * 3


def test_a_step_that_fails_leaves_the_learning_rates_numbers(graphed):
    method, optimizers, _ = graphed("kd")
    with pytest.raises(KeyError):
        method.step({name: tensor for name, tensor in batch().items() if name != "input_ids"})
    assert [type(group["lr"]) for group in optimizers[0].param_groups] == [float, float]


def test_no_gradient_is_held_between_steps_that_are_not_replayed(graphed):
    method, _, models = graphed("adamw")
    method.step(batch())
    assert all(parameter.grad is None for model in models.values() for parameter in model.parameters())


def test_an_optimizer_that_loads_its_state_has_its_graphs_recorded_anew(graphed, recorders):
    method, optimizers, _ = graphed("kd")
    for seed in range(4):
        method.step(batch(seed=seed))
    optimizers[0].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    assert method.num_graphs == 0
    assert len(recorders) == 2
    method.step(batch())
    assert recorders[-1].taken == ["run"]


def test_what_is_saved_of_an_optimizer_is_what_is_saved_without_graphs(graphed):
    method, optimizers, _ = graphed("adamw")
    plain, plain_optimizers, _ = build("adamw")
    for seed in range(4):
        method.step(batch(seed=seed))
        plain.step(batch(seed=seed))
    for optimizer, expected in zip(optimizers, plain_optimizers, strict=True):
        assert optimizer_values(optimizer) == optimizer_values(expected)
        assert optimizer_tensors(optimizer).keys() == optimizer_tensors(expected).keys()
        load_optimizer(expected, optimizer_tensors(optimizer), optimizer_values(optimizer), "optimizer")


def test_shapes_beyond_the_most_graphs_are_taken_as_usual(recorders):
    def new_recorder():
        recorders.append(FakeRecorder())
        return recorders[-1]

    method, optimizers, models = build("kd")
    graphed = GraphedSteps(method, optimizers, batch_size=8, max_graphs=1, new_recorder=new_recorder)
    take_steps(graphed, optimizers, some_batches())
    plain, plain_optimizers, plain_models = build("kd")
    take_steps(plain, plain_optimizers, some_batches())
    assert graphed.num_graphs == recorders[-1].taken.count("record") == 1
    assert recorders[-1].taken.count("replay") < 4  # of one shape alone
    assert_same(models, plain_models, atol=1e-6)


def test_an_optimizer_that_is_not_fused_is_refused():
    method, _, models = build("finetune")
    optimizer = torch.optim.AdamW(models["student"].parameters(), fused=False)
    with pytest.raises(ValueError, match="a AdamW in a graph must be a fused one: pass fused=True"):
        GraphedSteps(method, [optimizer], batch_size=8, new_recorder=FakeRecorder)


@pytest.mark.parametrize("fails_on_the_way_out", [False, True])
def test_a_step_that_cannot_be_recorded_says_so_in_one_sentence(graphed, recorders, fails_on_the_way_out):
    method, _, _ = graphed("finetune")

    def fail(step):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            if fails_on_the_way_out:
                raise RuntimeError("the recording was not ended")

    recorders[-1].record = fail
    for seed in range(2):
        method.step(batch(seed=seed))
    with pytest.raises(RunError) as caught:
        method.step(batch())
    assert str(caught.value) == (
        "compute.cuda_graphs = true: this model's step cannot be recorded (RuntimeError: operation not permitted when "
        "stream is capturing); use false"
    )


@pytest.mark.parametrize(
    "error",
    [
        ModelError("no hidden states"),
        torch.OutOfMemoryError("out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    ],
)
def test_other_faults_in_a_recording_stay_what_they_are(graphed, recorders, error):
    method, _, _ = graphed("finetune")

    def fail(step):
        raise error

    recorders[-1].record = fail
    for seed in range(2):
        method.step(batch(seed=seed))
    with pytest.raises(type(error), match=str(error)):
        method.step(batch())


def rows(lengths):
    lengths = np.array(lengths)
    ids = np.concatenate([np.arange(2, 2 + length) for length in lengths])
    return Features.end_to_end({"input_ids": ids}, lengths, labels=np.arange(len(lengths)) % 3)


@pytest.mark.parametrize(("lengths", "width"), [([3, 7], 8), ([8, 2], 8), ([9], 16), ([16, 1], 16), ([17], 19)])
def test_batches_are_padded_to_a_multiple_but_never_beyond_the_longest_row(lengths, width):
    batches = Batches(rows([*lengths, 19]), toy_tokenizer(), batch_size=4, length_step=8)
    padded = batches.batch(np.arange(len(lengths)))
    assert padded["input_ids"].shape == (len(lengths), width)
    assert padded["attention_mask"].sum(dim=1).tolist() == lengths


@pytest.mark.parametrize("name", METHODS)
def test_padding_to_a_multiple_changes_nothing_but_rounding(name):
    """In float64, within 1e-6 in every weight after five steps."""
    features = rows([3, 7, 5, 2, 1, 6, 5, 16])
    models = []
    for length_step in (1, LENGTH_STEP):
        method, _, of_method = build(name)
        batches = Batches(features, toy_tokenizer(), batch_size=7, length_step=length_step)
        given = batches.batch(np.arange(7))
        assert given["input_ids"].shape[1] == (7 if length_step == 1 else 8)
        for _ in range(5):
            method.step(given)
        models.append(of_method)
    assert_same(models[1], models[0], atol=1e-6)


@pytest.fixture
def on_a_pretended_gpu(monkeypatch, recorders):
    """Lets a run on the CPU ask for graphs, and makes them with the stand-in."""

    class Pretended(FakeRecorder):
        def __init__(self):
            super().__init__()
            recorders.append(self)

    monkeypatch.setattr(cuda_graphs, "CudaRecorder", Pretended)
    monkeypatch.setattr(experiment, "check_graphs", lambda device, num_processes: None)


def run(path, *overrides):
    return Experiment.from_yaml(TINY, f"runs_dir={path}", "train.epochs=3", *overrides)


def losses_of(folder):
    """The mean loss of each epoch."""
    records = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    return [record["train"]["loss"] for record in records if record["event"] == "epoch"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=finetune"],
        ["method=kd"],
        ["method=reptile"],
        ["reptile.update=interpolate"],
        ["reptile.order=student_first"],
        ["method=prokt"],
        ["method=cotrain", "cotrain.order=teacher_first"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_a_run_with_graphs_ends_as_one_without(tmp_path, on_a_pretended_gpu, recorders, overrides):
    plain, graphed = (
        run(tmp_path / "plain", *overrides),
        run(tmp_path / "graphs", "compute.cuda_graphs=true", *overrides),
    )
    expected, results = plain.fit(), graphed.fit()
    assert sum(recorder.taken.count("replay") for recorder in recorders) > 3
    assert results["scores"] == expected["scores"]
    assert losses_of(graphed.folder) == pytest.approx(losses_of(plain.folder), abs=1e-5)


def test_evaluation_is_not_padded_to_a_multiple(tmp_path, on_a_pretended_gpu):
    config = run(tmp_path, "compute.cuda_graphs=true").config
    task = build_task(config)
    made = [
        setup.build_batches(config, task, "train", toy_tokenizer(), config.train, for_training=True),
        setup.build_training_batches(config, task, toy_tokenizer()),
        setup.build_batches(config, task, "dev", toy_tokenizer(), config.train),
    ]
    assert [batches.length_step for batches in made] == [8, 8, 1]


def test_graphs_are_refused_on_a_device_without_them(tmp_path):
    with pytest.raises(ConfigError, match=r"compute.cuda_graphs = true: device cpu has none; use false"):
        run(tmp_path, "compute.cuda_graphs=true", "device=cpu")


def test_graphs_are_refused_to_several_processes():
    check_graphs("cuda", 1)
    with pytest.raises(ConfigError, match=r"compute.cuda_graphs = true takes one process, but 2 were started; use fal"):
        check_graphs("cuda", 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=metadistil"], "metadistil cannot be computed with compute.cuda_graphs: set it to false"),
        (["method=lgtm"], "lgtm cannot be computed with compute.cuda_graphs: set it to false"),
        (["compare_with=[metadistil]"], "metadistil cannot be computed with compute.cuda_graphs: set it to false"),
        (["data.packing=true"], "data.packing cannot be used with compute.cuda_graphs: choose one of the two"),
        (["distributed.shard=true"], "distributed.shard cannot be used with compute.cuda_graphs: choose one"),
        (["train.micro_batch_size=4"], "train.micro_batch_size cannot be used with compute.cuda_graphs"),
        (["teacher.train.micro_batch_size=4"], "teacher.train.micro_batch_size cannot be used with compute.cuda_gr"),
        (["reptile.every=2"], "compute.cuda_graphs takes one fresh inner step on the batch of each step: set it to"),
        (["reptile.inner_steps=2", "reptile.share_forward=false"], "compute.cuda_graphs takes one fresh inner step"),
        (["reptile.inner_batch=held_out", "reptile.share_forward=false"], "compute.cuda_graphs takes one fresh inn"),
        (
            ["reptile.inner_optimizer=persistent_adamw", "reptile.share_forward=false"],
            "compute.cuda_graphs takes one fresh inner step",
        ),
    ],
)
def test_what_cannot_be_recorded_is_refused_in_one_sentence(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        run(tmp_path, "compute.cuda_graphs=true", *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["reptile.share_forward=false"],
        ["loss.hidden=0.1", "loss.hidden_projection=learned", "loss.relations={weight: 0.1, heads: 2}"],
        ["precision=bf16"],
        ["compute.compile=true"],
        ["method=kd", "compute.attention=eager"],
    ],
)
def test_what_can_be_recorded_is_not_refused(tmp_path, on_a_pretended_gpu, overrides):
    run(tmp_path, "compute.cuda_graphs=true", *overrides)


def on_gpu(name, *, batch_size=8, **options):
    method, optimizers, models = build(name, device="cuda", dtype=torch.float32, **options)
    return GraphedSteps(method, optimizers, batch_size=batch_size), optimizers, models


@pytest.mark.cuda
@pytest.mark.parametrize(("autocast_dtype", "tolerance"), [(None, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("name", METHODS)
def test_on_a_gpu_steps_from_graphs_equal_steps_one_by_one(name, autocast_dtype, tolerance):
    method, optimizers, models = on_gpu(name, autocast_dtype=autocast_dtype)
    logs = take_steps(method, optimizers, some_batches("cuda"))
    plain, plain_optimizers, plain_models = build(
        name, device="cuda", dtype=torch.float32, autocast_dtype=autocast_dtype
    )
    expected = take_steps(plain, plain_optimizers, some_batches("cuda"))
    assert method.num_graphs == 2
    assert_same(models, plain_models, atol=tolerance)
    for step, expected_step in zip(logs, expected, strict=True):
        for key, value in step.items():
            torch.testing.assert_close(value, expected_step[key], rtol=tolerance, atol=tolerance, msg=key)


@pytest.mark.cuda
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_on_a_gpu_compiled_steps_from_graphs_equal_steps_one_by_one(name):
    method, optimizers, models = on_gpu(name, compiler="inductor")
    take_steps(method, optimizers, some_batches("cuda"))
    plain, plain_optimizers, plain_models = build(name, device="cuda", dtype=torch.float32)
    take_steps(plain, plain_optimizers, some_batches("cuda"))
    assert method.num_graphs == 2
    assert_same(models, plain_models, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("name", METHODS)
def test_on_a_gpu_a_replay_waits_for_nothing(no_waits, name):
    method, _, _ = on_gpu(name)
    for seed in range(4):
        method.step({key: tensor.to("cuda") for key, tensor in batch(seed=seed).items()})
    given = {key: tensor.to("cuda") for key, tensor in batch(seed=4).items()}
    with no_waits():
        logs = method.step(given)
    assert all(value.isfinite() for value in logs.values())


@pytest.mark.cuda
def test_on_a_gpu_each_replay_draws_new_dropout_masks():
    method, optimizers, _ = on_gpu("kd", dropout=0.5)
    for group in optimizers[0].param_groups:
        group["lr"] = group["weight_decay"] = 0.0  # the weights stay
    given = {key: tensor.to("cuda") for key, tensor in batch().items()}
    losses = [float(method.step(given)["loss"]) for _ in range(8)]
    assert len(set(losses)) == 8
    torch.manual_seed(0)
    again = [float(method.step(given)["loss"]) for _ in range(2)]
    torch.manual_seed(0)
    assert [float(method.step(given)["loss"]) for _ in range(2)] == again


@pytest.mark.cuda
def test_on_a_gpu_a_large_batch_of_tokens_can_be_recorded():
    """Above 3072 tokens the embeddings' gradient takes another way, which once waited for the device."""
    method, _, _ = on_gpu("adamw", batch_size=512)
    for seed in range(4):
        method.step({key: tensor.to("cuda") for key, tensor in batch(512, 9, seed=seed).items()})
    assert method.num_graphs == 1


@pytest.mark.cuda
def test_on_a_gpu_padding_within_a_recorded_shape_is_the_batchs_own():
    """Recorded on rows without padding, replayed on rows with it: the mask must be part of the graph."""
    full = {**batch(), "attention_mask": torch.ones(8, 7, dtype=torch.long)}
    batches = [{key: tensor.to("cuda") for key, tensor in given.items()} for given in (full, full, full, batch())]
    method, _, models = on_gpu("kd")
    plain, _, plain_models = build("kd", device="cuda", dtype=torch.float32)
    for given in batches:
        method.step(given)
        plain.step(given)
    assert_same(models, plain_models, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("overrides", [["method=kd"], ["method=reptile"], ["reptile.update=interpolate"]])
def test_on_a_gpu_a_run_with_graphs_ends_as_one_without(tmp_path, overrides):
    plain, graphed = [
        run(tmp_path / flag, "device=cuda", f"compute.cuda_graphs={flag}", *overrides) for flag in ("false", "true")
    ]
    plain.fit()
    graphed.fit()
    assert losses_of(graphed.folder) == pytest.approx(losses_of(plain.folder), abs=1e-3)


class StopError(Exception):
    """What ends a run in the middle."""


def resumed(path, *options):
    """The folder of a run that is stopped in its ninth step (a replay, where there are graphs) and taken up again."""
    stopped = run(path, "checkpoint.every_steps=1", *options)
    stopped.fit_teacher()
    step, count = GraphedSteps.step, itertools.count(1)

    def step_or_stop(method, given):
        if next(count) == 9:
            raise StopError
        return step(method, given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphedSteps, "step", step_or_stop)
        with pytest.raises(StopError):
            stopped.fit()
    again = run(path, "checkpoint.every_steps=1", *options)
    again.fit()
    return again.folder


def test_a_run_with_graphs_that_is_taken_up_again_ends_as_one_that_never_stopped(tmp_path, on_a_pretended_gpu):
    whole = run(tmp_path / "whole", "compute.cuda_graphs=true")
    whole.fit()
    folder = resumed(tmp_path / "part", "compute.cuda_graphs=true")
    assert losses_of(folder) == pytest.approx(losses_of(whole.folder), abs=1e-6)


@pytest.mark.cuda
def test_on_a_gpu_a_run_with_graphs_that_is_taken_up_again_ends_as_one_that_never_stopped(tmp_path):
    whole = run(tmp_path / "whole", "device=cuda", "compute.cuda_graphs=true")
    whole.fit()
    folder = resumed(tmp_path / "part", "device=cuda", "compute.cuda_graphs=true")
    assert losses_of(folder) == pytest.approx(losses_of(whole.folder), abs=1e-3)
