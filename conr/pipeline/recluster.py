"""clusters: other numbers of clusters of the same embeddings, compared and made. No stage: DVC does not track it."""

import numpy as np

from conr.clustering.choose import Proposal, propose_clusters
from conr.data.store import open_store
from conr.errors import UserError
from conr.evaluation.results import Results
from conr.files import load_array, write_json
from conr.observer import SILENT, Observer
from conr.parameters import EvaluateStage, Parameters
from conr.pipeline.evaluate import AGAIN, evaluate
from conr.pipeline.workspace import Workspace
from conr.report.choosing import choose_figure
from conr.report.figures import save


def recluster(
    workspace: Workspace, parameters: Parameters, clusters: str, observer: Observer = SILENT
) -> tuple[Results, Proposal | None]:
    """Propose a number of clusters for the embeddings before ConNR, and make the results with it.

    The curve goes to `workspace.proposals`.

    Args:
        workspace: with embeddings.
        parameters: of the run.
        clusters: K, auto, or a range of candidates.
        observer: notified of the candidates, and of what evaluate does.

    Returns:
        The results, and how K was proposed; None if it is given.

    Raises:
        UserError: there are no embeddings, or fewer images than the smallest candidate.
    """
    own, proposal = parameters.changed({"clusters": clusters}, "CLUSTERS"), None
    if isinstance(own.clusters, str):
        embeddings = load_array(workspace.embeddings(), AGAIN)[open_store(workspace.store).clustered]
        different = len(np.unique(embeddings, axis=0))
        candidates = [number for number in own.candidates if number < len(embeddings) and number <= different]
        if not candidates:
            raise UserError(f"{clusters}: {different} of {len(embeddings)} images differ; name smaller numbers")
        proposal = propose_clusters(embeddings, candidates, seed=own.seed, observer=observer)
        write_json(workspace.proposals / "clusters.json", proposal)
        save(choose_figure(proposal), workspace.proposals / "clusters.png")
        own = own.changed({"clusters": proposal.clusters})
    return evaluate(workspace, EvaluateStage.of(own), observer), proposal
