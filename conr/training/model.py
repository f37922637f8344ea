"""The networks that a description names: what a weights file stores, and what a run starts from."""

from collections.abc import Mapping
from typing import Any

from conr.hosts import host_class
from conr.networks import Encoder, Network, Siamese, group_batch_norm


def build(description: Mapping[str, Any]) -> Siamese:
    """Freshly initialised networks.

    Args:
        description: the parameters of `network`, `framework`, and the pixel statistics `mean` and `std`.

    Raises:
        KeyError: a part is missing.
    """
    host = host_class(description["framework"])
    encoder = Encoder(description["architecture"], description["width"], description["stem"])
    hidden, dimension = description["hidden"], description["dimension"]
    projector = host.projector(encoder.features, hidden, dimension)
    network = Network(encoder, projector, description["mean"], description["std"])
    predictor = host.predictor(dimension, hidden, description["predictor_deviation"])
    group = description["bn_group"]
    for module in (network, predictor):
        group_batch_norm(module, group)
    return Siamese(network, predictor, host.moving_average, shuffles_target=group > 0)
