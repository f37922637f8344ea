"""An encoder and the clusters of a run as one ONNX graph: uint8 images → cluster, confidence, novelty, embedding.

Only operators that mean the same in every opset since 11 are used, so that they fit behind an encoder of any of these.
"""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import onnx
from numpy.typing import NDArray

from conr.clustering.votes import LINKED, NEAREST, NEIGHBORS, SAME, Ballots
from conr.embedding.session import OUTPUT
from conr.errors import UserError, one_line

OLDEST_OPSET = 11
CLUSTER, CONFIDENCE, NOVELTY, EMBEDDING = OUTPUTS = ["cluster", "confidence", "novelty", "embedding"]
STORED = 100_000  # embeddings in the file, at most: 51 MB with 128 dimensions
RANKED = 5_000  # images whose distances novelty is ranked among, at most

# The graph behind the embeddings (B, D), in ONNX's text form; names that no line makes are constants.
NOVELTY_GRAPH = """
    similarities = MatMul (embeddings, stored)
    nearest, voting = TopK <axis = 1> (similarities, number)
    first_nearest = Gather <axis = 1> (nearest, first)
    compared = Min (first_nearest, same)
    closer = Less (compared, ranked)
    closer_number = Cast <to = 1> (closer)
    closer_count = MatMul (closer_number, ones_ranked)
    novelties = Div (closer_count, ranked_count)
    novelty = Reshape (novelties, flat)
    embedding = Identity (embeddings)
"""
CENTROID_GRAPH = """
    exact = Cast <to = 11> (embeddings)
    products = MatMul (exact, minus_two_centroids)
    squared = Mul (exact, exact)
    own_squares = MatMul (squared, ones_dimension)
    partial_squares = Add (products, own_squares)
    squares = Add (partial_squares, centroid_squares)
    positive = Max (squares, zero)
    exact_distances = Sqrt (positive)
    distances = Cast <to = 1> (exact_distances)
    cluster = ArgMin <axis = 1, keepdims = 0> (distances)
    zeros = MatMul (distances, zeros_count)
    infinite = Add (zeros, infinity)
    with_infinite = Concat <axis = 1> (distances, infinite)
    two_nearest, two_clusters = TopK <axis = 1, largest = 0> (with_infinite, two)
    own = Gather <axis = 1> (two_nearest, first)
    next = Gather <axis = 1> (two_nearest, second)
    ratio = Div (own, next)
    certainty = Sub (one, ratio)
    confidence = Reshape (certainty, flat)
"""
VOTE_GRAPH = """
    bounded = Min (nearest, one)
    gaps = Sub (one_and_more, bounded)
    weights = Reciprocal (gaps)
    voters = Gather <axis = 0> (stored_clusters, voting)
    voters_column = Reshape (voters, as_column)
    votes_for = Equal (voters_column, numbers)
    votes_for_number = Cast <to = 1> (votes_for)
    weights_row = Reshape (weights, as_row)
    sums = MatMul (weights_row, votes_for_number)
    unscaled = Reshape (sums, as_table)
    total = MatMul (unscaled, ones_count)
    votes = Div (unscaled, total)
"""

MOST_VOTES = "most = ArgMax <axis = 1, keepdims = 1> (votes)"
BALLOT_GRAPH = """
    reaches = Gather <axis = 0> (reach, voting)
    within = Less (reaches, nearest)
    within_number = Cast <to = 1> (within)
    within_more = Add (within_number, one)
    within_half = Mul (within_more, half)
    within_row = Reshape (within_half, as_row)
    ballots_of_voters = Gather <axis = 0> (ballots, voting)
    own_sums = MatMul (within_row, ballots_of_voters)
    nearest_two = Gather <axis = 1> (nearest, linked)
    voting_two = Gather <axis = 1> (voting, linked)
    linkings = Gather <axis = 0> (linking, voting_two)
    is_linked = Less (linkings, nearest_two)
    is_linked_number = Cast <to = 1> (is_linked)
    is_linked_row = Reshape (is_linked_number, as_linked_row)
    relayed_of_voters = Gather <axis = 0> (relayed, voting_two)
    relayed_sums = MatMul (is_linked_row, relayed_of_voters)
    row_sums = Add (own_sums, relayed_sums)
    ballot_sums = Reshape (row_sums, as_ballot)
    most = ArgMax <axis = 1, keepdims = 1> (ballot_sums)
"""
WINNER_GRAPH = """
    first_voter = Gather <axis = 1> (voters, first)
    is_other = Less (first_nearest, same)
    winner = Where (is_other, most, first_voter)
    cluster = Reshape (winner, flat)
    is_winner = Equal (winner, numbers_row)
    is_winner_number = Cast <to = 1> (is_winner)
    winner_votes = Mul (votes, is_winner_number)
    winner_vote = MatMul (winner_votes, ones_count)
    share = Min (winner_vote, one)
    confidence = Reshape (share, flat)
"""


@dataclass(frozen=True)
class Memory:
    """What a clusterer knows of the images that were clustered.

    Attributes:
        stored: (M, D) float32 unit vectors, of at most 100,000 of the images.
        clusters: (M,) int64, their clusters.
        centroids: (K, D) float32.
        ranked: (Q,) float32 ascending, the cosine of some of the stored images to the nearest other one, 1 − 1e-6 at
            most.
        by_votes: whether the neighbors' votes assign (`conr.clustering.assign_by_neighbors`), or the nearest centroid.
        ballots: of the stored images, if they assign instead of the votes.
    """

    stored: NDArray[np.float32]
    clusters: NDArray[np.int64]
    centroids: NDArray[np.float32]
    ranked: NDArray[np.float32]
    by_votes: bool
    ballots: NDArray[np.float32] | None = None

    def novelty(self, embeddings: NDArray[np.float32], margin: float = 0.0) -> NDArray[np.float32]:
        """How unlike everything that was clustered images are, from 0 to 1.

        An image's distance to the nearest stored embedding is ranked among the stored images' own distances to the
        nearest other one: novelty(x) = #{i : d_i < d(x)} / Q. An image that was clustered has 0; one with 0.99 is
        farther from the nearest stored image than 99 % of those are from their nearest neighbors. Distances count as
        equal where cosines round to 1.

        Args:
            embeddings: (B, D) unit vectors.
            margin: by which the cosine d_i counts as nearer only if it is larger than that of x by more than this.

        Returns:
            (B,) float32.
        """
        index = faiss.IndexFlatIP(self.stored.shape[1])
        index.add(self.stored)
        nearest = index.search(np.ascontiguousarray(embeddings, np.float32), 1)[0].clip(max=SAME)
        closer = len(self.ranked) - np.searchsorted(self.ranked, nearest[:, 0] + margin, side="right")
        return (closer / len(self.ranked)).astype(np.float32)


def remember(
    embeddings: NDArray[np.float32],
    clusters: NDArray[np.int64],
    centroids: NDArray[np.float32],
    by_votes: bool,
    seed: int = 0,
    ballots: NDArray[np.float32] | None = None,
) -> Memory:
    """Choose what a clusterer stores: all embeddings, or of more than 100,000 a random sample of so many.

    Args:
        embeddings: (N, D) float32 unit vectors.
        clusters: (N,) int64.
        centroids: (K, D) float32.
        by_votes: as in `Memory`.
        seed: of the samples.
        ballots: of all images, if there are any.
    """
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.permutation(len(embeddings))[:STORED])
    stored = np.ascontiguousarray(embeddings[chosen], np.float32)
    probes = np.sort(generator.permutation(len(stored))[:RANKED])
    index = faiss.IndexFlatIP(stored.shape[1])
    index.add(stored)
    nearest, found = index.search(stored[probes], min(2, len(stored)))
    nearest[found == probes[:, None]] = -np.inf  # the image itself, wherever among equal ones it is
    nearest[np.isneginf(nearest).all(1)] = 1  # there is no other
    ranked = np.sort(nearest.max(1).clip(max=SAME)).astype(np.float32)
    ballots = None if ballots is None else ballots[chosen]
    return Memory(stored, clusters[chosen], centroids, ranked, by_votes, ballots)


def compose(encoder: onnx.ModelProto, memory: Memory) -> onnx.ModelProto:
    """The encoder and what follows the embeddings, as one model; its properties are those of the encoder.

    Raises:
        UserError: the encoder's opset is so old that the two do not fit together.
    """
    if opset_of(encoder) < OLDEST_OPSET:
        try:
            properties = list(encoder.metadata_props)
            encoder = onnx.version_converter.convert_version(encoder, OLDEST_OPSET)
            encoder.metadata_props.extend(properties[len(encoder.metadata_props) :])
        except Exception as error:  # the converter raises RuntimeError and classes of its own
            raise UserError(
                f"the encoder has opset {opset_of(encoder)} and cannot be converted to {OLDEST_OPSET} "
                f"({one_line(error)}); export the network with a newer one"
            ) from error
    head = behind_embeddings(memory, opset_of(encoder), encoder.ir_version)
    head = onnx.compose.add_prefix(head, "clusterer/", rename_inputs=False, rename_outputs=False)  # names may be taken
    merged: onnx.ModelProto = onnx.compose.merge_models(encoder, head, [(OUTPUT, "embeddings")], outputs=OUTPUTS)
    return merged


def behind_embeddings(memory: Memory, opset: int, ir_version: int) -> onnx.ModelProto:
    """What maps (B, D) float32 unit vectors named "embeddings" to the outputs, as a model of its own."""
    dimension = memory.stored.shape[1]
    model = onnx.parser.parse_model(f"""
        <ir_version: {ir_version}, opset_import: ["": {opset}]>
        clusterer (float[batch, {dimension}] embeddings) => (
            int64[batch] {CLUSTER}, float[batch] {CONFIDENCE}, float[batch] {NOVELTY},
            float[batch, {dimension}] {EMBEDDING}
        ) {{ {NOVELTY_GRAPH} {_assignment(memory)} }}
    """)
    constants = _constants(memory)
    used = {name for node in model.graph.node for name in node.input}
    made = [onnx.numpy_helper.from_array(np.ascontiguousarray(constants[name]), name) for name in used & set(constants)]
    model.graph.initializer.extend(sorted(made, key=lambda constant: str(constant.name)))
    return model


def _assignment(memory: Memory) -> str:
    if not memory.by_votes:
        return CENTROID_GRAPH
    return VOTE_GRAPH + (MOST_VOTES if memory.ballots is None else BALLOT_GRAPH) + WINNER_GRAPH


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators in a model."""
    return next(int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx"))


def _constants(memory: Memory) -> dict[str, NDArray[Any]]:
    count = len(memory.centroids)
    voters = min(NEIGHBORS, len(memory.stored)) if memory.by_votes else 1
    centroids = memory.centroids.astype(np.float64)
    ballots = Ballots.of(np.zeros((1, 2), np.float32) if memory.ballots is None else memory.ballots)
    linked = min(LINKED, voters)
    return {
        "ballots": ballots.own,
        "relayed": ballots.relayed,
        "reach": ballots.reach,
        "linking": ballots.linking,
        "linked": np.arange(linked),
        "as_linked_row": np.array([0, 1, linked]),
        "as_ballot": np.array([0, ballots.own.shape[1]]),
        "half": np.array([0.5], np.float32),
        "stored": memory.stored.T,
        "number": np.array([voters]),
        "first": np.array([0]),
        "second": np.array([1]),
        "two": np.array([2]),
        "flat": np.array([-1]),
        "same": np.array([SAME], np.float32),
        "ranked": memory.ranked[None],
        "ones_ranked": np.ones((len(memory.ranked), 1), np.float32),
        "ranked_count": np.array([len(memory.ranked)], np.float32),
        "minus_two_centroids": -2 * centroids.T,
        "centroid_squares": (centroids**2).sum(1)[None],
        "ones_dimension": np.ones((centroids.shape[1], 1)),
        "zero": np.zeros(1),
        "zeros_count": np.zeros((count, 1), np.float32),
        "infinity": np.array([np.inf], np.float32),
        "one": np.ones(1, np.float32),
        "one_and_more": np.array([1 + NEAREST], np.float32),
        "stored_clusters": memory.clusters,
        "numbers": np.arange(count)[None, None],
        "numbers_row": np.arange(count)[None],
        "ones_count": np.ones((count, 1), np.float32),
        "as_column": np.array([0, voters, 1]),
        "as_row": np.array([0, 1, voters]),
        "as_table": np.array([0, count]),
    }
