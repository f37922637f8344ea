"""ConAff as plain loops over Eq. 3-7."""

import math
import operator

Matrix = list[list[float]]


def slow_affinity(
    features: Matrix,
    k1: int,
    k2: int,
    alpha: float,
    layers: int,
    symmetrize: bool,
    normalize: bool,
    reciprocal: bool = False,
) -> Matrix:
    """⟨h_i, h_j⟩ of Eq. 7 for every pair of samples, straight from Eq. 3-6; edges may have to lead both ways."""
    everyone = range(len(features))
    unit = [scaled_to_one(row) for row in features]
    similarity = [[inner(unit[i], unit[j]) for j in everyone] for i in everyone]
    ranking = [sorted(everyone, key=lambda j, i=i: (j != i, -similarity[i][j], j))[:k1] for i in everyone]

    nodes = [[0.0 for _ in everyone] for _ in everyone]
    for i in everyone:
        for j in everyone:
            nodes[i][j] = ((j in ranking[i]) + (i in ranking[j])) / 2

    for _ in range(layers if k2 > 1 else 0):
        if symmetrize:
            nodes = [[nodes[i][j] + nodes[j][i] for j in everyone] for i in everyone]
        summed = []
        for i in everyone:
            row = list(nodes[i])
            for j in ranking[i][1:k2]:
                if reciprocal and i not in ranking[j][:k2]:
                    continue
                weight = edge_weight(similarity[i][j], alpha)
                row = [value + weight * other for value, other in zip(row, nodes[j], strict=True)]
            summed.append(row)
        nodes = [scaled_to_one(row) for row in summed] if normalize else summed
    return [[inner(nodes[i], nodes[j]) for j in everyone] for i in everyone]


def slow_conaff(affinity: Matrix, k: int) -> list[list[int]]:
    """Eq. 7: the k most affine samples, the sample itself first among equals, then the lower index."""
    everyone = range(len(affinity))
    return [sorted(everyone, key=lambda j, i=i: (-affinity[i][j], j != i, j))[:k] for i in everyone]


def edge_weight(similarity: float, alpha: float) -> float:
    if similarity < 0 and alpha != int(alpha):
        return 0.0
    return similarity**alpha


def inner(a: list[float], b: list[float]) -> float:
    return sum(map(operator.mul, a, b))


def scaled_to_one(row: list[float]) -> list[float]:
    length = math.sqrt(inner(row, row))
    return [value / length for value in row] if length > 0 else row
