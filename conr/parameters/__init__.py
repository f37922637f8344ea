"""Every hyperparameter, declared once: its name, type, range, default and help text.

The key in params.yaml, the command-line flag, the validation and `--help` follow from these declarations. Defaults are
the paper's for CIFAR-10. This package is no dependency of a stage in dvc.yaml: values are tracked through params.yaml.
"""

from conr.parameters.execution import Training
from conr.parameters.groups import Optimizer, Prepare
from conr.parameters.stages import (
    STAGES,
    EvaluateStage,
    ExtractStage,
    FinetuneStage,
    Parameters,
    PrepareStage,
    PretrainStage,
    Stage,
)
from conr.parameters.views import Views

__all__ = [
    "STAGES",
    "EvaluateStage",
    "ExtractStage",
    "FinetuneStage",
    "Optimizer",
    "Parameters",
    "Prepare",
    "PrepareStage",
    "PretrainStage",
    "Stage",
    "Training",
    "Views",
]
