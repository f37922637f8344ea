"""The two networks of BYOL and ConNR: online (with a predictor), and target, its moving average."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conr.models.batch_norm import separate_views
from conr.models.resnet import Encoder
from conr.models.world import World

Pair = tuple[Tensor, Tensor]  # one of each view


def to_pixels(images: Tensor) -> Tensor:
    """Turn (B, H, W, 3) uint8 into (B, 3, H, W) float32 in [0, 1], without a change of memory layout."""
    return images.permute(0, 3, 1, 2).float() / 255


class Network(nn.Module):
    """Encoder and projector: F_o or F_t of the paper. It carries the pixel statistics that its images need.

    Args:
        encoder: from images to pooled features.
        projector: from pooled features to the features that are clustered.
        mean, std: per channel, of pixels scaled to [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        mean: Iterable[float] = (0.5, 0.5, 0.5),
        std: Iterable[float] = (0.25, 0.25, 0.25),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) images with pixels in [0, 1] to (B, D) features, not yet normalized."""
        return self.features(self.standardize(images))

    def standardize(self, images: Tensor) -> Tensor:
        """What the encoder takes: pixels with the statistics removed, channels last, in autocast's precision."""
        standardized = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        kind = images.device.type
        return standardized.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else standardized

    def features(self, standardized: Tensor) -> Tensor:
        """Map (B, 3, H, W) standardized images to (B, D) features, not yet normalized."""
        features: Tensor = self.projector(self.encoder(standardized))
        return features


@dataclass(frozen=True)
class Outputs:
    """What the networks make of two views of a batch: for each view a (B, D) tensor.

    Of several processes that train together, each has the outputs of the whole batch.

    The losses compare directions. Each pair is normalized once, here, when a loss first asks for it.

    Attributes:
        projections: online features F_o(v).
        predictions: online predictions q(F_o(v)).
        targets: target features F_t(v), without gradient.
    """

    projections: Pair
    predictions: Pair
    targets: Pair

    @cached_property
    def unit_projections(self) -> Pair:
        """Projections of unit length, float32."""
        return _unit(self.projections)

    @cached_property
    def unit_predictions(self) -> Pair:
        """Predictions of unit length, float32."""
        return _unit(self.predictions)

    @cached_property
    def unit_targets(self) -> Pair:
        """Targets of unit length, float32, without gradient."""
        return _unit(self.targets)


@dataclass(frozen=True)
class Networks:
    """What a step computes outputs with: the networks as they are, or compiled.

    Attributes:
        online: (B, 3, H, W) standardized images → (B, D) features F_o(v).
        predictor: these features → (B, D) predictions.
        target: standardized images → (B, D) features F_t(v).
    """

    online: Callable[[Tensor], Tensor]
    predictor: Callable[[Tensor], Tensor]
    target: Callable[[Tensor], Tensor]


class Siamese(nn.Module):
    """The two networks of BYOL: online (with a predictor) and target, which follows it and takes no gradient.

    Args:
        network: the online network; the target starts as its copy.
        predictor: from features to predictions.
        moving_average: the target is a moving average; if False it is the online network itself (SimSiam).
        shuffles_target: the target sees the samples of a batch in another order than the online network, so that
            groups of batch-norm statistics differ. Outputs keep the order of the batch.
    """

    def __init__(
        self, network: Network, predictor: nn.Module, moving_average: bool = True, shuffles_target: bool = False
    ) -> None:
        super().__init__()
        self.online = network
        self.predictor = predictor
        self.target = copy.deepcopy(network).requires_grad_(False)
        self.moving_average = moving_average
        self.shuffles_target = shuffles_target
        self.joins_views = False

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        generator: torch.Generator,
        noise_std: float = 0.0,
        networks: Networks | None = None,
    ) -> Outputs:
        """Features, predictions and targets of two views.

        Random numbers are drawn for the whole batch, so that they do not depend on the number of processes.

        Args:
            first, second: (B, 3, H, W) in [0, 1]; of several processes each has its own rows (`World.rows`).
            generator: of the noise and of the target's order.
            noise_std: standard deviation of what is added to the online features before the predictor.
            networks: another way to compute with `self.networks`.
        """
        networks = networks or self.networks
        views = self.online.standardize(first), self.online.standardize(second)
        world = World.current()
        projections = self._of_both(networks.online, views)
        inputs = projections
        if noise_std != 0:
            first_noisy = _with_noise(projections[0], noise_std, generator, world)
            inputs = first_noisy, _with_noise(projections[1], noise_std, generator, world)
        predictions = self._of_both(networks.predictor, inputs)
        if not self.moving_average:
            targets = projections[0].detach(), projections[1].detach()
        else:
            with torch.no_grad():
                targets = self._targets(networks.target, views, generator, world)
        return _of_all(world, projections, predictions, targets)

    @property
    def networks(self) -> Networks:
        """The networks as they are."""
        return Networks(self.online.features, self.predictor, self.target.features)

    @torch.no_grad()
    def project(self, images: Tensor) -> Tensor:
        """Target features F_t(v), (B, D), of images (B, 3, H, W) in [0, 1]; no gradient."""
        features: Tensor = self.target(images)
        return features

    def _targets(
        self, target: Callable[[Tensor], Tensor], views: Pair, generator: torch.Generator, world: World
    ) -> Pair:
        if not self.shuffles_target:
            return self._of_both(target, views)
        order = torch.randperm(len(views[0]) * world.size, device=views[0].device, generator=generator)
        first, second = self._of_both(target, (_in_order(views[0], order, world), _in_order(views[1], order, world)))
        return _back(first, order, world), _back(second, order, world)

    def _of_both(self, network: Callable[[Tensor], Tensor], views: Pair) -> Pair:
        """What a network makes of both views."""
        if not self.joins_views:
            return network(views[0]), network(views[1])
        first, second = network(torch.cat(views)).chunk(2)
        return first, second

    def join_views(self, joined: bool) -> None:
        """Say whether both views go through each network as one batch in training.

        Statistics of batch normalization are those of each view either way, so outputs are equal up to rounding.
        """
        self.joins_views = joined
        separate_views(self, 2 if joined else 1)

    @torch.no_grad()
    def update_target(self, weight: Tensor) -> None:
        """Move every target parameter θ' to (1 − weight) · θ' + weight · θ, with a () float32 weight.

        A moving average does not change batch-norm statistics: the target collects its own from the views it sees. A
        target that is the online network copies everything.
        """
        if not self.moving_average:
            theirs, ours = (list(network.state_dict().values()) for network in (self.online, self.target))
            for kind in {tensor.dtype for tensor in ours}:  # a list of one type is copied at once
                chosen = [number for number, tensor in enumerate(ours) if tensor.dtype == kind]
                torch._foreach_copy_([ours[number] for number in chosen], [theirs[number] for number in chosen])
            return
        target = [parameter.data for parameter in self.target.parameters()]
        online = [parameter.data for parameter in self.online.parameters()]
        torch._foreach_lerp_(target, online, [weight] * len(target))


def _unit(pair: Pair) -> Pair:
    return F.normalize(pair[0].float(), dim=1), F.normalize(pair[1].float(), dim=1)


def _in_order(images: Tensor, order: Tensor, world: World) -> Tensor:
    """This process's rows, after those of all are put in an order."""
    return world.rows(world.gather(images)[order]).contiguous(memory_format=torch.channels_last)


def _back(features: Tensor, order: Tensor, world: World) -> Tensor:
    """Undo an order of the rows."""
    features = world.gather(features)
    return world.rows(torch.empty_like(features).index_copy_(0, order, features))


def _with_noise(features: Tensor, std: float, generator: torch.Generator, world: World) -> Tensor:
    count, dimension = features.shape
    noise = torch.randn((count * world.size, dimension), device=features.device, generator=generator)
    return features + std * world.rows(noise)


def _of_all(world: World, projections: Pair, predictions: Pair, targets: Pair) -> Outputs:
    """The outputs of all processes, gathered at once."""
    if world.size == 1:
        return Outputs(projections, predictions, targets)
    every = torch.stack((*projections, *predictions, *targets), dim=1)
    projection, other, prediction, another, target, last = world.gather(every).unbind(1)
    return Outputs((projection, other), (prediction, another), (target.detach(), last.detach()))
