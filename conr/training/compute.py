"""Where and in which number format to compute, chosen once per stage."""

import ctypes
import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from conr.data.images import ImageSource, ShardedImages
from conr.errors import UserError
from conr.models.siamese import Network, to_pixels
from conr.models.world import World
from conr.processes import machine_memory, processor

FEATURE_BATCH = 1024  # images
FEATURE_PIXELS = 2**23  # of a batch on a GPU: enough work to fill it, at 64 channels of bfloat16 1 GB a map
LOADED = 256  # images that are copied to a GPU at a time
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


@dataclass(frozen=True)
class Compute:
    """A device and the number format of its forward passes.

    Attributes:
        device: where networks and batches are.
        precision: float32, or bfloat16 under autocast (weights stay float32).
    """

    device: torch.device
    precision: torch.dtype

    @classmethod
    def choose(cls, device: str, precision: str) -> "Compute":
        """Settle "auto": a GPU if there is one; bfloat16 where the processor computes in it.

        Raises:
            UserError: cuda was asked for and is not there.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("device: cuda was asked for, but PyTorch finds no CUDA device; use --device auto or cpu")
        _compute_float32_as_such()
        chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        if chosen.type == "cpu":
            _keep_freed_memory()
        if precision == "auto":
            precision = "bfloat16" if _computes_in_bfloat16(chosen) else "float32"
        return cls(chosen, getattr(torch, precision))

    def autocast(self) -> AbstractContextManager[None]:
        """A context in which convolutions and products run in the chosen precision."""
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not torch.float32)

    def load_images(self, images: ImageSource) -> Tensor | ShardedImages:
        """The packed images as a tensor: on the device if they take less than half of its free memory.

        Shards that are not loaded onto a GPU stay what they are.
        """
        if self.device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(self.device)[0] / 2:
            loaded = torch.empty(images.shape, dtype=torch.uint8, device=self.device)
            for first in range(0, len(images), LOADED):
                loaded[first : first + LOADED] = torch.from_numpy(images[first : first + LOADED])
            return loaded
        return images if isinstance(images, ShardedImages) else torch.from_numpy(images)

    def streams(self, images: Tensor | ShardedImages) -> bool:
        """Whether batches are read ahead of the training, which changes no result.

        They are where images are in shards, not on the GPU, or on a CPU above half of the memory (`machine_memory`).
        """
        if isinstance(images, ShardedImages):
            return True
        if self.device.type == "cpu":
            return images.nbytes > machine_memory() / 2
        return images.device.type == "cpu"

    def feature_batch(self, images: Tensor | ShardedImages) -> int:
        """How many of (N, H, W, 3) images to embed at a time."""
        if self.device.type == "cpu":
            return FEATURE_BATCH
        return max(FEATURE_PIXELS // (images.shape[1] * images.shape[2]), 1)

    def batch(self, images: Tensor | ShardedImages, indices: Tensor) -> Tensor:
        """The images at the indices (both wherever `load_images` put the images), on the device."""
        batch = images[indices] if isinstance(images, Tensor) else torch.from_numpy(images[indices.numpy()])
        if batch.device.type != self.device.type:
            batch = batch.pin_memory().to(self.device, non_blocking=True)  # pinned: the host need not wait
        return batch


@torch.no_grad()
def clean_features(network: Network, images: Tensor | ShardedImages, compute: Compute) -> Tensor:
    """l2-normalized features of all images, not augmented, with the network in evaluation mode.

    Of several processes each embeds its share, and has the features of all.

    Returns:
        (N, D) float32 on the device.

    Raises:
        UserError: the weights have diverged so far that features are not finite.
    """
    training, world, count = network.training, World.current(), len(images)
    network.eval()
    parts = []
    # Equal shares: the last image fills them up.
    device = images.device if isinstance(images, Tensor) else "cpu"
    everything = torch.arange(-(-count // world.size) * world.size, device=device).clamp(max=count - 1)
    for indices in torch.split(world.rows(everything), compute.feature_batch(images)):
        with compute.autocast():
            features = network(to_pixels(compute.batch(images, indices)))
        parts.append(F.normalize(features.float(), dim=1))
    network.train(training)
    result = world.gather(torch.cat(parts))[:count]
    if not result.isfinite().all():
        raise UserError(
            "the features of the network are not finite numbers, so its training has diverged. "
            "Lower optimizer.base_learning_rate, or set precision to float32, and train it again"
        )
    return result


def machine(device: torch.device) -> str:
    """What computes and with which software, such as "NVIDIA H100, torch 2.11.0, Python 3.12.3"."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{processor()}, threads: {torch.get_num_threads()}"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def _compute_float32_as_such() -> None:
    """Let no GPU compute in TF32, which has ten bits for float32's 23: scores and exported weights depend on it."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step; other C libraries are left as they are.

    By default it returns large tensors to the kernel, which then has to clear every page of the next ones.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # PyTorch has no public question for this; oneDNN's bfloat16 kernels pay only with the processor's own.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
