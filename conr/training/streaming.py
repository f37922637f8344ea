"""Batches of images that are read from disk as they are needed: in which order, and ahead of the training."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import torch
from torch import Tensor

from conr.data.images import ShardedImages

WHOLE = 2**36  # bytes of images that are shuffled as a whole; of more, shards are
SHARD, SHARDS = 2**26, 64  # bytes of a shard; so many are shuffled together


def shuffled(images: Tensor | ShardedImages, generator: torch.Generator) -> Tensor:
    """The order of an epoch: a permutation of the (N, H, W, 3) images, (N,) int64 on the generator's device.

    More images than `WHOLE` are shuffled by shards, which are contiguous in the file, and within groups of shards: what
    the system reads ahead is then used while it is in memory, which has to hold a group. The order depends on the
    generator's state and the size of the images only, not on the machine.
    """
    count, device = len(images), generator.device
    if images.nbytes <= WHOLE:
        return torch.randperm(count, device=device, generator=generator)
    shard = max(SHARD * count // images.nbytes, 1)
    shards = torch.randperm(-(-count // shard), device=device, generator=generator)
    rows = (shards[:, None] * shard + torch.arange(shard, device=device)).flatten()
    groups = torch.split(rows[rows < count], shard * SHARDS)
    return torch.cat([group[torch.randperm(len(group), device=device, generator=generator)] for group in groups])


class ReadAhead:
    """Reads the images of the next batch in a thread while the present one is computed, into two buffers in turn.

    For a GPU the buffers are pinned, so that it fetches them while it computes and the host need not wait.

    Args:
        images: (N, H, W, 3) uint8 in shards, or in host memory, as a rule memory-mapped.
        size: B, of a batch.
        device: which the batches are for.
    """

    def __init__(self, images: Tensor | ShardedImages, size: int, device: torch.device) -> None:
        self.images, pinned = images, device.type == "cuda"
        shape = (size, *images.shape[1:])
        self._buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        self._fetched = [torch.cuda.Event() for _ in range(2)] if pinned else []  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1, "images")

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """The (B, H, W, 3) images of each batch, in host memory.

        Args:
            indices: (B,) int64 of each batch, in host memory. A copy to the device must be in its queue before the next
                batch is asked for.
        """
        numbered = enumerate(indices)
        reading = [self._read(*batch) for batch in islice(numbered, 1)]
        for number in range(len(indices)):
            present = reading.pop().result()
            reading += [self._read(*batch) for batch in islice(numbered, 1)]
            yield present
            if self._fetched:
                self._fetched[number % 2].record()

    def _read(self, number: int, indices: Tensor) -> Future[Tensor]:
        """Begin to read a batch, once its buffer is free."""
        if self._fetched:
            self._fetched[number % 2].synchronize()
        return self._thread.submit(self._fill, self._buffers[number % 2], indices)

    def _fill(self, buffer: Tensor, indices: Tensor) -> Tensor:
        if isinstance(self.images, Tensor):
            return torch.index_select(self.images, 0, indices, out=buffer)
        self.images.take(indices.numpy(), buffer.numpy())
        return buffer
