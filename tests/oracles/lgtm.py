"""LGTM's step as literally as its equations read, on deep copies; shares no code with the package."""

import copy

import torch

from tests.oracles.prokt import literal_distance, literal_logits, literal_loss, literal_step, literal_task


def literal_influence_loss(student, teacher, batch, settings):
    """L, differentiable in the teacher, of a student that is none; of a mixed batch as `literal_loss`."""
    tasks, distances = [], []
    for row in range(len(batch["labels"])):
        z_s = literal_logits(student, batch, row).detach()
        z_t = literal_logits(teacher, batch, row)
        distances.append(literal_distance(z_s, z_t, settings["temperature"], settings["soft"]))
        if "has_label" not in batch or batch["has_label"][row]:
            tasks.append(literal_task(z_s, batch["labels"][row]))
    task, distance = sum(tasks) / len(tasks), sum(distances) / len(distances)
    return (1 - settings["alpha"]) * task + settings["alpha"] * distance


def literal_quiz_gradient(student, quiz):
    rows = [literal_task(literal_logits(student, quiz, row), quiz["labels"][row]) for row in range(len(quiz["labels"]))]
    return torch.autograd.grad(sum(rows) / len(rows), list(student.parameters()))


def moved(student, directions, by):
    other = copy.deepcopy(student)
    for theta, direction in zip(other.parameters(), directions, strict=True):
        theta.data += by * direction
    return other


def literal_lgtm_step(batch, quiz, teacher, student, settings, student_optimizer, teacher_optimizer):
    teacher.eval()
    # The assumed step.
    loss = literal_loss(student, teacher, batch, settings["alpha"], settings)
    directions = list(torch.autograd.grad(loss, list(student.parameters())))
    if settings["assumed_optimizer"] == "adamw":
        directions = [direction / (direction.abs() + settings["eps"]) for direction in directions]
    assumed = moved(student, directions, -settings["assumed_lr"])
    # The quiz.
    v = literal_quiz_gradient(assumed, quiz)
    epsilon = settings["radius"] / sum((part**2).sum() for part in v) ** 0.5
    # The teacher.
    there, back = moved(student, v, epsilon), moved(student, v, -epsilon)
    influence = literal_influence_loss(there, teacher, batch, settings)
    influence = (influence - literal_influence_loss(back, teacher, batch, settings)) / (2 * epsilon)
    auxiliary = literal_loss(teacher, student, batch, settings["beta"], settings)
    literal_step(teacher, auxiliary - settings["influence"] * influence, teacher_optimizer, settings["max_grad_norm"])
    # The student.
    loss = literal_loss(student, teacher, batch, settings["alpha"], settings)
    literal_step(student, loss, student_optimizer, settings["max_grad_norm"])
