"""What a plan carries of its privacy, so that whoever repairs it keeps to it: the entry may have to act alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Block = Annotated[int, Field(ge=0)]
Node = Annotated[str, Field(min_length=1, max_length=253)]


class Privacy(BaseModel):
    """Sensitive blocks run on trusted nodes or nowhere. Without sensitive blocks every node is as good."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sensitive_blocks: tuple[Block, ...] = ()
    trusted_nodes: tuple[Node, ...] = ()

    def may(self, node: str, block: int) -> bool:
        """Whether a block may run on a node."""
        return node in self.trusted_nodes or block not in self.sensitive_blocks

    def stretches(self, blocks: int) -> Iterator[tuple[int, int, bool]]:
        """``[start, stop)`` of each run of blocks that are all sensitive or all not, in order, and which they are."""
        for sensitive, run in groupby(range(blocks), key=lambda block: block in self.sensitive_blocks):
            members = list(run)
            yield members[0], members[-1] + 1, sensitive
