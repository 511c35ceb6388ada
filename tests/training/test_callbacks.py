"""Callbacks: who is told what and when, what they may do, and what becomes of what they raise."""

import copy
import dataclasses
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from reptile_distil import Callback, Experiment, RunInfo, StopTraining, cli
from reptile_distil.errors import CallbackError
from reptile_distil.runs.resume import Recovery
from reptile_distil.runtime.interrupts import Interrupted, Interrupts
from reptile_distil.training.callbacks import HOOKS, RunCallbacks, check_callbacks
from reptile_distil.training.trackers import TrackerCallback
from tests.helpers.paths import TINY
from tests.training.test_loop import FakeCheckpoints, FakeMethod, run

INFO = RunInfo(task="toy", method="kd", seed=3, folder=Path("runs"), num_steps=6, config={})


class Recorder:
    """Notes each call, by hook."""

    def __init__(self):
        self.calls = []

    def on_step_end(self, run, step, logs, rates):
        self.calls.append(("on_step_end", run, step, logs, rates))

    def on_evaluate(self, run, record):
        self.calls.append(("on_evaluate", run, record))

    def on_epoch_end(self, run, record):
        self.calls.append(("on_epoch_end", run, record))

    def on_train_end(self, run, results):
        self.calls.append(("on_train_end", run, results))

    def names(self, method=None):
        return [call[0] for call in self.calls if method is None or call[1].method == method]

    def steps(self):
        return [call[2] for call in self.calls if call[0] == "on_step_end"]


class Raises:
    """Raises in one hook, at the n-th call."""

    def __init__(self, hook, error, call=1):
        self.left = call
        self.error = error
        setattr(self, hook, self.hook)

    def hook(self, run, *_):
        self.left -= 1
        if not self.left:
            raise self.error


def train_fake(*callbacks, scores=(0.1, 0.2), **options):
    return run(list(scores), callbacks=RunCallbacks(callbacks, INFO), **options)


@pytest.fixture
def tiny(tmp_path):
    def tiny(*overrides, callbacks=()):
        return Experiment.from_yaml(TINY, f"runs_dir={tmp_path}/runs", *overrides, callbacks=callbacks)

    return tiny


def test_each_step_is_told_with_its_logs_as_tensors_and_the_rates_it_used():
    recorder = Recorder()
    train_fake(recorder, losses=[3.0, 2.0, 1.0])
    steps = [call for call in recorder.calls if call[0] == "on_step_end"]
    assert [step for _, _, step, _, _ in steps] == [1, 2, 3, 4, 5, 6]
    _, info, _, logs, rates = steps[1]
    assert info == INFO
    assert {name: (type(value), float(value)) for name, value in logs.items()} == {
        "loss": (torch.Tensor, 2.0),
        "grad_norm": (torch.Tensor, 2.0),
    }
    assert rates == {"lr": 0.99}


def test_an_epochs_evaluation_is_told_before_the_epoch_and_after_its_steps():
    recorder = Recorder()
    train_fake(recorder)
    assert recorder.names() == [*["on_step_end"] * 3, "on_evaluate", "on_epoch_end"] * 2


def test_what_is_told_of_an_epoch_is_its_line_in_the_log_and_of_an_evaluation_the_scores():
    recorder = Recorder()
    _, _, logged, *_ = train_fake(recorder)
    told = {name: call[0] for name, _, *call in recorder.calls if name != "on_step_end"}
    assert told["on_epoch_end"] == logged[-1]
    assert told["on_evaluate"] == {"epoch": 2, "step": 6, "scores": {"dev": {"accuracy": 0.2}}, "score": 0.2}


def test_several_callbacks_are_called_in_their_order_each_hook_by_all_before_the_next():
    order = []

    class Named:
        def __init__(self, name):
            self.name = name

        def on_evaluate(self, run, record):
            order.append((self.name, "evaluate"))

        def on_epoch_end(self, run, record):
            order.append((self.name, "epoch"))

    train_fake(Named("a"), Named("b"), scores=[0.1])
    assert order == [("a", "evaluate"), ("b", "evaluate"), ("a", "epoch"), ("b", "epoch")]


def test_one_hook_is_enough():
    class Epochs:
        count = 0

        def on_epoch_end(self, run, record):
            self.count += 1

    callback = Epochs()
    train_fake(callback)
    assert callback.count == 2


def test_the_epochs_checkpoint_is_written_after_it_was_told():
    checkpoints, saved = FakeCheckpoints(), []

    class Looks:
        def on_epoch_end(self, run, record):
            saved.append(len(checkpoints.saved))

    train_fake(Looks(), checkpoints=checkpoints)
    assert saved == [0, 1]


def test_time_in_a_callback_is_not_training_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("reptile_distil.runtime.measuring.time.perf_counter", lambda: now[0])

    class Slow:
        def on_step_end(self, run, step, logs, rates):
            now[0] += 100

        def on_epoch_end(self, run, record):
            now[0] += 100

    assert train_fake(Slow())[0].train_seconds == 0


class Device:
    """A device that computes behind the program: each step gives it 0.05 s of work, and a clock goes on as it waits."""

    def __init__(self, monkeypatch):
        self.now = self.busy = 0.0
        self.num_waits = 0
        monkeypatch.setattr("reptile_distil.runtime.measuring.time.perf_counter", lambda: self.now)
        monkeypatch.setattr("reptile_distil.training.loop.wait_for", self.wait)
        monkeypatch.setattr("tests.training.test_loop.FakeMethod", self.method)

    def wait(self, device):
        assert device == "a device"
        self.num_waits += 1
        self.finish()

    def finish(self):
        self.now, self.busy = self.now + self.busy, 0.0

    def method(self, *options):
        device = self

        class Scalar(torch.Tensor):
            def __float__(self):
                device.finish()
                return super().__float__()

        class Method(FakeMethod):
            def step(self, batch):
                device.busy += 0.05
                return {name: value.as_subclass(Scalar) for name, value in super().step(batch).items()}

        return Method(*options)


class Reads:
    """Reads each step's loss, and spends a second on something else after every other one."""

    def __init__(self, device):
        self.device = device

    def on_step_end(self, run, step, logs, rates):
        if step % 2:
            self.device.now += 1
        float(logs["loss"])


class EpochsOnly:
    def on_epoch_end(self, run, record):
        pass


def seconds_of(device, callbacks, **options):
    options = {"log_every": 100, "device": "a device", "callbacks": callbacks, **options}
    return run([0.1, 0.2], **options)[0].train_seconds


@pytest.mark.parametrize("callback", [Reads, lambda device: EpochsOnly()], ids=["reads", "epochs only"])
@pytest.mark.parametrize("due", [(), (1, 2, 5)])
def test_what_a_device_has_still_to_do_before_a_callback_or_a_checkpoint_is_training_time(monkeypatch, callback, due):
    device = Device(monkeypatch)

    class Checkpoints(FakeCheckpoints):
        def save(self, progress):
            super().save(progress)
            device.finish()
            device.now += 1

    checkpoints = Checkpoints(*due)
    seconds = seconds_of(device, RunCallbacks([callback(device)], INFO), checkpoints=checkpoints)
    assert seconds == pytest.approx(6 * 0.05)
    assert [saved.train_seconds for saved in checkpoints.saved if saved.step in due] == pytest.approx(
        [0.05 * step for step in due]
    )


@pytest.mark.parametrize("callbacks", [None, RunCallbacks([EpochsOnly()], INFO)], ids=["none", "epochs only"])
def test_a_device_that_no_callback_may_ask_is_not_waited_for(monkeypatch, callbacks):
    device = Device(monkeypatch)
    assert seconds_of(device, callbacks) == pytest.approx(6 * 0.05)
    assert device.num_waits == 0


def test_a_device_is_not_waited_for_on_account_of_trackers_who_read_what_the_run_has_read(monkeypatch):
    device, logged = Device(monkeypatch), []

    class Tracker:
        def log(self, values, step):
            device.now += 1
            logged.append(step)

    config = {"train": {"log_every": 2}}
    info = dataclasses.replace(INFO, config=config)
    callbacks = RunCallbacks([], info, trackers=[TrackerCallback({"tracker": Tracker()}, info)])
    assert seconds_of(device, callbacks, log_every=2) == pytest.approx(6 * 0.05)
    assert (logged, device.num_waits) == ([2, 3, 4, 6, 6], 0)


def test_several_processes_wait_for_the_device_before_they_settle_with_their_trackers():
    several = SimpleNamespace(count=2, is_main=True, on_main=lambda act: act())
    tracker = SimpleNamespace(on_step_end=lambda run, step, logs, rates: None)
    callbacks = RunCallbacks([], INFO, trackers=[tracker], processes=several)
    assert [step for step in range(1, 31) if callbacks.may_wait(step)] == [10, 20, 30]
    assert not any(RunCallbacks([], INFO, processes=several).may_wait(step) for step in range(1, 31))
    assert not any(RunCallbacks([], INFO, trackers=[tracker]).may_wait(step) for step in range(1, 31))


def test_what_a_device_has_still_to_do_of_an_interrupted_run_is_training_time(monkeypatch):
    device, checkpoints, interrupts = Device(monkeypatch), FakeCheckpoints(), Interrupts()

    def agree(step=0):
        if step == 2:
            raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(interrupts, "agree", agree)
    with pytest.raises(Interrupted):
        seconds_of(device, None, checkpoints=checkpoints, interrupts=interrupts)
    assert [(saved.step, saved.train_seconds) for saved in checkpoints.saved] == [(2, pytest.approx(0.1))]


def test_a_fault_ends_the_run_and_names_class_hook_moment_and_the_original():
    fault = ValueError("no such unit")
    with pytest.raises(
        CallbackError,
        match=r"^callback Raises\.on_epoch_end failed after epoch 2 of kd on toy: ValueError: no such unit$",
    ) as caught:
        train_fake(Raises("on_epoch_end", fault, call=2))
    assert caught.value.__cause__ is fault
    with pytest.raises(
        CallbackError, match=r"^callback Raises\.on_step_end failed after step 4 of kd on toy: KeyError$"
    ):
        train_fake(Raises("on_step_end", KeyError(), call=4))


def test_after_a_fault_no_other_callback_is_called():
    recorder = Recorder()
    with pytest.raises(CallbackError):
        train_fake(Raises("on_step_end", ValueError(), call=2), recorder)
    assert recorder.steps() == [1]


@pytest.mark.parametrize(
    ("hook", "step", "epochs_done"), [("on_step_end", 2, 0), ("on_evaluate", 3, 1), ("on_epoch_end", 3, 1)]
)
def test_a_checkpoint_is_written_before_a_fault_ends_the_run(hook, step, epochs_done):
    checkpoints = FakeCheckpoints()
    with pytest.raises(CallbackError):
        train_fake(Raises(hook, ValueError(), call=2 if hook == "on_step_end" else 1), checkpoints=checkpoints)
    (saved,) = checkpoints.saved
    assert (saved.step, saved.epochs_done) == (step, epochs_done)


@pytest.mark.parametrize("hook", ["on_step_end", "on_evaluate", "on_epoch_end"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted(2), SystemExit(3)])
def test_what_is_no_fault_passes_through(hook, stop):
    with pytest.raises(type(stop)) as caught:
        train_fake(Raises(hook, stop))
    assert caught.value is stop


def test_stopping_at_an_epochs_end_ends_training_with_that_epoch():
    outcome, _, _, method, _ = train_fake(Raises("on_epoch_end", StopTraining("good enough")), scores=[0.3] * 3)
    assert (outcome.num_steps, len(method.rows), outcome.last.epoch) == (3, 3, 1)
    assert outcome.stopped_by == "Raises.on_epoch_end: good enough"


def test_stopping_in_mid_epoch_takes_no_further_step_and_evaluates_once():
    outcome, kept, logged, method, _ = train_fake(Raises("on_step_end", StopTraining(), call=4), scores=[0.3, 0.5, 0.6])
    assert (outcome.num_steps, len(method.rows)) == (4, 4)
    assert kept == [1, 2]
    assert [record["step"] for record in logged if record["event"] == "epoch"] == [3, 4]
    assert outcome.stopped_by == "Raises.on_step_end"


def test_when_one_callback_stops_the_run_the_others_are_still_told():
    recorder = Recorder()
    train_fake(Raises("on_evaluate", StopTraining()), recorder)
    assert recorder.names() == [*["on_step_end"] * 3, "on_evaluate", "on_epoch_end"]


def test_the_checkpoint_remembers_that_the_run_was_stopped():
    checkpoints = FakeCheckpoints(2)
    train_fake(Raises("on_step_end", StopTraining(), call=2), checkpoints=checkpoints)
    in_mid_epoch, at_its_end = checkpoints.saved
    outcome, kept, _, method, _ = run([0.4], num_epochs=5, progress=copy.deepcopy(in_mid_epoch))
    assert (method.rows, kept, outcome.stopped_by) == ([], [1], "Raises.on_step_end")
    recorder = Recorder()
    train_fake(recorder, progress=copy.deepcopy(in_mid_epoch))
    assert recorder.names() == ["on_evaluate", "on_epoch_end"]
    outcome, _, _, method, _ = run([], num_epochs=5, progress=copy.deepcopy(at_its_end))
    assert (method.rows, outcome.num_steps, outcome.stopped_by) == ([], 2, "Raises.on_step_end")


def test_a_callback_gets_copies_it_may_change():
    class Vandal:
        total = None

        def on_step_end(self, run, step, logs, rates):
            if self.total is None:
                self.total = logs["loss"]
            else:
                self.total += logs["loss"]
            logs["gap"] = logs["loss"].zero_()
            rates.clear()

        def on_evaluate(self, run, record):
            record["scores"]["dev"].clear()

        def on_epoch_end(self, run, record):
            record["scores"].clear()
            record.clear()

    recorder = Recorder()
    outcome, _, logged, *_ = train_fake(Vandal(), recorder, losses=[1.0, 2.0, 6.0], scores=[0.5])
    assert logged[-1]["train"]["loss"] == 3.0
    assert outcome.best.scores == {"dev": {"accuracy": 0.5}}
    assert [float(call[3]["loss"]) for call in recorder.calls[:3]] == [1.0, 2.0, 6.0]
    assert recorder.calls[-1][2]["score"] == 0.5


def test_a_callback_that_draws_random_numbers_leaves_the_runs_own_alone():
    class Draws:
        def on_step_end(self, run, step, logs, rates):
            torch.manual_seed(0)
            torch.rand(5)

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train_fake(Draws())
    assert torch.equal(torch.rand(3), expected)


class _Empty:
    pass


class _Idle(Callback):
    pass


class _Misspelled:
    def on_step_ends(self, run, step, logs, rates):
        pass


class _Unknown(Callback):
    def on_epoch_end(self, run, record):
        pass

    def on_fit_begin(self):
        pass


class _Short:
    def on_epoch_end(self, record):
        pass


class _Value:
    on_train_end = 3


class _Awaited:
    async def on_train_end(self, run, results):
        pass


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([_Empty()], r"callback _Empty: has none of on_step_end, on_evaluate, on_epoch_end, on_train_end"),
        ([_Idle()], r"callback _Idle: has none of on_step_end"),
        ([_Misspelled()], r"callback _Misspelled\.on_step_ends: is never called; did you mean 'on_step_end'\?"),
        ([_Unknown()], r"callback _Unknown\.on_fit_begin: is never called; there are on_step_end, on_evaluate, "),
        ([_Short()], r"callback _Short\.on_epoch_end\(record\): is called with \(run, record\)"),
        ([_Value()], r"callback _Value\.on_train_end: expected a method, got int 3"),
        ([_Awaited()], r"callback _Awaited\.on_train_end: is asynchronous, and nothing would await it"),
        ([Recorder], r"callback Recorder: is a class; give an object: Recorder\(\)"),
        (Recorder(), r"callbacks: expected a list of objects, got Recorder "),
        ([print], r"callback builtin_function_or_method: has none of"),
    ],
)
def test_what_could_never_be_called_is_refused_at_once(callbacks, message):
    with pytest.raises(CallbackError, match=message):
        Experiment.from_yaml(TINY, callbacks=callbacks)


@pytest.mark.parametrize("name", ["on_step", "on_step_begin", "on_stepend", "step_end"])
def test_on_step_is_not_taken_for_a_hook(name):
    callback = type("Mine", (), {name: lambda self, *_: None})()
    with pytest.raises(CallbackError, match="Mine"):
        check_callbacks([callback])
    if name == "on_step":
        with pytest.raises(CallbackError, match=r"Mine\.on_step: is never called; did you mean 'on_step_end'\?"):
            check_callbacks([callback])


def test_hooks_may_be_static_inherited_or_set_on_the_object_and_data_may_begin_with_on():
    class Base:
        @staticmethod
        def on_epoch_end(run, record):
            pass

    class Mine(Base, Callback):
        on_gpu = True

    lone = _Empty()
    lone.on_train_end = lambda run, results: None
    callbacks = (Mine(), lone)
    assert check_callbacks(list(callbacks)) == callbacks


def test_the_table_of_hooks_is_what_the_documented_class_has():
    methods = {name: method for name, method in vars(Callback).items() if not name.startswith("__")}
    assert {name: method.__code__.co_varnames[1:] for name, method in methods.items()} == dict(HOOKS)


def test_an_experiment_tells_of_the_teachers_run_and_then_of_its_own(tiny, tmp_path):
    recorder = Recorder()
    experiment = tiny("train.epochs=2", callbacks=[recorder])
    results = experiment.fit()
    one_epoch = [*["on_step_end"] * 5, "on_evaluate", "on_epoch_end"]
    assert recorder.names("teacher") == [*one_epoch, "on_train_end"]
    assert recorder.names("reptile") == [*one_epoch, *one_epoch, "on_train_end"]
    assert [call[1].method for call in recorder.calls] == ["teacher"] * 8 + ["reptile"] * 15
    run = recorder.calls[-1][1]
    assert (run.task, run.seed, run.num_steps) == ("toy-sentence", 42, 10)
    assert run.folder == tmp_path / "runs" / "toy-sentence" / "reptile-seed42"
    assert run.config["reptile"]["layer_map"] == "skip"
    assert recorder.calls[-1][2] == results == json.loads((run.folder / "results.json").read_text())
    assert "stopped_by" not in results
    evaluation = recorder.calls[-3][2]
    assert evaluation.keys() == {
        *("epoch", "step", "scores", "score"),
        *("teacher_scores", "teacher_score", "agreement", "teacher_drift"),
    }
    experiment.fit()
    assert len(recorder.calls) == 23  # nothing of a run that is only read


def test_a_run_that_a_callback_ended_by_a_fault_goes_on_without_telling_anything_twice_and_to_the_same_bits(tiny):
    whole = tiny("method=finetune", "train.epochs=3")
    whole.fit()
    kept = {path.name: path.read_bytes() for path in (whole.folder.model).iterdir()}
    recorder = Recorder()
    options = ("method=finetune", "train.epochs=3", f"output_dir={whole.folder.path.with_name('broken')}")
    for failing in (Raises("on_step_end", ValueError(), call=3), Raises("on_evaluate", ValueError()), None):
        experiment = tiny(*options, callbacks=[recorder, failing] if failing else [recorder])
        if failing:
            with pytest.raises(CallbackError):
                experiment.fit()
        else:
            experiment.fit()
    assert recorder.steps() == list(range(1, 16))
    assert recorder.names().count("on_evaluate") == 3
    assert recorder.names().count("on_epoch_end") == 2  # its turn never came where on_evaluate failed
    assert recorder.names()[-1] == "on_train_end"
    assert {path.name: path.read_bytes() for path in (experiment.folder.model).iterdir()} == kept
    logged = [line for line in experiment.folder.metrics.read_text().splitlines() if '"epoch", ' in line]
    assert len(logged) == 3


def test_a_stopped_run_is_finished_and_says_who_stopped_it(tiny):
    class Enough:
        def on_step_end(self, run, step, logs, rates):
            if run.method == "finetune" and step == 3:
                raise StopTraining("three steps are enough")

    experiment = tiny("method=finetune", "train.epochs=2", callbacks=[Enough()])
    results = experiment.fit()
    assert results["num_steps"] == 3
    assert results["stopped_by"] == "Enough.on_step_end: three steps are enough"
    assert results["scores"]["dev"]["accuracy"] > 0
    assert tiny("method=finetune", "train.epochs=2").fit() == results


def test_a_stopped_run_that_was_killed_before_its_results_goes_on_to_them_alone(tiny, monkeypatch):
    def die(recovery, results):
        raise KeyboardInterrupt

    monkeypatch.setattr(Recovery, "finish", die)
    stops = Raises("on_epoch_end", StopTraining())
    with pytest.raises(KeyboardInterrupt):
        tiny("method=finetune", "train.epochs=3", callbacks=[stops]).fit()
    monkeypatch.undo()
    recorder = Recorder()
    results = tiny("method=finetune", "train.epochs=3", callbacks=[recorder]).fit()
    assert (results["num_steps"], results["stopped_by"]) == (5, "Raises.on_epoch_end")
    assert recorder.names() == ["on_train_end"]


def test_a_fault_at_the_end_leaves_a_finished_run(tiny):
    experiment = tiny("method=finetune", callbacks=[Raises("on_train_end", OSError("disk full"))])
    message = r"Raises\.on_train_end failed at the end of finetune on toy-sentence: OSError: disk full"
    with pytest.raises(CallbackError, match=message):
        experiment.fit()
    assert experiment.fit()["num_steps"] == 5


def test_callbacks_change_no_bit_of_the_run(tiny, tmp_path):
    class Draws(Recorder):
        def on_step_end(self, run, step, logs, rates):
            torch.rand(7)
            super().on_step_end(run, step, logs, rates)

    plain = tiny("method=finetune", f"output_dir={tmp_path}/plain")
    watched = tiny("method=finetune", f"output_dir={tmp_path}/watched", callbacks=[Draws()])
    plain.fit(), watched.fit()
    weights = [(experiment.folder.model / "model.safetensors").read_bytes() for experiment in (plain, watched)]
    assert weights[0] == weights[1]


def test_in_a_script_a_fault_is_one_sentence_and_exit_code_2(tiny, capsys):
    experiment = tiny("method=finetune", callbacks=[Raises("on_evaluate", ValueError("boom"))])
    assert cli.run(lambda _: experiment.fit()) == 2
    sentence = "error: callback Raises.on_evaluate failed after epoch 1 of finetune on toy-sentence: ValueError: boom"
    assert capsys.readouterr().err.splitlines()[-1] == sentence
