"""Seeds of choices, and the number of tokens that a request asks for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.segment_runtime.api.errors import ApiError
from splitinfer.segment_runtime.api.jobs import completion_job, derived_seed
from splitinfer.segment_runtime.api.requests import parse_completion
from tests.support.tiny_text import tiny_codec

UNHURRIED = settings(deadline=None)  # a busy machine is no failure

# Choices 0 to 2 of seed 7.
PINNED = [7, 5553609203046970859, 1207089879192185173]


@UNHURRIED
@given(seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5, unique=True))
def test_choices_of_all_seeds_have_seeds_of_their_own(seeds: list[int]) -> None:
    """The first choice has the seed itself; none of the others meets another's."""
    derived = [derived_seed(seed, choice) for seed in seeds for choice in range(4)]
    assert len(set(derived)) == len(derived)
    assert derived[::4] == seeds


def test_derived_seeds_are_pinned() -> None:
    """A change would change every stored n > 1 answer."""
    assert [derived_seed(7, choice) for choice in range(3)] == PINNED


async def test_prompts_of_one_request_draw_as_each_alone() -> None:
    """In a list every prompt has the same seeds, so that batching prompts changes no answer; entropy is asked once each."""
    asked: list[int] = []

    def entropy(count: int) -> bytes:
        asked.append(count)
        return bytes([len(asked)] * count)

    both = parse_completion(b'{"model": "m", "prompt": ["a", "b"], "seed": 5, "n": 2}')
    job = await completion_job(both, tiny_codec(), 100, 16, entropy)
    seeds = [request.sampling.seed for request in job.requests]
    assert seeds[:2] == seeds[2:]
    assert asked == []
    unseeded = parse_completion(b'{"model": "m", "prompt": ["a", "b"]}')
    job = await completion_job(unseeded, tiny_codec(), 100, 16, entropy)
    assert job.requests[0].sampling.seed != job.requests[1].sampling.seed


@pytest.mark.parametrize(
    ("wanted", "limit", "expected"),
    [
        (None, 100, 16),
        (None, 10, 7),
        (20, 100, 20),
        (97, 100, 97),
        (98, 100, None),
        (None, 3, None),
        (None, 4, 1),
    ],
)
async def test_tokens_of_a_completion(wanted: int | None, limit: int, expected: int | None) -> None:
    """16, or what is left, or what is asked for; a prompt of 3 tokens that leaves no room is refused."""
    body = f'{{"model": "m", "prompt": [5, 6, 7], "max_tokens": {wanted or "null"}}}'
    request = parse_completion(body.encode())
    if expected is None:
        with pytest.raises(ApiError, match="maximum context length"):
            await completion_job(request, tiny_codec(), limit, 16, bytes)
    else:
        job = await completion_job(request, tiny_codec(), limit, 16, bytes)
        assert [r.max_tokens for r in job.requests] == [expected]
