"""Reptile distillation written as slowly and literally as it reads; shares no code with the package.

What the fast implementation must equal, tensor by tensor.
"""

import copy

import torch

from tests.oracles.adamw import LiteralAdamw

# Student layer -> teacher layers, written out for 4 teacher layers and 2 student layers.
LAYER_MAPS = {
    "first": {0: [0], 1: [1]},
    "last": {0: [2], 1: [3]},
    "skip": {0: [1], 1: [3]},
    "both": {0: [0, 1], 1: [2, 3]},
}


def literal_loss(student, teacher, batch, alpha, temperature):
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    student_logits = student(**inputs).logits
    with torch.no_grad():
        teacher_logits = teacher(**inputs).logits
    has_label = batch.get("has_label", torch.ones(len(batch["labels"]), dtype=torch.bool))  # some rows of a mixed batch
    rows = [row for row in range(len(batch["labels"])) if has_label[row]]
    task = -torch.log_softmax(student_logits, 1)[rows, batch["labels"][rows]].mean()
    p = torch.softmax(teacher_logits / temperature, 1)
    q = torch.softmax(student_logits / temperature, 1)
    kl = (p * (p.log() - q.log())).sum(1).mean()
    return (1 - alpha) * task + alpha * temperature**2 * kl


def literal_backward(student, teacher, batch, settings):
    """The gradient of the batch's mean loss, in pieces of `rows` rows, each of which draws dropout masks of its own."""
    num_rows = len(batch["labels"])
    for start in range(0, num_rows, settings.get("rows", num_rows)):
        part = {name: tensor[start : start + settings.get("rows", num_rows)] for name, tensor in batch.items()}
        loss = literal_loss(student, teacher, part, settings["alpha"], settings["temperature"])
        (loss * len(part["labels"]) / num_rows).backward()


def clip(tensors, max_norm):
    norm = torch.sqrt(sum((tensor**2).sum() for tensor in tensors))
    if norm > max_norm:
        for tensor in tensors:
            tensor.mul_(max_norm / norm)


def literal_step(batch, teacher, student, settings, student_optimizer, teacher_optimizer):
    # Equation 1: one step of a deep copy of the student.
    random_state = torch.get_rng_state()
    fast_student = copy.deepcopy(student)
    fast_student.zero_grad()
    literal_backward(fast_student, teacher, batch, settings)
    clip([p.grad for p in fast_student.parameters()], settings["max_grad_norm"])
    new_inner_optimizer(fast_student, settings).step()

    # Equation 2: the teacher's matched weights move towards the copy's.
    literal_teacher_step(teacher, fast_student, settings, teacher_optimizer)

    # Equation 3: the student learns from the teacher as it is now.
    if settings.get("masks_of_equation_3") == "same":
        torch.set_rng_state(random_state)
    student.zero_grad()
    literal_backward(student, teacher, batch, settings)
    clip([p.grad for p in student.parameters()], settings["max_grad_norm"])
    student_optimizer.step()


def new_inner_optimizer(fast_student, settings):
    weights, lr = fast_student.parameters(), settings["inner_lr"]
    if settings["inner_optimizer"] == "sgd":
        return torch.optim.SGD(weights, lr=lr)
    if settings["inner_optimizer"] == "transformers4":
        return LiteralAdamw(weights, lr, settings["eps"], settings["decay"])
    return torch.optim.AdamW(weights, lr=lr, weight_decay=0.0, eps=settings["eps"])


def literal_teacher_step(teacher, student, settings, teacher_optimizer):
    weights = dict(student.named_parameters())
    partner = {}
    for name in weights:
        if ".layer." not in name:
            partner[name] = name
            continue
        before, after = name.split(".layer.")
        layer, rest = after.split(".", 1)
        for teacher_layer in LAYER_MAPS[settings["layer_map"]][int(layer)]:
            partner[f"{before}.layer.{teacher_layer}.{rest}"] = name
    for name, theta_t in teacher.named_parameters():
        theta_t.grad = None
        if name in partner and theta_t.requires_grad:
            theta_t.grad = literal_difference(theta_t.detach(), weights[partner[name]].detach())
    if settings["update"] == "adamw":
        clip([p.grad for p in teacher.parameters() if p.grad is not None], settings["max_grad_norm"])
    teacher_optimizer.step()


def literal_difference(theta_t, theta_s):
    """theta_t - theta_s; of two vocabularies, token by token, and nothing for a token that one of them lacks."""
    if theta_t.shape == theta_s.shape:
        return theta_t - theta_s
    difference = torch.zeros_like(theta_t)
    for token in range(min(len(theta_t), len(theta_s))):
        difference[token] = theta_t[token] - theta_s[token]
    return difference


def literal_student_first_step(batch, teacher, student, settings, student_optimizer, teacher_optimizer):
    # theta_s <- theta_s - lambda * grad L(x; theta_s; theta_t)
    student.zero_grad()
    literal_backward(student, teacher, batch, settings)
    clip([p.grad for p in student.parameters()], settings["max_grad_norm"])
    student_optimizer.step()
    # theta_t <- theta_t - mu * (theta_t - theta_s)
    literal_teacher_step(teacher, student, settings, teacher_optimizer)
