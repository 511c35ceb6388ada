"""Hugging Face's Trainer with the loss of distillation, and its own grouping by length."""

import numpy as np
import torch
import transformers

from tests.peers.common import MAX_LENGTH, distillation_loss, options, read_rows, report


class Rows(torch.utils.data.Dataset):
    def __init__(self, tokenizer, texts, labels):
        encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        self.rows = [{"input_ids": ids, "labels": label} for ids, label in zip(encoded, labels, strict=True)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row]


class Distiller(transformers.Trainer):
    def __init__(self, *arguments, teacher, **options):
        super().__init__(*arguments, **options)
        self.teacher = teacher.eval()

    def compute_loss(self, model, inputs, return_outputs=False, **options):
        labels = inputs["labels"]
        outputs = model(**{name: tensor for name, tensor in inputs.items() if name != "labels"})
        if not model.training:
            loss = torch.nn.functional.cross_entropy(outputs.logits, labels)
        else:
            with torch.no_grad():
                teacher_logits = self.teacher(**{n: t for n, t in inputs.items() if n != "labels"}).logits
            loss = distillation_loss(outputs.logits, teacher_logits, labels)
        return (loss, outputs) if return_outputs else loss


def main():
    given = options()
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.student)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    arguments = transformers.TrainingArguments(
        output_dir=str(given.out),
        num_train_epochs=given.epochs,
        per_device_train_batch_size=given.batch_size,
        per_device_eval_batch_size=128,
        learning_rate=5e-5,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Distiller(
        load(given.student),
        arguments,
        teacher=load(given.teacher),
        train_dataset=Rows(tokenizer, *read_rows(given.data / "train.tsv")),
        eval_dataset=Rows(tokenizer, *read_rows(given.data / "dev.tsv")),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda said: {"accuracy": float(np.mean(said.predictions.argmax(axis=1) == said.label_ids))},
    )
    seconds = trainer.train().metrics["train_runtime"]
    trainer.save_model()
    tokenizer.save_pretrained(given.out)
    score = next(entry["eval_accuracy"] for entry in reversed(trainer.state.log_history) if "eval_accuracy" in entry)
    report(score=score, seconds=seconds, steps=trainer.state.global_step)


if __name__ == "__main__":
    main()
