"""The terms on what models compute inside, written token by token for BERT; shares no code with the package."""

import copy
import math

import torch


def literal_tokens(batch, row):
    """Places of the row's real tokens."""
    return [place for place in range(batch["attention_mask"].shape[1]) if batch["attention_mask"][row, place]]


def literal_states(model, batch, row):
    """The embeddings' output and that of each layer (L, H), and the logits."""
    inputs = {name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask")}
    output = model(**inputs, output_hidden_states=True)
    return [states[0] for states in output.hidden_states], output.logits[0]


def literal_projection(model, states, layer, kind):
    """Queries, keys or values (L, H) of a layer: its own linear layer, on what the layer gets."""
    linear = getattr(model.bert.encoder.layer[layer].attention.self, kind)
    return states[layer] @ linear.weight.T + linear.bias


def literal_softmax(values):
    exponentials = [torch.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def literal_relations(student, teacher, settings, tokens):
    """`student` and `teacher` are (model, states)."""
    total = 0
    for kind in ("query", "key", "value"):
        of_kind = 0
        for head in range(settings["heads"]):
            relations = []
            for (model, states), layer in ((teacher, settings["teacher_layer"]), (student, settings["student_layer"])):
                vectors = literal_projection(model, states, layer, kind)
                size = vectors.shape[1] // settings["heads"]
                parts = [vectors[t, head * size : (head + 1) * size] for t in tokens]
                relations.append([literal_softmax([(a * b).sum() / math.sqrt(size) for b in parts]) for a in parts])
            for p, q in zip(*relations, strict=True):
                of_kind += sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))
        total += of_kind / (settings["heads"] * len(tokens))
    return total


def literal_map(model, states, layer, settings, tokens):
    """The attention maps of a layer: for each head a list of rows."""
    heads = model.config.num_attention_heads
    queries, keys = (literal_projection(model, states, layer, kind) for kind in ("query", "key"))
    size = queries.shape[1] // heads
    maps = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        rows = [[(queries[t, part] * keys[u, part]).sum() / math.sqrt(size) for u in tokens] for t in tokens]
        maps.append([literal_softmax(row) for row in rows] if settings["of"] == "probabilities" else rows)
    return maps


def literal_attention(student, teacher, settings, tokens):
    distances = []
    for k, layers in enumerate(settings["layer_map"]):
        for j in layers:
            of_student = literal_map(*student, k, settings, tokens)
            of_teacher = literal_map(*teacher, j, settings, tokens)
            places = [(t, u) for t in range(len(tokens)) for u in range(len(tokens))]
            if len(of_student) == len(of_teacher):
                squares = [
                    (a[t][u] - b[t][u]) ** 2 for a, b in zip(of_student, of_teacher, strict=True) for t, u in places
                ]
            else:
                squares = [
                    (
                        sum(head[t][u] for head in of_student) / len(of_student)
                        - sum(head[t][u] for head in of_teacher) / len(of_teacher)
                    )
                    ** 2
                    for t, u in places
                ]
            distances.append(sum(squares) / len(squares))
    return sum(distances) / len(distances)


def literal_hidden(student, teacher, settings, tokens):
    pairs = [
        (student[1][k + 1], teacher[1][j + 1], settings.get("w_hidden"))
        for k, layers in enumerate(settings["layer_map"])
        for j in layers
    ]
    if settings["embeddings"]:
        pairs.append((student[1][0], teacher[1][0], settings.get("w_embeddings")))
    distances = []
    for h_s, h_t, w in pairs:
        projected = h_s if w is None else torch.stack([torch.stack([(w_i * h).sum() for w_i in w]) for h in h_s])
        distances.append(sum(((projected[t] - h_t[t]) ** 2).mean() for t in tokens) / len(tokens))
    return sum(distances) / len(distances)


LITERAL_TERMS = {"relations": literal_relations, "attention": literal_attention, "hidden": literal_hidden}


def literal_term(student, teacher, batch, settings):
    """The mean over the rows; `student` and `teacher` are models."""
    rows = []
    for row in range(len(batch["labels"])):
        with torch.no_grad():
            states_t, _ = literal_states(teacher, batch, row)
        states_s, _ = literal_states(student, batch, row)
        tokens = literal_tokens(batch, row)
        rows.append(LITERAL_TERMS[settings["term"]]((student, states_s), (teacher, states_t), settings, tokens))
    return sum(rows) / len(rows)


def literal_loss(student, teacher, batch, settings):
    """(1 - alpha) * cross-entropy + alpha * T² * KL + weight * term."""
    alpha, temperature = settings["alpha"], settings["temperature"]
    rows = []
    for row in range(len(batch["labels"])):
        with torch.no_grad():
            _, z_t = literal_states(teacher, batch, row)
        _, z_s = literal_states(student, batch, row)
        task = -torch.log(literal_softmax(list(z_s))[batch["labels"][row]])
        p, q = literal_softmax(list(z_t / temperature)), literal_softmax(list(z_s / temperature))
        kl = sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))
        rows.append((1 - alpha) * task + alpha * temperature**2 * kl)
    return sum(rows) / len(rows) + settings["weight"] * literal_term(student, teacher, batch, settings)


def literal_gradient_step(loss, optimizer, max_grad_norm, groups):
    """Each of `groups`, lists of weights, is clipped by itself."""
    for weights in groups:
        gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]
        norm = sum((gradient**2).sum() for gradient in gradients) ** 0.5
        scale = min(1.0, max_grad_norm / (norm + 1e-6))  # the 1e-6 is PyTorch's
        for theta, gradient in zip(weights, gradients, strict=True):
            theta.grad = gradient * scale
    optimizer.step()


def literal_kd_step(batch, teacher, student, settings, optimizer):
    """`settings["learned"]` are the weights of the projection, if any."""
    teacher.eval()
    loss = literal_loss(student, teacher, batch, settings)
    groups = [group for group in (list(student.parameters()), settings["learned"]) if group]
    literal_gradient_step(loss, optimizer, settings["max_grad_norm"], groups)


def literal_partners(name, layer_map):
    """The teacher's names of a student's weight."""
    start = "bert.encoder.layer."
    if not name.startswith(start):
        return [name]
    layer, _, rest = name.removeprefix(start).partition(".")
    return [f"{start}{j}.{rest}" for j in layer_map[int(layer)]]


def literal_reptile_step(batch, teacher, student, settings, optimizer):
    """Gradient descent inside, interpolation of the teacher; `order` says which comes first."""
    teacher.eval()
    if settings["order"] == "student_first":
        literal_kd_step(batch, teacher, student, settings, optimizer)
        target = student
    else:
        target = copy.deepcopy(student)
        for _ in range(settings["inner_steps"]):
            loss = literal_loss(target, teacher, batch, settings)
            inner = torch.optim.SGD(target.parameters(), lr=settings["inner_lr"])
            literal_gradient_step(loss, inner, settings["max_grad_norm"], [list(target.parameters())])
    weights_t = dict(teacher.named_parameters())
    for name, theta_s in target.named_parameters():
        for partner in literal_partners(name, settings["moved"]):
            theta_t = weights_t[partner]
            theta_t.data -= settings["mu"] * (theta_t.data - theta_s.data)
    if settings["order"] == "teacher_first":
        literal_kd_step(batch, teacher, student, settings, optimizer)
