"""The evaluations of a run: the features before ConNR, and those after it for each seed."""

from collections.abc import Mapping
from dataclasses import dataclass

from conr.evaluation.evaluate import Evaluation
from conr.evaluation.scores import TABLE, MeanStd

PRETRAINED, FINETUNED, FROZEN = "pretrained", "fine-tuned (ConNR)", "frozen features"
TITLES = {"kmeans": "k-means", "graph": "graph"}
METHODS = {"kmeans": "k-means", "graph": "the graph of neighbors"}


@dataclass(frozen=True)
class Results:
    """What evaluate found by one method of clustering.

    Attributes:
        pretrained: the features before ConNR.
        finetuned: seed → the features after it, in the order of the parameters; the same features where ConNR was left
            out.
        method: kmeans or graph.
        refined: whether ConNR changed the features.
        other: what another method found, which is shown beside it.
    """

    pretrained: Evaluation
    finetuned: Mapping[int, Evaluation]
    method: str = "kmeans"
    refined: bool = True
    other: "Results | None" = None

    @property
    def first(self) -> Evaluation:
        """The first seed's: the one that figures, page and assignments show."""
        return next(iter(self.finetuned.values()))

    def summary(self) -> dict[str, MeanStd]:
        """Mean and standard deviation over the seeds of every score that all have."""
        return summarized([evaluation.scores for evaluation in self.finetuned.values()])

    def rows(self) -> dict[str, dict[str, MeanStd]]:
        """The rows of the table of scores by name: before ConNR, each seed where there are several, and their mean.

        Where there is another method, each row has its counterpart, and the first and the last row are of this one.
        """
        several = len(self.finetuned) > 1
        after = (FINETUNED if self.refined else FROZEN) + (", mean" if several else "")
        rows = {} if self.other is None else {self._named(after, self.other): self.other.summary()}
        if several:
            seeds = {f"seed {seed}": evaluation.scores for seed, evaluation in self.finetuned.items()}
            rows = {name: summarized([scores]) for name, scores in seeds.items()} | rows
        if self.refined:
            before = {self._named(PRETRAINED, found): found for found in (self, self.other) if found is not None}
            rows = {name: summarized([found.pretrained.scores]) for name, found in before.items()} | rows
        return rows | {self._named(after, self): self.summary()}

    def _named(self, row: str, found: "Results") -> str:
        return row if self.other is None else f"{row}, {TITLES[found.method]}"

    def metrics(self, images: int) -> dict[str, object]:
        """The content of metrics.json: means over the seeds at the top, so that one seed and several read the same."""
        before, after = self.pretrained.scores, self.summary()
        gain = {key: after[key].mean - before[key] for key in TABLE if key in after and key in before}
        found: dict[str, object] = {
            "images": images,
            **_rounded({key: value.mean for key, value in after.items()}),
            "pretrained": _rounded(before),
            "gain": _rounded(gain),
            "seeds": len(self.finetuned),
        }
        if self.other is not None:
            for results in (self, self.other):
                found[results.method] = _rounded({key: value.mean for key, value in results.summary().items()})
        if len(self.finetuned) > 1:
            found["std"] = _rounded({key: value.std for key, value in after.items() if value.std is not None})
            found["seed"] = {str(seed): _rounded(evaluation.scores) for seed, evaluation in self.finetuned.items()}
        return found


def summarized(runs: list[dict[str, float]]) -> dict[str, MeanStd]:
    """Mean and standard deviation of every score that all runs have."""
    return {key: MeanStd.of(run[key] for run in runs) for key in runs[0] if all(key in run for run in runs)}


def _rounded(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores with four decimals."""
    return {key: round(value, 4) + 0 for key, value in scores.items()}  # + 0: no −0.0
