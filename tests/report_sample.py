"""A small report with everything that has to survive: markup in names, long names, an empty cluster."""

from pathlib import Path

import numpy as np

from conr.evaluation.scores import MeanStd
from conr.report.figures import save, sizes_figure
from conr.report.page import ClusterCard, Report, Sample

HOSTILE = '<script>alert("1")</script>'


def single(**scores: float) -> dict[str, MeanStd]:
    """The scores of one network."""
    return {key: MeanStd(value, None, 1) for key, value in scores.items()}


def make_sample(file: str, seed: int, label: str | None = None, next_cluster: int = 0, edge: int = 8) -> Sample:
    pixels = np.random.default_rng(seed).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    return Sample(file=file, pixels=pixels, boundary_ratio=0.25, label=label, next_cluster=next_cluster)


def make_card(
    number: int, size: int, uncertainty: float, label: str | None, share: float, typical: list[Sample]
) -> ClusterCard:
    borderline = [make_sample(f"edge-of-{number}.png", 1000 + number, next_cluster=(number + 1) % 4)]
    return ClusterCard(
        number=number,
        size=size,
        share=size / 100,
        uncertainty=uncertainty,
        label=label,
        label_share=share,
        typical=typical,
        borderline=borderline if size else [],
    )


def make_report(folder: Path) -> Report:
    """Four clusters: 0 of owls, 1 of cats with hostile and long names, 2 of digits called 7, 3 empty."""
    figure = folder / "sizes.png"
    save(sizes_figure(np.array([30, 50, 20, 0])), figure)
    long_name = "a_folder_name_without_a_space/" * 8 + "cat.jpeg"
    cats = [make_sample(HOSTILE, 20, "cat"), make_sample(long_name, 21, "owl", edge=200)]
    cards = [
        make_card(0, 30, 0.6, "owl", 0.9, [make_sample(f"owl-{i}.png", i, "owl") for i in range(12)]),
        make_card(1, 50, 0.2, "cat", 0.8, cats),
        make_card(2, 20, 0.9, "7", 0.99, [make_sample("seven-1.png", 30, "7")]),
        make_card(3, 0, 0.0, None, 0.0, []),
    ]
    return Report(
        title=f"Animals {HOSTILE} & " + "averylongword" * 12,
        facts=[("images", "100"), ("path", "/data/" + "x" * 200)],
        scores={
            "pretrained": single(acc=0.7123, silhouette=0.3, size_entropy=0.981),
            "fine-tuned (ConNR)": single(acc=0.9174, silhouette=0.25, size_entropy=0.977),
        },
        notes=[f"A note with {HOSTILE}."],
        figures=[(f"Sizes {HOSTILE}", figure)],
        clusters=cards,
    )
