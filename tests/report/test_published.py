"""The published numbers are those of their sources, and stand only beside runs that they can be compared with."""

import pytest

from conr.report.published import Benchmark, Published, beside, load


def benchmark(dataset: str, images: int, image_size: int, clusters: int) -> Benchmark:
    return Benchmark(
        dataset=dataset, protocol="all", images=images, image_size=image_size, imbalance=1.0, clusters=clusters
    )


CIFAR10 = benchmark("cifar10", 60_000, 32, 10)
RESULTS = load()


def results(dataset: str, place: str) -> list[Published]:
    return [result for result in RESULTS if (result.dataset, result.place) == (dataset, place)]


def scores(method: str, dataset: str, place: str) -> tuple[float | None, float | None, float | None]:
    (result,) = [result for result in results(dataset, place) if result.method == method]
    return result.nmi, result.acc, result.ari


@pytest.mark.parametrize(
    ("dataset", "methods"), [("cifar10", 15), ("cifar20", 15), ("stl10", 13), ("imagenet10", 11), ("imagenet-dogs", 12)]
)
def test_table_1_is_whole(dataset: str, methods: int) -> None:
    assert len(results(dataset, "Table 1")) == methods  # those with "-" for all three scores have no row


@pytest.mark.parametrize(
    ("method", "dataset", "expected"),
    [
        ("IIC", "cifar10", (51.3, 61.7, 41.1)),
        ("IIC", "cifar20", (None, 25.7, None)),
        ("DCCM", "imagenet10", (60.8, 71.0, 55.5)),
        ("PICA", "imagenet-dogs", (33.6, 32.4, 17.9)),
        ("SCAN", "stl10", (69.8, 80.9, 64.6)),
        ("MiCe", "imagenet-dogs", (42.3, 43.9, 28.6)),
        ("TCC", "cifar20", (47.9, 49.1, 31.2)),
        ("ProPos", "imagenet-dogs", (73.7, 77.5, 67.5)),
        ("DivClust", "imagenet10", (89.1, 93.6, 87.8)),
        ("BYOL", "stl10", (71.3, 82.5, 65.7)),
        ("ConNR", "cifar10", (86.7, 93.2, 86.1)),
        ("ConNR", "cifar20", (60.4, 60.4, 44.3)),
        ("ConNR", "stl10", (85.2, 92.6, 84.6)),
        ("ConNR", "imagenet10", (91.1, 96.4, 92.2)),
        ("ConNR", "imagenet-dogs", (74.4, 79.4, 66.7)),
    ],
)
def test_table_1_holds_the_papers_numbers(
    method: str, dataset: str, expected: tuple[float | None, float | None, float | None]
) -> None:
    assert scores(method, dataset, "Table 1") == expected


def test_table_2_holds_the_papers_numbers() -> None:
    assert {result.method: (result.nmi, result.acc, result.ari) for result in results("cifar10", "Table 2")} == {
        "InC (BYOL)": (79.4, 87.8, 76.6),
        "InC + LN": (81.9, 89.6, 78.7),
        "InC + ConAff": (84.6, 91.1, 82.4),
        "InC + LN + OBD": (83.9, 91.1, 82.3),
        "InC + LN + OBD + PR": (84.8, 91.6, 84.2),
        "InC + ConAff + OBD": (85.7, 92.5, 85.1),
        "InC + ConAff + OBD + PR (ConNR)": (86.7, 93.2, 86.1),
    }


def test_re_runs_say_how_many_seeds_and_their_std() -> None:
    found = {r.dataset: (r.acc, r.acc_std, r.seeds) for r in RESULTS if r.method == "ConNR, re-run"}
    assert found == {
        "cifar10": (92.6, 1.0, 5),
        "cifar20": (59.5, 0.4, 5),
        "stl10": (91.7, 1.1, 5),
        "imagenet10": (96.3, 0.2, 5),
        "imagenet-dogs": (78.2, 2.3, 5),
    }
    assert [r.acc for r in RESULTS if r.method == "BYOL, re-run"] == [86.6, 51.8, 85.0, 94.3, 72.8]


def test_every_result_has_a_score_a_source_and_a_place() -> None:
    for result in RESULTS:
        values = [value for value in (result.nmi, result.acc, result.ari) if value is not None]
        assert values
        assert all(0 < value < 100 for value in values)
        assert result.source
        assert result.place
    assert len(set(RESULTS)) == len(RESULTS) == 91


@pytest.mark.parametrize(
    ("run", "count"),
    [
        (CIFAR10, 26),
        (benchmark("cifar20", 60_000, 32, 20), 19),
        (benchmark("stl10", 13_000, 96, 10), 15),
        (benchmark("imagenet10", 13_000, 96, 10), 13),
        (benchmark("imagenet-dogs", 19_500, 224, 15), 14),
    ],
)
def test_the_papers_protocol_is_comparable(run: Benchmark, count: int) -> None:
    rows, differences = beside(run)
    assert len(rows) == count
    assert {row.dataset for row in rows} == {run.dataset}
    assert {row.imbalance for row in rows} == {1.0}
    assert differences == []


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        ({"images": 59_998}, ["images: 59,998 here, 60,000 in the paper"]),
        ({"image_size": 16}, ["image size: 16×16 here, 32×32 in the paper"]),
        (
            {"protocol": "held-out", "images": 10_000},
            ["protocol: held-out here, all in the paper", "images: 10,000 here, 60,000 in the paper"],
        ),
        ({"clusters": 30}, ["clusters: 30 here, 10 in the paper"]),
        ({"imbalance": 50.0}, ["imbalance: 50 here, none in the paper"]),
        (
            {"imbalance": 10.0, "images": 24_000},
            [
                "protocol: all here, not stated in the paper",
                "images: 24,000 here, not stated in the paper",
                "image size: 32×32 here, not stated in the paper",
            ],
        ),
    ],
)
def test_what_differs_is_said_in_words(change: dict[str, object], differences: list[str]) -> None:
    assert beside(CIFAR10.model_copy(update=change)) == ([], differences)


@pytest.mark.parametrize("dataset", ["digits", "folder"])
def test_nothing_is_published_for_other_data(dataset: str) -> None:
    assert beside(CIFAR10.model_copy(update={"dataset": dataset})) == ([], [])
