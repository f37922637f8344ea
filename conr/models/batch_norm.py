"""Batch normalization by statistics of each view in a batch, of groups of samples, or of several processes' samples."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from conr.models.world import World


class SeparateBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization of batches that hold several views; in training each view has statistics of its own.

    Running statistics are updated by one view after the other.

    Args:
        plain: the layer to replace; its parameters and buffers are shared.

    Attributes:
        views: how many views of equal size a batch holds, one after the other.
    """

    def __init__(self, plain: nn.modules.batchnorm._BatchNorm) -> None:
        settings = plain.eps, plain.momentum, plain.affine, plain.track_running_stats
        super().__init__(plain.num_features, *settings, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        for name, buffer in plain.named_buffers():
            self.register_buffer(name, buffer)
        self.views = 1

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (B, C) or (B, C, H, W)."""
        if not self.training:
            return super().forward(input)
        normalized = [self.normalize(part) for view in input.chunk(self.views) for part in self.split(view)]
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += len(normalized)
        return normalized[0] if len(normalized) == 1 else torch.cat(normalized)

    def split(self, view: Tensor) -> Sequence[Tensor]:
        """The samples of a view in parts that share statistics."""
        return [view]

    def normalize(self, part: Tensor) -> Tensor:
        """Normalize samples by their own statistics, and update the running ones."""
        assert self.momentum is not None
        return F.batch_norm(
            part, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
        )

    def track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics, as plain batch normalization, with (C,) mean and unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any input: the layer that this one replaces was made for it."""


class GroupedBatchNorm(SeparateBatchNorm):
    """Batch normalization whose statistics in training are those of groups of samples, as on one of several GPUs.

    Running statistics are updated by each group in turn, of several processes by those of all. In evaluation it is
    plain batch normalization.

    Args:
        plain: the layer to replace; its parameters and buffers are shared.
        group: samples that share statistics, in the order of a view; those of a group are in one process.
    """

    def __init__(self, plain: nn.modules.batchnorm._BatchNorm, group: int) -> None:
        super().__init__(plain)
        self.group = group

    def split(self, view: Tensor) -> Sequence[Tensor]:
        """The groups of a view."""
        return torch.split(view, self.group)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize this process's rows of (B, C) or (B, C, H, W)."""
        world = World.current()
        if not self.training or world.size == 1:
            return super().forward(input)
        parts = [part for view in input.chunk(self.views) for part in self.split(view)]
        own = input.new_zeros(len(parts), 2, self.num_features, dtype=_wide(input).dtype)
        normalized = [  # a momentum of 1 leaves the statistics of the group
            F.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
            for part, (mean, variance) in zip(parts, own, strict=True)
        ]
        for of_view in world.gather(own.view(1, self.views, -1, 2, self.num_features)).unbind(1):
            for mean, variance in of_view.flatten(0, 1):
                self.track(mean, variance)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += len(parts) * world.size
        return torch.cat(normalized)


class SynchronizedBatchNorm(SeparateBatchNorm):
    """Batch normalization by the statistics of the samples of all processes, which have equally many each.

    PyTorch's own (`torch.nn.SyncBatchNorm`) is for GPUs only.
    """

    def normalize(self, part: Tensor) -> Tensor:
        """Normalize this process's samples, and update the running statistics."""
        world = World.current()
        if world.size == 1:
            return super().normalize(part)
        normalized, mean, variance = _Synchronized.apply(part, self.weight, self.bias, self.eps, world)
        with torch.no_grad():
            count = world.size * part.numel() // self.num_features
            self.track(mean, variance * (count / (count - 1)))
        return normalized  # type: ignore[no-any-return]


class _Synchronized(torch.autograd.Function):
    """Ioffe & Szegedy, "Batch Normalization", ICML 2015; forward one gathering of statistics, backward one sum."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, world: World
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the normalized input and the mean and biased variance of all samples, (C,) each."""
        variances, means = torch.var_mean(_wide(input), _all_but_channels(input), correction=0)
        variances, means = world.gather(torch.stack((variances, means)).unsqueeze(0)).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        ctx.save_for_backward(input, weight, mean, (variance + eps).rsqrt())
        ctx.size = world.size
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(input, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of this process's rows, and its shares of those of weight and bias."""
        input, weight, mean, scale = ctx.saved_tensors
        shape, axes = (1, -1, *(1,) * (input.ndim - 2)), _all_but_channels(input)
        standardized = (_wide(input) - mean.view(shape)) * scale.view(shape)
        gradient = _wide(gradient)
        of_bias, of_weight = gradient.sum(axes), (gradient * standardized).sum(axes)
        sums = torch.stack((of_bias, of_weight))
        dist.all_reduce(sums)
        mean_gradient, mean_product = (sums / (ctx.size * input.numel() // input.shape[1])).unbind(0)
        of_input = gradient - mean_gradient.view(shape) - standardized * mean_product.view(shape)
        of_input *= (scale if weight is None else scale * weight).view(shape)
        if weight is None:
            return of_input.to(input.dtype), None, None, None, None
        return of_input.to(input.dtype), of_weight, of_bias, None, None


def _all_but_channels(input: Tensor) -> list[int]:
    return [axis for axis in range(input.ndim) if axis != 1]


def _wide(values: Tensor) -> Tensor:
    """Values in the type of their statistics: float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def group_batch_norm(module: nn.Module, group: int) -> None:
    """Replace every batch normalization inside a module, in place; 0 leaves all as it is."""
    if group:
        _replace(module, lambda plain: GroupedBatchNorm(plain, group))


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Have every batch normalization inside a module, but grouped ones, use the statistics of all processes.

    In place, before `separate_views`. On a GPU with PyTorch's own layers, which are fused; a batch is one view then.
    """
    on_gpu = device.type == "cuda"
    _replace(module, nn.SyncBatchNorm.convert_sync_batchnorm if on_gpu else SynchronizedBatchNorm)


def _replace(module: nn.Module, replacement: Callable[[nn.modules.batchnorm._BatchNorm], nn.Module]) -> None:
    """Put replacements in the places of all plain layers of batch normalization."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            if not isinstance(child, SeparateBatchNorm):
                setattr(module, name, replacement(child))
        else:
            _replace(child, replacement)


def separate_views(module: nn.Module, views: int) -> None:
    """Say how many views a batch holds in training, for every batch normalization inside a module; in place."""
    for child in module.modules():
        if isinstance(child, SeparateBatchNorm):
            child.views = views
    if views > 1:
        _replace(module, lambda plain: _of_views(plain, views))


def _of_views(plain: nn.modules.batchnorm._BatchNorm, views: int) -> SeparateBatchNorm:
    replacement = SeparateBatchNorm(plain)
    replacement.views = views
    return replacement
