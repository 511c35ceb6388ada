"""Knowledge distillation of pretrained language models with a teacher that learns to teach.

The names below are imported when they are first used, so that `import reptile_distil` costs nothing.
"""

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reptile_distil.config.config import Config, load_config
    from reptile_distil.errors import ReptileDistilError
    from reptile_distil.experiments.experiment import Experiment
    from reptile_distil.losses.distillation import DistillationLoss
    from reptile_distil.methods.checkpoints import CheckpointDistiller
    from reptile_distil.methods.cotrain import CoTrainer
    from reptile_distil.methods.finetune import FineTuner
    from reptile_distil.methods.kd import KnowledgeDistiller
    from reptile_distil.methods.lgtm import InfluenceDistiller
    from reptile_distil.methods.metadistil import MetaDistiller
    from reptile_distil.methods.prokt import ProKTDistiller
    from reptile_distil.methods.reptile import ReptileDistiller
    from reptile_distil.models.classifier import Student, Teacher
    from reptile_distil.training.callbacks import Callback, RunInfo, StopTraining
    from reptile_distil.training.glue_metric import GlueMetric

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "CheckpointDistiller",
    "CoTrainer",
    "Config",
    "DistillationLoss",
    "Experiment",
    "FineTuner",
    "GlueMetric",
    "InfluenceDistiller",
    "KnowledgeDistiller",
    "MetaDistiller",
    "ProKTDistiller",
    "ReptileDistilError",
    "ReptileDistiller",
    "RunInfo",
    "StopTraining",
    "Student",
    "Teacher",
    "load_config",
]

if "ipykernel.zmqshell" in sys.modules:
    # In a notebook without ipywidgets tqdm warns, once, whoever imports it first; it then draws its bars as text.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        import_module("tqdm.auto")

_MODULES = {
    "Callback": "training.callbacks",
    "CheckpointDistiller": "methods.checkpoints",
    "Config": "config.config",
    "CoTrainer": "methods.cotrain",
    "DistillationLoss": "losses.distillation",
    "Experiment": "experiments.experiment",
    "FineTuner": "methods.finetune",
    "GlueMetric": "training.glue_metric",
    "InfluenceDistiller": "methods.lgtm",
    "KnowledgeDistiller": "methods.kd",
    "MetaDistiller": "methods.metadistil",
    "ProKTDistiller": "methods.prokt",
    "ReptileDistilError": "errors",
    "ReptileDistiller": "methods.reptile",
    "RunInfo": "training.callbacks",
    "StopTraining": "training.callbacks",
    "Student": "models.classifier",
    "Teacher": "models.classifier",
    "load_config": "config.config",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'reptile_distil' has no attribute {name!r}")
    return getattr(import_module(f"reptile_distil.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
