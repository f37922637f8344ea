"""The choice of a device, and the features of images that are not augmented."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from conr.errors import UserError
from conr.models.heads import mlp
from conr.models.resnet import Encoder
from conr.models.siamese import Network, to_pixels
from conr.training import compute as module
from conr.training.compute import Compute, clean_features, machine

PLAIN = Compute(torch.device("cpu"), torch.float32)


@pytest.fixture
def network() -> Network:
    """In training mode, with batch-norm statistics of its own."""
    torch.manual_seed(0)
    network = Network(Encoder("resnet18", 4, "cifar"), mlp(32, 16, 8))
    network(torch.rand(16, 3, 8, 8))
    return network


def random_images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def test_clean_features_are_unit_outputs_in_evaluation_mode(network: Network) -> None:
    images = torch.from_numpy(random_images(20))
    features = clean_features(network, images, PLAIN)
    with torch.no_grad():
        expected = F.normalize(network.eval()(to_pixels(images)), dim=1)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(20))
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("training", [True, False])
def test_clean_features_leave_the_network_as_it_was(network: Network, training: bool) -> None:
    network.train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    clean_features(network, torch.from_numpy(random_images(20)), PLAIN)
    assert network.training is network.encoder.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_clean_features_keep_the_order_of_images_over_several_batches(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.from_numpy(random_images(20))
    at_once = clean_features(network, images, PLAIN)
    monkeypatch.setattr(module, "FEATURE_BATCH", 7)
    in_parts = clean_features(network, images, PLAIN)
    torch.testing.assert_close(in_parts, at_once, rtol=0, atol=1e-5)


def test_broken_weights_are_an_error_that_says_what_to_do(network: Network) -> None:
    with torch.no_grad():
        network.projector[3].bias.fill_(torch.nan)
    with pytest.raises(UserError, match=r"not finite .*optimizer\.base_learning_rate.* precision "):
        clean_features(network, torch.from_numpy(random_images(4)), PLAIN)


def test_bfloat16_features_are_close_to_those_in_float32(network: Network) -> None:
    images = torch.from_numpy(random_images(20))
    exact = clean_features(network, images, PLAIN)
    half = Compute.choose("cpu", "bfloat16")
    assert half.precision == torch.bfloat16
    rounded = clean_features(network, images, half)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.05)


def test_explicit_choices_are_taken() -> None:
    assert Compute.choose("cpu", "float32") == PLAIN


def test_automatic_precision_is_one_of_the_two() -> None:
    assert Compute.choose("cpu", "auto").precision in (torch.float32, torch.bfloat16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_an_error_only_if_asked_for() -> None:
    assert Compute.choose("auto", "float32").device.type == "cpu"
    with pytest.raises(UserError, match=r"^device: cuda .*--device"):
        Compute.choose("cuda", "float32")


def test_batch_holds_the_images_at_the_indices() -> None:
    images = random_images(10)
    loaded = PLAIN.load_images(images)
    indices = torch.tensor([7, 0, 7])
    assert np.array_equal(PLAIN.batch(loaded, indices).numpy(), images[[7, 0, 7]])


def test_the_machine_is_named_with_its_software() -> None:
    described = machine(torch.device("cpu"))
    assert f", threads: {torch.get_num_threads()}, torch {torch.__version__}, Python 3." in described
    assert not described.startswith(",")


def test_float32_is_not_tf32_on_a_gpu() -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    Compute.choose("cpu", "float32")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_a_gpu_embeds_many_small_images_at_a_time_and_fewer_large_ones() -> None:
    gpu = Compute(torch.device("cuda"), torch.bfloat16)
    sizes = [gpu.feature_batch(torch.zeros(1, size, size, 3)) for size in (32, 224, 4096)]
    assert sizes == [8192, 167, 1]
    assert PLAIN.feature_batch(torch.zeros(1, 224, 224, 3)) == 1024
