"""A host that keeps the very tokens it is fed, and refuses what a real host refuses."""

from __future__ import annotations

from dataclasses import dataclass, field

from splitinfer.segment_runtime.entry.sessions import MicroBatch


@dataclass
class FakeHost:
    """KV as token lists; what a frame may not do is an assertion."""

    budget: int
    caches: dict[int, list[int]] = field(default_factory=dict)
    capacities: dict[int, int] = field(default_factory=dict)

    def take(self, batch: MicroBatch) -> bool:
        """Apply a frame as a host does: releases first, then rows. False: it was refused, and nothing of it done."""
        held = {session: cache for session, cache in self.caches.items() if session not in batch.released}
        if any(len(held.get(piece.session, ())) != piece.position for piece in batch.slices):
            return False
        for session in batch.released:
            self.caches.pop(session, None)
            self.capacities.pop(session, None)
        for piece in batch.slices:
            cache = self.caches.setdefault(piece.session, [])
            assert self.capacities.setdefault(piece.session, piece.capacity) == piece.capacity
            cache.extend(piece.tokens)
            assert len(cache) <= piece.capacity
        assert sum(self.capacities.values()) <= self.budget, "KV reservations pass the budget"
        return True
