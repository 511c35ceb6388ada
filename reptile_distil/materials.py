"""What a run needs, loaded and checked: models, tokenizer, data, and the method that they go into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from reptile_distil.build_data import VALIDATION, build_batches, build_lessons
from reptile_distil.build_method import BuiltMethod, build_method
from reptile_distil.builders import build_student, forward_options, prepare_model, student_source
from reptile_distil.config.config import Config
from reptile_distil.config.sections import Role, TrainConfig
from reptile_distil.data.batches import Batches
from reptile_distil.data.tasks import Task
from reptile_distil.errors import DataError
from reptile_distil.models.classifier import Classifier, Student, Teacher
from reptile_distil.models.pretrained import check_length, load_finetuned, load_pretrained
from reptile_distil.models.tokenizer import check_same_tokenizer, check_vocabulary, load_tokenizer, wider_tokenizer
from reptile_distil.runs.folder import RunFolder
from reptile_distil.runs.resume import Fingerprints
from reptile_distil.runs.state import weights_fingerprint
from reptile_distil.runtime.processes import Processes, whole_copy


class Materials(NamedTuple):
    """What a run trains with."""

    settings: TrainConfig
    model: Any
    """The one that learns, at its start."""
    tokenizer: Any
    data: dict[str, Batches]
    """The training split and each dev split."""
    teacher: Teacher | None

    def fingerprints(self) -> Fingerprints:
        """What identifies each input: when one has changed, an unfinished run cannot go on."""
        fingerprints = {f"{split} split": batches.features.fingerprint() for split, batches in self.data.items()}
        if (companions := self.data["train"].companions) is not None:
            fingerprints["rows beside the train split"] = companions.features.fingerprint()
        fingerprints["model that it starts with"] = weights_fingerprint(self.model)
        if self.teacher is not None:
            fingerprints["teacher"] = weights_fingerprint(self.teacher)
        return fingerprints


@dataclass(frozen=True)
class Workshop:
    """Where materials are got ready: a configuration, and what it is run on."""

    config: Config
    task: Task
    device: str
    processes: Processes

    def prepare_student(self, teacher_name: str | None, *, stand_in: bool = False) -> Materials:
        """What the configured method trains with, checked: student and teacher at their start, and data for both.

        `teacher_name` is the folder or hub name of the fine-tuned teacher, None where neither the method nor the
        student's start needs one. As a `stand_in`, it is that of a model which is not fine-tuned yet, and gets a new
        head.
        """
        config = self.config
        model, tokenizer = build_student(config, self.task, None if stand_in else teacher_name)
        teacher, batch_tokenizer = None, tokenizer
        if teacher_name is not None and config.method != "finetune":
            teacher_tokenizer = load_tokenizer(teacher_name)
            check_same_tokenizer(teacher_name, teacher_tokenizer, student_source(config), tokenizer)
            batch_tokenizer = wider_tokenizer(teacher_tokenizer, tokenizer)
            teacher = self._load_teacher(teacher_name, stand_in=stand_in)
            check_vocabulary(teacher_name, teacher.model, teacher_tokenizer)
        data = self.load_data(batch_tokenizer, config.train, for_student=True)
        return Materials(config.train, model, tokenizer, data, teacher)

    def prepare_teacher(self) -> Materials:
        """What the teacher is fine-tuned with, checked."""
        name, settings = self.config.teacher.pretrained, self.config.teacher.train
        model, tokenizer = load_pretrained(name, self.task, seed=self.config.seed), load_tokenizer(name)
        check_vocabulary(name, model, tokenizer)
        return Materials(settings, model, tokenizer, self.load_data(tokenizer, settings, for_student=False), None)

    def assemble(self, role: Role, materials: Materials) -> tuple[Student, BuiltMethod]:
        """The model that learns, on the device, and the method that teaches it."""
        settings, model, _, _, teacher = materials
        check_length(role, model, self.config.data.max_length)
        student = Student(self._placed(model), **forward_options(self.config))
        return student, build_method(self.config, student, teacher, settings, role=role, processes=self.processes)

    def load_data(self, tokenizer: Any, settings: TrainConfig, *, for_student: bool) -> dict[str, Batches]:
        """Batches of the training split and of each dev split."""
        if "train" not in self.task.splits:
            raise DataError(f"task {self.task.name} has no train split to train on")
        if for_student:
            train = build_lessons(self.config, self.task, tokenizer)
        else:
            train = build_batches(self.config, self.task, "train", tokenizer, settings, for_training=True)
        splits = (self.task.selection_split, *self.task.dev_splits[1:])
        if self.config.data.validation_fraction is not None:
            splits = (VALIDATION, *splits)
        dev = {split: build_batches(self.config, self.task, split, tokenizer, settings) for split in splits}
        return {"train": train, **dev}

    def _placed(self, model: Any) -> Any:
        """The model on the device, the same on every process, or this process's part of it."""
        self.processes.share_weights(model, self.device)
        prepare_model(model, self.config, self.device)
        return model

    def save_model(self, folder: RunFolder, model: Any, tokenizer: Any) -> None:
        """Replaces the folder's model by this one, by the main process."""
        whole = whole_copy(model) if self.config.distributed.shard else model
        self.processes.on_main(lambda: folder.save_model(whole, tokenizer))

    def _load_teacher(self, name: str, *, stand_in: bool) -> Teacher:
        if stand_in:
            model = load_pretrained(name, self.task, seed=self.config.seed)
        else:
            model = load_finetuned(name, self.task, self.config.teacher.label_names)
        check_length(name, model, self.config.data.max_length)
        return Teacher(self._placed(model), **forward_options(self.config))

    def load_trained(self, name: str) -> tuple[Classifier, Any]:
        """A fine-tuned model, a folder or hub name, ready to be asked, and its tokenizer."""
        classifier = load_finetuned(name, self.task, self.config.teacher.label_names)
        prepare_model(classifier, self.config, self.device, may_compile=False)
        tokenizer = load_tokenizer(name)
        check_vocabulary(name, classifier, tokenizer)
        return Classifier(classifier, **forward_options(self.config)), tokenizer
