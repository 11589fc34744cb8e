"""A share of a build: `--shard 2/8` does every eighth chunk, from the second on.

Shards meet only in the cache's folder, where a part is committed once, by the first that has it. So they may run on any
machines that share the folder, at any time, twice, or overlap with others: at worst an agent is asked something again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from l2d.data.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """Chunks ``k`` with ``k % count == index``.

    Args:
        index: from 0.
        count: of all shards.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``I/N``, counted from 1.

        Raises:
            UsageError: that is not what it is.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"--shard {text}", hint="I/N counts from 1: --shard 1/8 … --shard 8/8")
        return cls(int(found[1]) - 1, int(found[2]))

    @property
    def is_whole(self) -> bool:
        return self.count == 1

    def has(self, chunk: int) -> bool:
        """Whether a chunk is this shard's."""
        return chunk % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


#: Everything: no shard at all.
WHOLE = Shard()
#: No chunk at all.
NOTHING = Shard(2, 2)
