"""The settings of ConAff, made once from the parameters."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ConAff:
    """The settings of contextually affinitive neighborhoods.

    Attributes:
        k1: neighbors that define the reciprocal encoding (Eq. 3), the sample itself included.
        k2: neighbors that a layer of propagation sums over (Eq. 5), the sample itself included; 1 ≤ k2 ≤ k1, and 1
            means no propagation.
        alpha: exponent of the edge weights (α in Eq. 6).
        layers: layers of propagation (L).
        symmetrize: add the transpose before each layer, as the released code does; Eq. 6 does not show it.
        normalize: l2-normalize each row after each layer, as the released code does; Eq. 6 does not show it.

    >>> conr.ConAff(k1=10, k2=2)
    ConAff(k1=10, k2=2, alpha=2.0, layers=2, symmetrize=True, normalize=True)
    """

    k1: int = 10
    k2: int = 2
    alpha: float = 2.0
    layers: int = 2
    symmetrize: bool = True
    normalize: bool = True

    def check(self, size: int, limit: str) -> None:
        """Check that neighbors can be found among `size` samples.

        Raises:
            ValueError: a setting is impossible; the message names it, and the limit by its name.
        """
        check_count("k1", self.k1, size, limit)
        check_count("k2", self.k2, self.k1, "k1")
        if self.layers < 0:
            raise ValueError(f"layers = {self.layers} must not be negative")
        if self.alpha < 0:
            raise ValueError(f"alpha = {self.alpha} must not be negative")

    @property
    def propagates(self) -> bool:
        """Whether any layer changes the reciprocal encoding."""
        return self.k2 > 1 and self.layers > 0

    @property
    def self_first(self) -> bool:
        """Whether each sample is its own nearest: rows of unit length are, and rounding must not put a copy before."""
        return self.propagates and self.normalize


def check_count(name: str, value: int, largest: int, limit: str) -> None:
    """Check that a number of neighbors is possible.

    Raises:
        ValueError: it does not lie between 1 and the limit, which the message names.
    """
    if not 1 <= value <= largest:
        raise ValueError(f"{name} = {value} must lie between 1 and {limit} ({largest})")
