"""The evaluations of a run: the features before ConNR, and those after it for each seed."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from conr.evaluation import Evaluation

GAINS = ("acc", "nmi", "ari", "silhouette", "balance")  # scores of which the change through ConNR means something


@dataclass(frozen=True)
class Results:
    """What evaluate found.

    Attributes:
        pretrained: the features before ConNR.
        finetuned: seed → the features after it, in the order of the parameters.
    """

    pretrained: Evaluation
    finetuned: Mapping[int, Evaluation]

    @property
    def first(self) -> Evaluation:
        """The first seed's: the one that figures, page and assignments show."""
        return next(iter(self.finetuned.values()))

    def mean(self) -> dict[str, float]:
        """Mean of every score over the seeds."""
        return {name: statistics.mean(values) for name, values in self._scores().items()}

    def deviation(self) -> dict[str, float]:
        """Sample standard deviation of every score; empty with one seed, which has none."""
        if len(self.finetuned) == 1:
            return {}
        return {name: statistics.stdev(values) for name, values in self._scores().items()}

    def metrics(self, images: int) -> dict[str, object]:
        """What metrics.json says: means over the seeds at the top, so that one seed and several read the same."""
        before, after = self.pretrained.scores, self.mean()
        found: dict[str, object] = {
            "images": images,
            **_rounded(after),
            "pretrained": _rounded(before),
            "gain": _rounded({name: after[name] - before[name] for name in GAINS if name in after and name in before}),
            "seeds": len(self.finetuned),
        }
        if len(self.finetuned) > 1:
            found["deviation"] = _rounded(self.deviation())
            found["seed"] = {str(seed): _rounded(evaluation.scores) for seed, evaluation in self.finetuned.items()}
        return found

    def _scores(self) -> dict[str, list[float]]:
        """Values of every score that all seeds have."""
        every = [evaluation.scores for evaluation in self.finetuned.values()]
        return {name: [scores[name] for scores in every] for name in every[0] if all(name in s for s in every)}


def _rounded(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores with the digits that mean something."""
    return {name: round(value, 4) for name, value in scores.items()}
