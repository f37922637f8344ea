"""Batch normalization whose statistics are those of groups of samples, as on one of several GPUs."""

import torch
from torch import Tensor, nn


class GroupedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization whose statistics in training are those of groups of samples, as on one of several GPUs.

    Running statistics are updated by each group in turn. In evaluation it is plain batch normalization.

    Args:
        plain: the layer to replace; its parameters and buffers are shared.
        group: samples that share statistics, in the order of the batch.
    """

    def __init__(self, plain: nn.modules.batchnorm._BatchNorm, group: int) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum, plain.affine, plain.track_running_stats)
        self.weight, self.bias = plain.weight, plain.bias
        for name, buffer in plain.named_buffers():
            self.register_buffer(name, buffer)
        self.group = group

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (B, C) or (B, C, H, W)."""
        if not self.training or len(input) <= self.group:
            return super().forward(input)
        return torch.cat([super(GroupedBatchNorm, self).forward(part) for part in torch.split(input, self.group)])

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any input: the layer that this one replaces was made for it."""


def group_batch_norm(module: nn.Module, group: int) -> None:
    """Replace every batch normalization inside a module, in place; 0 leaves all as it is."""
    if group == 0:
        return
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, GroupedBatchNorm(child, group))
        else:
            group_batch_norm(child, group)
