"""Reptile's step with its ablations, as slowly and literally as `literal.py`; shares no code with the package."""

import copy

import torch

from tests.oracles.reptile import LAYER_MAPS, clip, literal_backward


class LiteralAdam:
    """Adam as in its paper, over named tensors; its moments live as long as it does."""

    def __init__(self, lr, eps):
        self.lr, self.eps, self.count, self.m, self.v = lr, eps, 0, {}, {}

    def step(self, model):
        self.count += 1
        with torch.no_grad():
            for name, theta in model.named_parameters():
                self.m[name] = 0.9 * self.m.get(name, 0) + 0.1 * theta.grad
                self.v[name] = 0.999 * self.v.get(name, 0) + 0.001 * theta.grad**2
                m_hat = self.m[name] / (1 - 0.9**self.count)
                v_hat = self.v[name] / (1 - 0.999**self.count)
                theta.sub_(self.lr * m_hat / (v_hat.sqrt() + self.eps))


class LiteralSgd:
    def __init__(self, lr):
        self.lr = lr

    def step(self, model):
        with torch.no_grad():
            for theta in model.parameters():
                theta.sub_(self.lr * theta.grad)


def literal_meta_step(inner_batches, teacher, student, settings, inner, teacher_optimizer):
    """Equations 1 and 2. `settings["stays"]` are the beginnings of names of student weights that move no teacher."""
    fast_student = copy.deepcopy(student)
    for batch in inner_batches:
        fast_student.zero_grad()
        literal_backward(fast_student, teacher, batch, settings)
        clip([p.grad for p in fast_student.parameters()], settings["max_grad_norm"])
        inner.step(fast_student)
    for theta in teacher.parameters():
        theta.grad = None
    for name, theta_s in fast_student.named_parameters():
        if name.startswith(settings["stays"]):
            continue
        twins = [name]
        if ".layer." in name:
            before, after = name.split(".layer.")
            layer, rest = after.split(".", 1)
            twins = [f"{before}.layer.{j}.{rest}" for j in LAYER_MAPS[settings["layer_map"]][int(layer)]]
        for twin in twins:
            theta_t = teacher.get_parameter(twin)
            theta_t.grad = theta_t.detach() - theta_s.detach()
    if settings["update"] == "adamw":
        clip([p.grad for p in teacher.parameters() if p.grad is not None], settings["max_grad_norm"])
    teacher_optimizer.step()


def literal_distillation(batch, teacher, student, settings, student_optimizer):
    """Equation 3."""
    student.zero_grad()
    literal_backward(student, teacher, batch, settings)
    clip([p.grad for p in student.parameters()], settings["max_grad_norm"])
    student_optimizer.step()
