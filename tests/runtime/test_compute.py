"""Number format, attention and compiler: what each changes, and what is refused."""

import copy
import json
import logging
import shutil

import pytest
import torch

from reptile_distil.errors import ConfigError
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.adamw import adamw
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.models.classifier import Student, Teacher
from reptile_distil.runtime import compute
from reptile_distil.runtime.compute import choose_precision, compile_forward, set_attention, use_precision
from tests.helpers.models import batch, bert, classifier
from tests.helpers.paths import TINY


@pytest.mark.parametrize("wanted", ["auto", "fp32"])
def test_a_cpu_computes_in_float32_unless_told_otherwise(wanted):
    assert choose_precision(wanted, "cpu") == "fp32"


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_on_a_gpu_only_where_it_is_native(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert choose_precision("auto", "cuda") == expected


def test_tf32_is_refused_on_a_cpu():
    with pytest.raises(ConfigError, match=r"precision = 'tf32': device cpu has no TF32.*use fp32"):
        choose_precision("tf32", "cpu")


@pytest.mark.parametrize(("capability", "allowed"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_tf32_needs_a_gpu_that_has_it(monkeypatch, capability, allowed):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    if allowed:
        assert choose_precision("tf32", "cuda") == "tf32"
    else:
        with pytest.raises(ConfigError, match=r"no TF32"):
            choose_precision("tf32", "cuda")


def test_tf32_is_on_only_while_it_is_asked_for():
    use_precision("tf32")
    switched_on = torch.get_float32_matmul_precision()
    use_precision("fp32")
    assert (switched_on, torch.get_float32_matmul_precision()) == ("high", "highest")


@pytest.mark.parametrize(("slowdown", "warned"), [(60.0, True), (1.0, False)])
def test_bf16_on_a_cpu_that_is_slow_at_it_is_warned_of(monkeypatch, caplog, slowdown, warned):
    monkeypatch.setattr(compute, "bf16_slowdown", lambda: slowdown)
    with caplog.at_level(logging.WARNING):
        assert choose_precision("bf16", "cpu") == "bf16"
    assert ("bf16 takes 60 times as long" in caplog.text) == warned


def test_attention_can_be_written_out_and_gives_the_same_logits():
    model = bert(2).eval()
    expected = model(**inputs()).logits
    set_attention(model, "eager")
    assert model.config._attn_implementation == "eager"
    torch.testing.assert_close(model(**inputs()).logits, expected)


def test_auto_leaves_the_architectures_own_attention():
    model = bert(1)
    set_attention(model, "auto")
    assert model.config._attn_implementation == "sdpa"


def test_attention_that_an_architecture_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"compute.attention = 'sdpa': MPNet.* does not have it; use auto"):
        set_attention(classifier("mpnet"), "sdpa")


def test_a_missing_compiler_is_refused_before_anything_is_compiled(monkeypatch):
    def fail():
        from torch._inductor.exc import InvalidCxxCompiler

        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", fail)
    with pytest.raises(ConfigError, match=r"compute.compile = true: no C\+\+ compiler found"):
        compile_forward(bert(1), "cpu")


def test_compiling_is_refused_where_it_is_not_supported():
    with pytest.raises(ConfigError, match=r"compute.compile = true: not supported on device mps"):
        compile_forward(bert(1), "mps")


@pytest.mark.slow  # the compiler takes a minute
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_compiles_once_for_all_lengths_and_batch_sizes():
    model = bert(1).eval()
    expected = copy.deepcopy(model)
    compile_forward(model, "cpu")
    torch._dynamo.utils.counters.clear()
    compiled = []
    with torch.no_grad():
        for num_rows, length in [(8, 7), (8, 9), (5, 12), (7, 16), (2, 5), (6, 11)]:
            given = inputs(num_rows, length)
            torch.testing.assert_close(model(**given).logits, expected(**given).logits)
            compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(set(compiled)) == 1
    assert set(model.state_dict()) == set(expected.state_dict())


def test_bf16_stays_near_float32_over_50_steps():
    """Mean loss of 50 steps within 1 percent, the weights within 2 percent of how far they have moved."""
    losses, weights = [], []
    for dtype in (None, torch.bfloat16):
        teacher, student = bert(4, seed=1), bert(2, seed=2)
        start = torch.nn.utils.parameters_to_vector(student.parameters()).detach()
        fast = ReptileDistiller(
            Teacher(teacher, autocast_dtype=dtype),
            Student(student, autocast_dtype=dtype),
            loss=DistillationLoss(),
            student_optimizer=adamw(student, lr=1e-3, eps=1e-4),
            teacher_optimizer=torch.optim.SGD(teacher.parameters(), lr=1e-3),
            update="interpolate",
            inner_optimizer="sgd",
        )
        losses.append(torch.stack([fast.step(batch(seed=seed % 5))["loss"] for seed in range(50)]).mean())
        weights.append(torch.nn.utils.parameters_to_vector(student.parameters()).detach())
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
    assert (losses[1] - losses[0]).abs() < 0.01 * losses[0]
    assert 0 < (weights[1] - weights[0]).norm() < 0.02 * (weights[0] - start).norm()


def inputs(num_rows=8, length=7):
    given = batch(num_rows, length)
    return {name: given[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_on_a_gpu_a_run_ends_near_one_on_the_cpu(tmp_path, precision, compiled):
    """The mean loss of each epoch, within a hundredth."""
    losses = []
    for options in (["device=cpu"], ["device=cuda", f"precision={precision}", f"compute.compile={compiled}"]):
        experiment = Experiment.from_yaml(TINY, f"runs_dir={tmp_path}/{options[0]}", "train.epochs=2", *options)
        experiment.fit()
        records = map(json.loads, (experiment.folder.path / "metrics.jsonl").read_text().splitlines())
        losses.append([record["train"]["loss"] for record in records if record["event"] == "epoch"])
    use_precision("fp32")
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_lends_no_memory_to_its_first_backward_pass():
    """Whichever method it was compiled for: its graph may serve a student's second backward pass."""
    config = torch._functorch.config
    with config.patch(donated_buffer=True):
        compile_forward(bert(1), "cpu")
        assert not config.donated_buffer
