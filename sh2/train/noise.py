"""The gradient noise scale: how large a batch is worth its cost. Knows nothing of models."""

_SHARE = 0.01  # of an update in the means


class NoiseScale:
    """Estimates the simple noise scale from the norms of gradients of two sizes (McCandlish et al. 2018, appendix A.1).

    With b the size of the first forward pass of an update and B that of all of them, and g_b and g_B their mean
    gradients, these have no bias:

        |G|^2 = (B |g_B|^2 - b |g_b|^2) / (B - b)        S = (|g_b|^2 - |g_B|^2) / (1 / b - 1 / B)

    Either alone is noisy, and so they are averaged over about the last hundred updates before their ratio S / |G|^2 is
    taken.
    """

    def __init__(self) -> None:
        self._gradient = self._noise = 0.0

    def add(self, *, first_norm: float, norm: float, first_weight: float, weight: float) -> None:
        """Count one update.

        Args:
            norm: of the gradient of the loss of all windows.
            first_norm: of what the first forward pass added to that gradient.
            first_weight, weight: of the targets of the first pass and of all, summed.
        """
        if not 0 < first_weight < weight:
            return
        small, large = (first_norm * weight / first_weight) ** 2, norm**2
        gradient = (weight * large - first_weight * small) / (weight - first_weight)
        noise = (small - large) / (1 / first_weight - 1 / weight)
        # both begin at 0 and are short of their means by the same factor, which their ratio does not have
        self._gradient += _SHARE * (gradient - self._gradient)
        self._noise += _SHARE * (noise - self._noise)

    def estimate(self) -> float | None:
        """The noise scale, in targets; None if there was no update, or so few that noise left no gradient."""
        return self._noise / self._gradient if self._gradient > 0 and self._noise > 0 else None
