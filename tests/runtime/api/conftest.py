"""One application per test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from splitinfer.segment_runtime.text.codec import TextCodec
from tests.support.fake_generator import FakeGenerator
from tests.support.serving import Served, served
from tests.support.tiny_text import tiny_codec

ANSWER = "The café serves 漢字 and 🎉 to all."
EOS = 2


@pytest.fixture
def codec() -> TextCodec:
    """The byte-level tokenizer with a ChatML template."""
    return tiny_codec()


@pytest.fixture
def generator(codec: TextCodec) -> FakeGenerator:
    """Answers everything with ANSWER and EOS."""
    return FakeGenerator(lambda _: (*codec.encode(ANSWER), EOS))


@pytest.fixture
async def api(generator: FakeGenerator, codec: TextCodec) -> AsyncIterator[Served]:
    """The application on a port."""
    async with served(generator, codec) as running:
        yield running
