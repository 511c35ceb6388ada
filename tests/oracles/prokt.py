"""ProKT and co-training written row by row and class by class; shares no code with the package."""

import torch


def literal_logits(model, batch, row):
    inputs = {name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask")}
    return model(**inputs).logits[0]


def literal_task(z, label):
    if len(z) == 1:
        return (z[0] - label) ** 2
    return torch.log(sum(torch.exp(z[c]) for c in range(len(z)))) - z[label]


def literal_distance(z, target, temperature, soft):
    """From a model's logits to those that it is to come near."""
    if len(z) == 1:
        return (z[0] - target[0]) ** 2
    p = [torch.exp(target[c] / temperature) for c in range(len(z))]
    q = [torch.exp(z[c] / temperature) for c in range(len(z))]
    p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
    if soft == "mse":
        return temperature**2 * sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / len(z)
    return temperature**2 * sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))


def literal_loss(model, other, batch, weight, settings):
    """(1 - weight) * task loss + weight * distance to the other model, which gets no gradient.

    Each is the mean over the rows that have it: of a mixed batch, those with a label have a task loss.
    """
    tasks, distances = [], []
    for row in range(len(batch["labels"])):
        z = literal_logits(model, batch, row)
        target = literal_logits(other, batch, row).detach()
        distances.append(literal_distance(z, target, settings["temperature"], settings["soft"]))
        if "has_label" not in batch or batch["has_label"][row]:
            tasks.append(literal_task(z, batch["labels"][row]))
    return (1 - weight) * sum(tasks) / len(tasks) + weight * sum(distances) / len(distances)


def literal_step(model, loss, optimizer, max_grad_norm):
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = sum((gradient**2).sum() for gradient in gradients) ** 0.5
    scale = min(1.0, max_grad_norm / (norm + 1e-6))  # the 1e-6 is PyTorch's
    for theta, gradient in zip(model.parameters(), gradients, strict=True):
        theta.grad = gradient * scale
    optimizer.step()


def literal_prokt_step(batch, teacher, student, settings, student_optimizer, teacher_optimizer):
    """With beta = 0, co-training."""
    teacher.eval()
    of_teacher = literal_loss(teacher, student, batch, settings["beta"], settings)
    if settings["order"] == "together":
        of_student = literal_loss(student, teacher, batch, settings["alpha"], settings)
        literal_step(teacher, of_teacher, teacher_optimizer, settings["max_grad_norm"])
    else:
        literal_step(teacher, of_teacher, teacher_optimizer, settings["max_grad_norm"])
        of_student = literal_loss(student, teacher, batch, settings["alpha"], settings)
    literal_step(student, of_student, student_optimizer, settings["max_grad_norm"])
