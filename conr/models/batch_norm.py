"""Batch normalization whose statistics are those of each view in a batch, or of groups of samples."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any input: the layer that this one replaces was made for it."""


class GroupedBatchNorm(SeparateBatchNorm):
    """Batch normalization whose statistics in training are those of groups of samples, as on one of several GPUs.

    Running statistics are updated by each group in turn. In evaluation it is plain batch normalization.

    Args:
        plain: the layer to replace; its parameters and buffers are shared.
        group: samples that share statistics, in the order of the batch.
    """

    def __init__(self, plain: nn.modules.batchnorm._BatchNorm, group: int) -> None:
        super().__init__(plain)
        self.group = group

    def split(self, view: Tensor) -> Sequence[Tensor]:
        """The groups of a view."""
        return torch.split(view, self.group)


def group_batch_norm(module: nn.Module, group: int) -> None:
    """Replace every batch normalization inside a module, in place; 0 leaves all as it is."""
    if group == 0:
        return
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, GroupedBatchNorm(child, group))
        else:
            group_batch_norm(child, group)


def separate_views(module: nn.Module, views: int) -> None:
    """Say how many views a batch holds in training, for every batch normalization inside a module; in place."""
    for name, child in module.named_children():
        if isinstance(child, SeparateBatchNorm):
            child.views = views
        elif not isinstance(child, nn.modules.batchnorm._BatchNorm):
            separate_views(child, views)
        elif views > 1:
            replacement = SeparateBatchNorm(child)
            replacement.views = views
            setattr(module, name, replacement)
