"""Which engine embeds or trains, and which share of the work is this process's own."""

import re
from dataclasses import dataclass
from typing import Literal

from conr.errors import UserError

EngineName = Literal["local", "ray"]
MERGE = "merge"
SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True)
class Engine:
    """Where images are embedded, or an ablation's rows are trained. No engine changes the result.

    Attributes:
        name: "local": on this machine; "ray": by Ray (the extra ray), on this machine or a cluster.
        address: of a Ray cluster, such as "auto" or "10.0.0.1:6379"; None for a Ray of its own on this machine.
        shard: "i/n": only the i-th of n shares, from 1, which leaves shards for later; "merge": what n shares left is
            all there, and nothing is computed; None for all of the work.

    Raises:
        UserError: a shard that is neither, or an address without Ray.
    """

    name: EngineName = "local"
    address: str | None = None
    shard: str | None = None

    def __post_init__(self) -> None:
        if self.address is not None and self.name != "ray":
            raise UserError(f"--address {self.address} is of a Ray cluster; add --engine ray")
        if self.shard not in (None, MERGE) and not self._share:
            raise UserError(f"--shard {self.shard} must be i/n with i from 1 to n, such as 3/16, or {MERGE}")

    @property
    def _share(self) -> tuple[int, int] | None:
        found = SHARD.fullmatch(self.shard or "")
        share = (int(found[1]), int(found[2])) if found else (0, 0)
        return share if 1 <= share[0] <= share[1] else None

    @property
    def is_share(self) -> bool:
        """Whether this process does a share of the work, and nothing after it."""
        return self._share is not None

    @property
    def merges(self) -> bool:
        """Whether all shards must be there already."""
        return self.shard == MERGE

    def own(self, count: int) -> range:
        """The numbers, of so many shards, that are this process's own."""
        first, step = self._share or (1, 1)
        return range(first - 1, count, step)


LOCAL = Engine()
