"""MetaDistil's step by nested function transforms, as literally as its equations read; shares no code with the package.

The models must have eager attention, which the transforms can differentiate twice.
"""

import torch
from torch.func import functional_call, grad

from tests.oracles.reptile import clip


def logits(model, parameters, batch):
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    return functional_call(model, parameters, (), inputs).logits


def literal_task_loss(z, labels):
    if z.shape[1] == 1:
        return ((z[:, 0] - labels) ** 2).mean()
    return -torch.log_softmax(z, 1)[torch.arange(len(labels)), labels].mean()


def literal_lesson(z_s, z_t, batch, alpha, temperature, soft):
    p, q = torch.softmax(z_t / temperature, 1), torch.softmax(z_s / temperature, 1)
    if z_s.shape[1] == 1:
        distillation = ((z_s - z_t) ** 2).mean()
    elif soft == "kl":
        distillation = temperature**2 * (p * (p.log() - q.log())).sum(1).mean()
    else:
        distillation = temperature**2 * ((p - q) ** 2).mean()
    rows = [row for row in range(len(z_s)) if "has_label" not in batch or batch["has_label"][row]]
    return (1 - alpha) * literal_task_loss(z_s[rows], batch["labels"][rows]) + alpha * distillation


def literal_quiz_loss(theta_t, theta_s, batch, quiz, teacher, student, settings):
    """The task loss of theta_s'(theta_t) on the quiz."""

    def lesson(theta_s):
        z_s, z_t = logits(student, theta_s, batch), logits(teacher, theta_t, batch)
        return literal_lesson(z_s, z_t, batch, settings["alpha"], settings["temperature"], settings["soft"])

    theta_s_prime = {}
    for name, gradient in grad(lesson)(theta_s).items():
        if settings["assumed_optimizer"] == "adamw":
            gradient = gradient / (gradient.abs() + settings["eps"])
        theta_s_prime[name] = theta_s[name] - settings["assumed_lr"] * gradient
    return literal_task_loss(logits(student, theta_s_prime, quiz), quiz["labels"])


def literal_metadistil_step(batch, quiz, teacher, student, settings, student_optimizer, teacher_optimizer):
    theta_t = {name: theta.detach() for name, theta in teacher.named_parameters()}
    theta_s = {name: theta.detach() for name, theta in student.named_parameters()}

    # Assumed step and quiz: the gradient of the teacher.
    gradients = grad(literal_quiz_loss)(theta_t, theta_s, batch, quiz, teacher, student, settings)
    for name, theta in teacher.named_parameters():
        theta.grad = gradients[name]
    clip([theta.grad for theta in teacher.parameters()], settings["max_grad_norm"])
    teacher_optimizer.step()

    # The student's real step, from theta_s, with the teacher as it is now.
    student.zero_grad()
    with torch.no_grad():
        z_t = teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    z_s = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    literal_lesson(z_s, z_t, batch, settings["alpha"], settings["temperature"], settings["soft"]).backward()
    clip([theta.grad for theta in student.parameters()], settings["max_grad_norm"])
    student_optimizer.step()
