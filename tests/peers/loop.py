"""A loop as one writes it by hand: batches of similar length, a fused AdamW, an evaluation, the student saved."""

import random
import time

import torch
import transformers

from tests.peers.common import MAX_LENGTH, distillation_loss, options, read_rows, report


def main():
    given = options()
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.student)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    teacher, student = load(given.teacher).eval(), load(given.student).train()
    texts, labels = read_rows(given.data / "train.tsv")
    rows = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    steps_per_epoch = -(-len(rows) // given.batch_size)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, weight_decay=0.0, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, given.epochs * steps_per_epoch)
    started = time.perf_counter()
    for epoch in range(given.epochs):
        for chosen in batches_of(rows, given.batch_size, seed=epoch):
            batch = tokenizer.pad({"input_ids": [rows[row] for row in chosen]}, return_tensors="pt")
            with torch.no_grad():
                teacher_logits = teacher(**batch).logits
            loss = distillation_loss(student(**batch).logits, teacher_logits, torch.tensor([labels[r] for r in chosen]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - started
    score = accuracy(student.eval(), tokenizer, *read_rows(given.data / "dev.tsv"))
    student.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    report(score=score, seconds=seconds, steps=given.epochs * steps_per_epoch)


def batches_of(rows, batch_size, *, seed):
    """Rows of similar length together: shuffled, sorted within windows of eight batches, the batches shuffled."""
    draw, order = random.Random(seed), list(range(len(rows)))
    draw.shuffle(order)
    window = 8 * batch_size
    grouped = [sorted(order[i : i + window], key=lambda row: len(rows[row])) for i in range(0, len(order), window)]
    order = [row for part in grouped for row in part]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    draw.shuffle(batches)
    return batches


@torch.no_grad()
def accuracy(student, tokenizer, texts, labels):
    encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    order, right = sorted(range(len(encoded)), key=lambda row: len(encoded[row])), 0
    for start in range(0, len(order), 128):
        chosen = order[start : start + 128]
        batch = tokenizer.pad({"input_ids": [encoded[row] for row in chosen]}, return_tensors="pt")
        said = student(**batch).logits.argmax(dim=1)
        right += int((said == torch.tensor([labels[row] for row in chosen])).sum())
    return right / len(labels)


if __name__ == "__main__":
    main()
