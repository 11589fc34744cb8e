"""A sequential test by betting: look after every observation, and the chance of a false alarm stays bounded.

Capital is bet on a bounded mean having left an interval. If it has not, capital is a nonnegative supermartingale, and
the chance that it ever reaches ``1 / alpha`` is at most ``alpha`` (Ville's inequality). Bets are those of Waudby-Smith
and Ramdas, *Estimating means of bounded random variables by betting*, JRSS B 2024, section B.3 (aGRAPA), on either side
with half of the capital.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MOST = 0.75  # share of what can be lost at once that is bet


@dataclass
class Betting:
    """A test of whether the mean of values in [``least``, ``most``] lies in [``low``, ``high``].

    Attributes:
        wealth: capital now, of 1 at the start.
        peak: the most that it has been.
        count: observations.
        up, down: capital bet on a larger and on a smaller mean.
    """

    least: float
    most: float
    low: float
    high: float
    count: int = 0
    up: float = 0.5
    down: float = 0.5
    peak: float = 1.0
    _sum: float = field(default=0.5, repr=False)
    _squares: float = field(default=0.25, repr=False)

    @property
    def wealth(self) -> float:
        return self.up + self.down

    @property
    def larger(self) -> bool:
        """Whether more capital is on a larger mean."""
        return self.up > self.down

    def see(self, value: float) -> None:
        """One observation; what lies beyond the range counts as its end."""
        width = self.most - self.least
        if width <= 0:
            return
        y = min(1.0, max(0.0, (value - self.least) / width))
        low, high = ((edge - self.least) / width for edge in (self.low, self.high))
        mean = self._sum / (self.count + 1)
        variance = self._squares / (self.count + 1)
        if 0 < high < 1:
            self.up *= 1 + _bet(mean - high, variance, MOST / high) * (y - high)
        if 0 < low < 1:
            self.down *= 1 + _bet(low - mean, variance, MOST / (1 - low)) * (low - y)
        self.count += 1
        self._sum += y
        self._squares += (y - self._sum / (self.count + 1)) ** 2
        self.peak = max(self.peak, self.wealth)


def _bet(gap: float, variance: float, most: float) -> float:
    return min(most, max(0.0, gap / (variance + gap * gap))) if gap > 0 else 0.0
