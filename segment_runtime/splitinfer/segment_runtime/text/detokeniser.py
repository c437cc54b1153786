"""Token ids to text as they come, never half a character."""

from __future__ import annotations

import codecs

from splitinfer.segment_runtime.text.pieces import Pieces


class Detokeniser:
    """Turns one stream of token ids into text increments.

    Constant work per token. The increments, joined with `flush`, are the decoding of all ids: bytes that are not UTF-8
    become U+FFFD, one per maximal broken part, and an unfinished character is held back until it is complete
    or cannot become one.
    """

    def __init__(self, pieces: Pieces, *, continuation: bool) -> None:
        """Start a text.

        Args:
            pieces: the bytes of each token.
            continuation: the text goes on from a prompt, so that a SentencePiece tokenizer keeps the space
                before the first word; otherwise the text begins here and the space is its marker.
        """
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = 0 if continuation else pieces.steps.strip

    def push(self, token: int) -> str:
        """The text that is certain after this token; may be empty."""
        text = self._decoder.decode(self._pieces.text_bytes(token))
        held, _ = self._decoder.getstate()
        if held[:1] == b"\xed" and held[1:2] >= b"\xa0":
            # Half of a surrogate pair, which is no character whatever follows; Python waits for its third byte.
            text += self._decoder.decode(b"", final=True)
        return self._stripped(text)

    def flush(self) -> str:
        """End of the stream: what was held back, an unfinished character as U+FFFD."""
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if not text.startswith(" "):
                self._strip = 0
                break
            text, self._strip = text[1:], self._strip - 1
        return text
