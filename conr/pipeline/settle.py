"""The number of clusters: given, or proposed from the features before ConNR, without labels."""

import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from conr.clustering.choose import propose_clusters
from conr.errors import Note, UserError
from conr.files import load_json, write_json
from conr.observer import Observer
from conr.parameters import EvaluateStage, FinetuneStage
from conr.pipeline.workspace import RECORD, Record, Workspace

Given = TypeVar("Given", FinetuneStage, EvaluateStage)


def settle(
    workspace: Workspace, parameters: FinetuneStage, features: Callable[[], NDArray[np.float32]], observer: Observer
) -> FinetuneStage:
    """The same parameters with a number of clusters; where it is proposed, how is written to `workspace.proposal`.

    Args:
        workspace: of the run.
        parameters: whose clusters may be auto or a range. Where so few images differ that there is nothing to
            compare, the smallest candidate is taken, and a note says so.
        features: called for the (N, D) unit vectors of the images to train on, if they are needed.
        observer: notified of the candidates that have been compared.

    """
    if isinstance(parameters.clusters, int):
        return parameters
    found = features()
    different = len(np.unique(found, axis=0))
    candidates = [number for number in parameters.candidates if number < len(found) and number <= different]
    if not candidates:
        fewest = parameters.candidates[0]
        message = (
            f"clusters = {parameters.clusters}: {different} of {len(found)} images differ; {fewest} clusters are made"
        )
        warnings.warn(Note(message), stacklevel=2)
        return parameters.model_copy(update={"clusters": fewest})
    proposal = propose_clusters(found, candidates, seed=parameters.seed, observer=observer)
    write_json(workspace.proposal, proposal)
    return parameters.model_copy(update={"clusters": proposal.clusters})


def settled(workspace: Workspace, parameters: Given) -> Given:
    """The same parameters with the number of clusters that `conr finetune` has settled, where they give none.

    Raises:
        UserError: it has not settled any.
    """
    if isinstance(parameters.clusters, int):
        return parameters
    remedy = "run conr finetune again, which proposes a number of clusters, or set clusters to one"
    number = load_json(workspace.refined / RECORD, Record, remedy).clusters
    if number is None:
        raise UserError(f"{workspace.refined / RECORD} names no number of clusters; {remedy}")
    return parameters.model_copy(update={"clusters": number})
