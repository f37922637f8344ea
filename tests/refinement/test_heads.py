"""Heads on frozen features: what they learn, that runs repeat and resume, and what is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from conr.clustering.kmeans import kmeans
from conr.errors import UserError
from conr.models.cluster_heads import Head, HeadSpec, load_head, save_head
from conr.neighbors.settings import ConAff
from conr.observer import Observer
from conr.refinement.heads import HeadSettings, refine_heads
from conr.training.checkpoints import Checkpoint

GROUPS, SIZE, DIMENSION = 4, 40, 16
NEIGHBORHOOD = ConAff(k1=10, k2=3)
SHORT = HeadSettings(heads=4, epochs=3, batch_size=64)

Features = NDArray[np.float32]


def noisy(seed: int, level: float) -> Features:
    """Four groups of 40 unit vectors."""
    noise = np.random.default_rng(seed).normal(size=(GROUPS * SIZE, DIMENSION)) / DIMENSION**0.5
    features = np.eye(GROUPS, DIMENSION).repeat(SIZE, axis=0) + level * noise
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def views() -> Features:
    return np.stack([noisy(seed, 0.6) for seed in (1, 2)])


def embed(head: Head, features: Features) -> Features:
    with torch.no_grad():
        found: Features = head(torch.from_numpy(features)).numpy()
    return found


class Stop(Observer):
    """Interrupts after some epochs."""

    def __init__(self, after: int) -> None:
        self.after = after

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        if row["epoch"] == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("views", [None, views()], ids=["clean", "views"])
def test_k_means_of_the_refined_features_finds_the_groups(views: Features | None) -> None:
    features = noisy(0, 0.5)
    head, log = refine_heads(features, views, GROUPS, NEIGHBORHOOD, replace(SHORT, epochs=6))
    found = kmeans(embed(head, features), GROUPS, seed=0, n_init=10).assignments
    assert len({tuple(sorted(set(found[start : start + SIZE].tolist()))) for start in range(0, 160, SIZE)}) == GROUPS
    assert [row["epoch"] for row in log] == [1, 2, 3, 4, 5, 6]
    assert log[-1]["loss"] < log[0]["loss"]  # type: ignore[operator]
    assert sum(map(int, str(log[-1]["cluster_sizes"]).split())) == GROUPS * SIZE


def test_the_vectors_of_a_head_have_unit_length_and_their_products_are_mean_coefficients() -> None:
    head = Head(HeadSpec(inputs=DIMENSION, clusters=3, heads=2), torch.Generator().manual_seed(0))
    features = torch.from_numpy(noisy(0, 0.5))[:5]
    expected = torch.zeros(5, 5)
    for weight in head.weight.detach():
        roots = F.softmax(features @ F.normalize(weight, dim=0) / 0.1, dim=1).sqrt()
        expected += roots @ roots.T / 2
    vectors = torch.from_numpy(embed(head, features.numpy()))
    torch.testing.assert_close(vectors @ vectors.T, expected)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))


def test_equal_seeds_give_equal_heads_and_others_do_not() -> None:
    weights = [
        refine_heads(noisy(0, 0.5), views(), GROUPS, NEIGHBORHOOD, replace(SHORT, seed=seed))[0].weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    features, checkpoint = noisy(0, 0.5), Checkpoint(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        refine_heads(features, views(), GROUPS, NEIGHBORHOOD, SHORT, checkpoint=checkpoint, observer=Stop(1))
    assert checkpoint.epochs == 1
    resumed, log = refine_heads(features, views(), GROUPS, NEIGHBORHOOD, SHORT, checkpoint=checkpoint)
    whole, expected = refine_heads(features, views(), GROUPS, NEIGHBORHOOD, SHORT)
    assert torch.equal(resumed.weight, whole.weight)
    assert [row["loss"] for row in log] == [row["loss"] for row in expected]


def test_two_samples_are_enough() -> None:
    settings = replace(SHORT, epochs=1)
    head, _ = refine_heads(np.eye(2, 3, dtype=np.float32), None, 2, ConAff(k1=2, k2=1), settings)
    assert embed(head, np.eye(2, 3, dtype=np.float32)).shape == (2, 8)


def test_a_saved_head_comes_back_with_its_spec_and_gives_equal_vectors(tmp_path: Path) -> None:
    head = Head(HeadSpec(inputs=DIMENSION, clusters=3, heads=2), torch.Generator().manual_seed(0))
    save_head(tmp_path / "deeper" / "head.safetensors", head)
    loaded = load_head(tmp_path / "deeper" / "head.safetensors")
    assert loaded.spec == head.spec
    assert np.array_equal(embed(loaded, noisy(0, 0.5)), embed(head, noisy(0, 0.5)))


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "head.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        load_head(path)


def test_a_head_exported_to_onnx_gives_the_same_vectors(tmp_path: Path) -> None:
    head = Head(HeadSpec(inputs=DIMENSION, clusters=3, heads=2), torch.Generator().manual_seed(0)).eval()
    features = noisy(0, 0.5)
    program = torch.onnx.export(
        head,
        (torch.from_numpy(features[:2]),),
        input_names=["features"],
        dynamic_shapes={"features": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(tmp_path / "head.onnx")
    (found,) = onnxruntime.InferenceSession(tmp_path / "head.onnx").run(None, {"features": features})
    np.testing.assert_allclose(found, embed(head, features), atol=1e-6)


@pytest.mark.parametrize(
    ("features", "views", "clusters", "message"),
    [
        (noisy(0, 0.5)[:1], None, 2, "clusters = 2"),
        (noisy(0, 0.5), None, 1, "clusters = 1"),
        (noisy(0, 0.5), None, 161, "clusters = 161"),
        (noisy(0, 0.5), noisy(0, 0.5), 4, r"shape \(V, 160, 16\)"),
        (noisy(0, 0.5), views()[:0], 4, r"shape \(V, 160, 16\)"),
        (noisy(0, 0.5), views()[:, :9], 4, r"shape \(V, 160, 16\)"),
    ],
)
def test_what_cannot_be_trained_on_is_named(
    features: Features, views: Features | None, clusters: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        refine_heads(features, views, clusters, NEIGHBORHOOD, SHORT)


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    spoiled = views()
    spoiled[0, :] = np.nan
    with pytest.raises(UserError, match="epoch 1"):
        refine_heads(noisy(0, 0.5), spoiled, GROUPS, NEIGHBORHOOD, SHORT)
