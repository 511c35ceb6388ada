import sys

import pytest

from reptile_distil import Experiment
from tests.helpers.paths import TINY

METHODS = '''
import torch
from reptile_distil import KnowledgeDistiller


class FadingTeacher:
    """Distillation whose teacher has less to say from step to step."""

    def __init__(self, teacher, student, *, loss, fade=10, **settings):
        if fade < 1:
            raise ValueError(f"fade = {fade}: expected at least 1")
        self.kd = KnowledgeDistiller(teacher, student, loss=loss, **settings)
        self.loss, self.alpha, self.fade = loss, loss.alpha, fade
        self.num_steps = torch.zeros((), dtype=torch.long)

    def step(self, batch):
        """One step; returns scalars."""
        left = max(0.0, 1 - int(self.num_steps) / self.fade)
        self.loss.alpha = self.alpha * left
        self.num_steps += 1
        return {**self.kd.step(batch), "teacher_share": left}

    def state_dict(self):
        return {"num_steps": self.num_steps}

    def load_state_dict(self, tensors):
        self.num_steps = tensors["num_steps"]


class MovingTeacher:
    """Its teacher learns the task, with an optimizer of its own."""

    moves_teacher = True

    def __init__(self, teacher, student, *, teacher_lr=1e-3, **settings):
        self.kd, self.teacher = KnowledgeDistiller(teacher, student, **settings), teacher
        self.optimizers = {"teacher_lr": torch.optim.AdamW(teacher.parameters(), lr=teacher_lr)}

    def step(self, batch):
        optimizer = self.optimizers["teacher_lr"]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.teacher(batch), batch["labels"]).backward()
        optimizer.step()
        return self.kd.step(batch)


class Unnoticed:
    """It turns the student's answers round, step by step, by a write that PyTorch does not see."""

    def __init__(self, teacher, student, *, student_optimizer, **settings):
        self.student, self.optimizer = student, student_optimizer

    @torch.no_grad()
    def step(self, batch):
        self.optimizer.step()
        loss = torch.nn.functional.cross_entropy(self.student(batch).float(), batch["labels"])
        for name, theta in self.student.named_parameters():
            if "classifier" in name:
                theta.data.neg_()
        return {"loss": loss}


class Untouchable:
    def __init__(self, teacher, student, **settings):
        pass

    def step(self, batch):
        return {"loss": 1.0}

    def state_dict(self):
        return {"count": 3}

    def load_state_dict(self, tensors):
        pass


class NoStep:
    def __init__(self, teacher, student, **settings):
        pass


class FewArguments:
    def __init__(self, teacher, student, loss):
        pass

    def step(self, batch):
        pass


class Teacher(FadingTeacher):
    pass


def function():
    pass
'''

LOSSES = '''
import torch
from torch.nn.functional import cosine_similarity
from reptile_distil import DistillationLoss


class CosineLoss(DistillationLoss):
    """Distils the direction of the teacher's logits, by a share of its own."""

    def __init__(self, *, share=1.0, **settings):
        super().__init__(**settings)
        if share < 0:
            raise ValueError(f"share = {share}: expected at least 0")
        self.share = share

    def compare(self, student, teacher, batch):
        terms = super().compare(student, teacher, batch)
        cosine = 1 - cosine_similarity(student.logits, teacher.logits).mean()
        return terms._replace(total=terms.total + self.share * cosine, extra={**terms.extra, "cosine": cosine})


class StatesLoss(DistillationLoss):
    """Compares a learned function of the first token's last states, as of old saying what it needs."""

    needs_hidden_states = True

    def __init__(self, **settings):
        super().__init__(**settings)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def compare(self, student, teacher, batch):
        terms = super().compare(student, teacher, batch)
        distance = (self.scale * student.hidden_states[-1][:, 0] - teacher.hidden_states[-1][:, 0]).square().mean()
        return terms._replace(total=terms.total + distance, extra={**terms.extra, "states": distance})


class AttentionsLoss(DistillationLoss):
    """Needs what only attention that is written out gives."""

    @property
    def needs(self):
        return frozenset({"attentions"})

    def compare(self, student, teacher, batch):
        terms = super().compare(student, teacher, batch)
        difference = (student.attentions[-1] - teacher.attentions[-1]).square().mean()
        return terms._replace(total=terms.total + difference, extra={"maps": difference})


class NoLoss:
    pass
'''


def write_package(folder, name):
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "methods.py").write_text(METHODS)
    (package / "losses.py").write_text(LOSSES)
    (package / "broken.py").write_text("1 / 0\n")
    (package / "hungry.py").write_text("import nowhere_to_be_found\n")
    return package


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package of a user's own, on Python's path: its name."""
    folder = tmp_path / "elsewhere"
    write_package(folder, "my_pkg")
    monkeypatch.syspath_prepend(str(folder))
    yield "my_pkg"
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_pkg"]:
        del sys.modules[name]


@pytest.fixture
def tiny(tmp_path):
    """An experiment of about a second, in a folder of its own."""

    def tiny(*overrides, callbacks=()):
        return Experiment.from_yaml(TINY, f"runs_dir={tmp_path}/runs", *overrides, callbacks=callbacks)

    return tiny
