"""evaluate: embeddings → clusters, scores, figures, the report and the table of assignments."""

import json
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from conr.clustering.choose import Proposal
from conr.clustering.compactness import choose_method
from conr.clustering.graph import graph_neighbors
from conr.data.store import Store, open_store
from conr.embedding.clusterer import remember
from conr.errors import UserError
from conr.evaluation.evaluate import Evaluation, evaluate_store
from conr.evaluation.plane import embedding_map, nearest_images
from conr.evaluation.results import TITLES, Results
from conr.evaluation.scores import AGREEMENT
from conr.files import load_array, load_json, save_array, write_table, write_text
from conr.neighbors.search import approximate_neighbors
from conr.observer import SILENT, Observer
from conr.parameters import EvaluateStage
from conr.parameters.groups import Evaluate
from conr.pipeline.checks import check_data
from conr.pipeline.clusterer import write_clusterer
from conr.pipeline.exports import write_parquet
from conr.pipeline.naming import identity_of, names_line, read_names
from conr.pipeline.neighbor_figures import draw_neighbors
from conr.pipeline.page_parts import NEAREST, Extras
from conr.pipeline.publish import published
from conr.pipeline.records import of_embeddings, read_record, write_record
from conr.pipeline.report import cluster_names, draw_figures, draw_map, summary, write_report
from conr.pipeline.settle import settled
from conr.pipeline.workspace import RECORD, Record, TrainingFiles, Workspace, writes
from conr.report.choosing import choose_figure
from conr.report.drawings import Drawings
from conr.report.page import Choice
from conr.training.log import read_log, write_log

NEIGHBORS = 30  # nearest images of each, at most: the graph needs so many
MOST_COMPARED = 30_000  # images of which all pairs are compared to find them; of more an index is searched
TASKS = 5  # units of progress beside the evaluations: the tables, the map, the figures, the neighbors, the page
AGAIN = "run conr extract again"
PLOTTED = ("epoch", "loss", *AGREEMENT, "feature_std", "size_entropy")  # columns that dvc plots looks for


@writes
def evaluate(workspace: Workspace, parameters: EvaluateStage, observer: Observer = SILENT) -> Results:
    """Cluster the embeddings before and after ConNR and write all results, which appear when all of them are there.

    Figures, page and assignments show the first seed. A figure that cannot be drawn is a note.

    Raises:
        UserError: store or embeddings are missing, damaged, or of other seeds.
    """
    parameters, store = settled(workspace, EvaluateStage.of(parameters)), open_store(workspace.store)
    first, *_ = seeds = parameters.all_seeds
    refined = workspace.finetuned(first).weights.exists()
    check_data(parameters, store.manifest, refined)
    check_graph(parameters.evaluate, parameters.number, len(range(store.manifest.count)[store.clustered]))
    record = _record(workspace, seeds, store)
    precision = record.precision or "float32"
    with observer.task("evaluate", TASKS + len(TITLES) * (refined + len(seeds))):
        before, after = _embeddings(workspace, None, store), _embeddings(workspace, first, store)
        neighbors = _nearest(after)
        results = _results(workspace, store, parameters, refined, neighbors, observer)
        with published(workspace) as new:
            drawings = Drawings(new.figures)
            positions = embedding_map(after, first)
            draw_map(drawings, positions, results.first)
            observer.step_done(note="map")
            identity = identity_of(store.manifest.files, results.first.assignment.clusters)
            names = read_names(workspace, identity, len(results.first.centroids))
            _write_tables(workspace, new, results, store, names, positions)
            write_parquet(
                new.explorable,
                store.manifest.files,
                results.first.assignment,
                store.images,
                labels=store.label_names,
                names=names,
                positions=positions,
                embeddings=after,
                neighbors=None if neighbors is None else neighbors[:, :NEAREST],
            )
            _write_clusters(workspace, new, results, after, parameters, record, identity, names)
            observer.step_done(note="tables")
            logs = _log(workspace.pretrained), _log(workspace.finetuned(first))
            draw_figures(drawings, results.first, store, logs, parameters.evaluate.gallery)
            observer.step_done(note="figures")
            draw_neighbors(drawings, new.plots, before, results, store, parameters)
            observer.step_done(note="neighbors")
            extras = Extras(
                embeddings=after,
                positions=positions,
                neighbors=neighbors,
                names=names,
                method=TITLES[results.method],
                result=list(results.rows())[-1],
                choice=_choice(workspace, parameters, drawings),
            )
            notes = write_report(new.report, results, store, parameters, precision, drawings, extras)
            lines = [summary(workspace, results, precision, notes), *names_line(names)]
            write_text(new.summary, "\n".join(lines) + "\n", "backslashreplace")
            observer.step_done(note="report")
    return results


def _nearest(embeddings: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """The nearest other images of each image, for the graph, the page and the table; None for too few images."""
    if len(embeddings) <= NEIGHBORS:
        return None
    found = None
    if len(embeddings) > MOST_COMPARED:
        found = np.concatenate(list(approximate_neighbors(np.array(embeddings), NEIGHBORS + 1)))
    return nearest_images(embeddings, NEIGHBORS, neighbors=found)


def _results(
    workspace: Workspace,
    store: Store,
    parameters: EvaluateStage,
    refined: bool,
    neighbors: NDArray[np.int64] | None,
    observer: Observer,
) -> Results:
    """All clusterings and their scores, those by the method that the parameters name first.

    Args:
        neighbors: nearest images by the first seed's embeddings, if they are known.
    """
    chosen, first = parameters.evaluate.method, parameters.all_seeds[0]

    by_kmeans: dict[str, Evaluation] = {}

    def found(embeddings: NDArray[np.float32], seed: int, method: str, what: str) -> Evaluation:
        known = neighbors if what == f"seed {first}" else None
        evaluation = evaluate_store(embeddings, store, parameters, seed, method, known, by_kmeans.get(what))
        by_kmeans.setdefault(what, evaluation)
        observer.step_done(note=f"{what}: {TITLES[method]}, scores")
        return evaluation

    of_method = {}
    for method in TITLES:
        finetuned = {
            seed: found(_embeddings(workspace, seed, store), seed, method, f"seed {seed}")
            for seed in parameters.all_seeds
        }
        before = finetuned[first]
        if refined:
            before = found(_embeddings(workspace, None, store), parameters.seed, method, "pretrained")
        of_method[method] = Results(before, finetuned, method, refined)
    if chosen == "auto":
        both = [results.first.assignment.clusters for results in of_method.values()]
        chosen = choose_method(_embeddings(workspace, first, store), *both)
    other = next(results for method, results in of_method.items() if method != chosen)
    return replace(of_method[chosen], other=other)


def _log(files: TrainingFiles) -> list[dict[str, float]]:
    """The log of a training; nothing where none took place."""
    return read_log(files.log) if files.weights.exists() else []


def check_graph(settings: Evaluate, clusters: int, images: int) -> None:
    """Check that the neighborhoods of a graph fit so many images and clusters.

    Raises:
        UserError: k1 is larger than the number of images, or k2 than k1.
    """
    k1, k2, ruled = settings.graph_k1, settings.graph_k2, graph_neighbors(images, clusters)[0]
    if k1 > images:
        raise UserError(f"evaluate.graph_k1 = {k1} is larger than the number of images to cluster ({images}); lower it")
    if k2 > (k1 or ruled):
        by_rule = f"k1, which is {ruled} for {images:,} images in {clusters} clusters"
        raise UserError(
            f"evaluate.graph_k2 = {k2} is larger than {f'evaluate.graph_k1 ({k1})' if k1 else by_rule}; lower it, or "
            f"set evaluate.graph_k1 to at least {k2}"
        )


def _record(workspace: Workspace, seeds: list[int], store: Store) -> Record:
    """What the embeddings are made from, if they are of these seeds and of the images and networks that are there."""
    found = load_json(workspace.embedded / RECORD, Record, AGAIN).seeds
    if found != seeds:
        raise UserError(f"the embeddings are of seeds {found}, not {seeds}; run conr finetune and conr extract first")
    return read_record(workspace.embedded, AGAIN, of_embeddings(workspace, store.manifest, seeds[0]))


def _embeddings(workspace: Workspace, seed: int | None, store: Store) -> NDArray[np.float32]:
    path = workspace.embeddings(seed)
    embeddings = load_array(path, AGAIN)
    if len(embeddings) != store.manifest.count:
        raise UserError(
            f"{path} holds {len(embeddings)} embeddings, {workspace.store} {store.manifest.count} images; {AGAIN}"
        )
    return embeddings


def _write_tables(
    workspace: Workspace,
    new: Workspace,
    results: Results,
    store: Store,
    names: dict[int, str],
    positions: NDArray[np.float32] | None,
) -> None:
    """Scores and assignments; and the tables that DVC plots. Logs are read from the first workspace."""
    final, labels, seeds = results.first, store.label_names, list(results.finetuned)
    write_text(new.metrics, json.dumps(results.metrics(store.manifest.count), indent=2) + "\n")
    # Names on disk are bytes: one that is not UTF-8 is written unchanged.
    table = final.assignment.table(store.manifest.files, labels, names=names, positions=positions)
    write_table(new.assignments, *table, errors="surrogateescape")
    for name, files in (("pretraining", workspace.pretrained), ("finetuning", workspace.finetuned(seeds[0]))):
        write_log(new.plots / f"{name}.csv", _log(files), PLOTTED)
    write_table(new.plots / "cluster_sizes.csv", ["cluster", "images"], enumerate(final.sizes))
    pairs: list[tuple[str, str]] = []
    if labels is not None:
        scored = final.assignment.clusters[store.scored]
        matched = cluster_names(final, store)
        pairs = [
            (label, matched[cluster]) for label, cluster in zip(labels[store.scored], scored, strict=True) if label
        ]
    # A folder that is a label may have a name that is no text; DVC plots no table that is not UTF-8.
    write_table(new.plots / "confusion.csv", ["label", "cluster"], pairs, errors="backslashreplace")


def _write_clusters(
    workspace: Workspace,
    new: Workspace,
    results: Results,
    embeddings: NDArray[np.float32],
    parameters: EvaluateStage,
    embedded: Record,
    identity: str,
    names: dict[int, str],
) -> None:
    """What new images are assigned by: centroids, ballots, and all with the encoder as one file; and the record."""
    final, seeds = results.first, list(results.finetuned)
    save_array(new.centroids, final.centroids)
    ballots, made = final.ballots, [new.centroids]
    save_array(new.ballots, np.empty((0, 0), np.float32) if ballots is None else ballots)
    if ballots is not None:
        made.append(new.ballots)
    by_votes = results.method == "graph"
    memory = remember(embeddings, final.assignment.clusters, final.centroids, by_votes, seeds[0], ballots)
    write_clusterer(new.clusterer, workspace.encoder, memory, identity, names)
    made_from = {"encoder": embedded.made_from["encoder"], "embeddings": embedded.made[f"{seeds[0]}.npy"]}
    number = parameters.number
    write_record(new.results, made, seeds, made_from, clusters=number, method=results.method)


def _choice(workspace: Workspace, parameters: EvaluateStage, drawings: Drawings) -> Choice | None:
    """How the number of clusters was proposed, if it is the one that conr finetune proposed."""
    if not workspace.proposal.exists():
        return None
    proposal = load_json(workspace.proposal, Proposal, "run conr finetune again")
    if proposal.clusters != parameters.number:
        return None
    own = Drawings(drawings.folder)
    own.add("number_of_clusters", "Criteria for the number of clusters", lambda: choose_figure(proposal))
    drawings.notes += own.notes
    text = f"{proposal.clusters} clusters were proposed by the {proposal.criterion}."
    if not proposal.clear:
        text += " No number stands out: compare others with conr clusters 2-40."
    return Choice(text, *own.captions[0]) if own.captions else Choice(text)
