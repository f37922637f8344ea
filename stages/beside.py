"""The commands beside the pipeline: name, ablate, sweep, estimate. Each returns its summary."""

import shutil

import torch

from conr.errors import UserError
from conr.observer import Observer
from conr.parameters import Parameters
from conr.pipeline import ablation
from conr.pipeline import estimate as cost
from conr.pipeline import sweep as sweeping
from conr.pipeline.renaming import name_clusters
from conr.pipeline.workspace import Workspace
from conr.processes import machine_memory
