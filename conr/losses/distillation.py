"""The loss of cluster heads that learn from their moving average (TEMI).

Adaloglou, Michels, Kalisch, Kollmann, "Exploring the Limits of Deep Image Clustering using Pretrained Models", BMVC
2023.
"""

from torch import Tensor

TINY = 1e-12  # keeps the gradient of a power finite where a probability underflows


def distillation_loss(student: Tensor, teacher: Tensor, prior: Tensor, beta: float) -> Tensor:
    """Minus the weighted pointwise mutual information of the clusters of paired samples, both directions averaged.

    Of a pair (x, x') and a head: −log Σ_c (q(c|x) · p(c|x'))^β / p(c), with the student's q, the teacher's p and its
    prior p(c). A pair weighs Σ_c p(c|x) · p(c|x'), the mean over the heads: the teacher's probability that both
    belong to one cluster.

    Args:
        student, teacher: (2, B, L, K) probabilities of the two samples of each pair, the teacher's without gradient.
        prior: (L, K) the teacher's mean probability of each cluster.
        beta: β in (0.5, 1]; smaller values make clusters more equal in size.

    Returns:
        A scalar, the mean over pairs and heads.
    """
    products = (student * teacher.flip(0)).clamp(min=TINY) ** beta
    information = (products / prior).sum(3).log().mean(0)
    weights = (teacher[0] * teacher[1]).sum(2).mean(1, keepdim=True)
    return -(weights * information).mean()
