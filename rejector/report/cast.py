"""Which agents a page names and colours: all of a few, of many those that matter, the rest together as others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from l2d.rejector.evaluation.evaluation import Evaluation
from l2d.rejector.evaluation.settings import leading_agents

MOST_COLOURED = 8  # colours that are told apart beside each other


@dataclass(frozen=True)
class Cast:
    """The agents of a page.

    Attributes:
        named: those with a name and a colour of their own, in the order of the colours.
        others: the rest, drawn in one grey.
    """

    named: list[str]
    others: list[str]

    @property
    def entries(self) -> list[str]:
        """What a legend lists."""
        return [*self.named, *([self.rest] if self.others else [])]

    @property
    def rest(self) -> str:
        """What the others are called together."""
        return f"{len(self.others)} others"

    def entry(self, name: str) -> str:
        """The legend's entry of an agent."""
        return name if name in self.named else self.rest

    def slot(self, name: str) -> str:
        """The colour of an agent: a number from 0 on, or ``others``."""
        return str(self.named.index(name)) if name in self.named else "others"

    def summed(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Shares by entry, from shares by agent."""
        found = {name: shares[name] for name in self.named}
        return found | ({self.rest: sum(shares[name] for name in self.others)} if self.others else {})


def cast_of(groups: list[list[Evaluation]]) -> Cast:
    """The agents of the settings of a cache, see :func:`l2d.rejector.evaluation.settings.leading_agents`."""
    names = list(groups[0][0].result["allocation"])
    if len(names) <= MOST_COLOURED:
        return Cast(names, [])
    named = leading_agents(groups, MOST_COLOURED - 1)
    return Cast(named, [name for name in names if name not in named])
