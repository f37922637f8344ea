"""A small report with everything that has to survive: markup in names, long names, an empty cluster."""

import numpy as np
import pytest

from conr.report.figures import cluster_sizes
from conr.report.page import ClusterCard, Report, Sample

HOSTILE = '<script>alert("1")</script>'


def make_sample(file: str, seed: int, label: str | None = None, next_cluster: int = 0, edge: int = 8) -> Sample:
    pixels = np.random.default_rng(seed).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    return Sample(file=file, pixels=pixels, boundary_ratio=0.25, label=label, next_cluster=next_cluster)


def make_card(number: int, size: int, doubt: float, label: str | None, typical: list[Sample]) -> ClusterCard:
    borderline = [make_sample(f"edge-of-{number}.png", 1000 + number, next_cluster=(number + 1) % 4)]
    return ClusterCard(number, size, size / 100, doubt, label, typical, borderline if size else [])


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Four clusters: 0 of owls, 1 of cats with hostile and long names, 2 of digits called 7, 3 empty."""
    figure = tmp_path_factory.mktemp("figures") / "sizes.png"
    cluster_sizes(np.array([30, 50, 20, 0]), figure)
    long_name = "a_folder_name_without_a_space/" * 8 + "cat.jpeg"
    cards = [
        make_card(0, 30, 0.6, "owl (90 %)", [make_sample(f"owl-{i}.png", i, "owl") for i in range(12)]),
        make_card(
            1, 50, 0.2, "cat (80 %)", [make_sample(HOSTILE, 20, "cat"), make_sample(long_name, 21, "owl", edge=200)]
        ),
        make_card(2, 20, 0.9, "7 (99 %)", [make_sample("seven-1.png", 30, "7")]),
        make_card(3, 0, 0.0, None, []),
    ]
    return Report(
        title=f"Animals {HOSTILE} & " + "averylongword" * 12,
        facts=[("images", "100"), ("path", "/data/" + "x" * 200)],
        score_rows=[
            {"features": "pretrained (BYOL)", "ACC": "0.712", "silhouette": "0.300", "balance": "0.981"},
            {"features": "fine-tuned (ConNR)", "ACC": "0.917", "silhouette": "0.250", "balance": "0.977"},
        ],
        notes=[f"A note with {HOSTILE}."],
        figures=[(f"Sizes {HOSTILE}", figure)],
        clusters=cards,
    )
