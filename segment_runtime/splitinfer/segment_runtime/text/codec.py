"""Text to token ids and back, for one stored model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from splitinfer.segment_runtime.text.bound import bound_of
from splitinfer.segment_runtime.text.chat import ChatTemplate, Message
from splitinfer.segment_runtime.text.detokeniser import Detokeniser
from splitinfer.segment_runtime.text.errors import NoChatTemplate, UnsupportedTokenizer
from splitinfer.segment_runtime.text.pieces import Pieces

if TYPE_CHECKING:
    from splitinfer.segment_runtime.store.reader import StoredModel


class TextCodec:
    """The tokenizer of a model, its special tokens and its chat template. Immutable; safe in threads."""

    def __init__(
        self,
        tokenizer_json: bytes,
        *,
        bos_token_id: int | None = None,
        eos_token_ids: Sequence[int] = (),
        chat_template: str | None = None,
    ) -> None:
        """Read ``tokenizer.json``.

        Raises:
            UnsupportedTokenizer: it cannot be read, or its decoder has no exact increments, or the chat
                template is not valid jinja.
        """
        try:
            document = json.loads(tokenizer_json)
            self._tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        # tokenizers raises bare Exception for what it cannot parse.
        except Exception as error:
            raise UnsupportedTokenizer(
                f"tokenizer: cannot be read: {error}; import the model again"
            ) from error
        self._tokenizer.no_truncation()  # a stored limit would cut prompts silently
        self._tokenizer.no_padding()
        self._pieces = Pieces(self._tokenizer, document.get("decoder"))
        self._bound = bound_of(document, self._tokenizer, self._pieces)
        self.vocab_size: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.eos_token_ids = frozenset(eos_token_ids)
        self._template = None
        if chat_template is not None:
            first_eos = eos_token_ids[0] if eos_token_ids else None
            self._template = ChatTemplate(
                chat_template, bos_token=self._name(bos_token_id), eos_token=self._name(first_eos)
            )

    @classmethod
    def from_model(cls, model: StoredModel) -> TextCodec:
        """The codec of a stored model.

        Raises:
            UnsupportedTokenizer: as the constructor.
            StoreError: the model has no tokenizer, or its file is damaged.
        """
        template = None
        if "chat_template" in model.index.files:
            template = model.read_file("chat_template").decode()
        return cls(
            model.read_file("tokenizer"),
            bos_token_id=model.index.bos_token_id,
            eos_token_ids=model.index.eos_token_ids,
            chat_template=template,
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of a text. Releases the GIL, so a thread can do it beside the event loop.

        Args:
            text: may write special tokens out (``<|im_end|>``); they become their ids, as the templates need.
            add_special_tokens: put what the tokenizer puts around every text, such as BOS; off for rendered
                templates, which write it themselves.
        """
        return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids, without special tokens."""
        detokeniser = self.detokeniser()
        return "".join([*map(detokeniser.push, tokens), detokeniser.flush()])

    def detokeniser(self, *, continuation: bool = False) -> Detokeniser:
        """Start an incremental decoding."""
        return Detokeniser(self._pieces, continuation=continuation)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, special or not."""
        return self._pieces.token_bytes(token)

    def minimum_tokens(self, text: str) -> int:
        """A lower bound on ``len(encode(text))`` without encoding; 0 where the tokenizer allows no such bound."""
        return 0 if self._bound is None else self._bound.minimum_tokens(text)

    @property
    def can_chat(self) -> bool:
        """Whether there is a chat template."""
        return self._template is not None

    def start_chat(self) -> None:
        """Start what renders the template, if there is one, so that the first conversation does not wait for it."""
        if self._template is not None:
            self._template.start()

    def submit_chat(self, messages: Sequence[Message]) -> Future[str]:
        """The prompt of a conversation, ready for the assistant's turn, once the template's process has rendered it.

        Raises:
            NoChatTemplate: at once; the future TemplateRefused or TemplateOverran.
        """
        if self._template is None:
            raise NoChatTemplate("the model has no chat template; use /v1/completions")
        return self._template.submit(messages)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """As `submit_chat`, waiting for it.

        Raises:
            NoChatTemplate, TemplateRefused, TemplateOverran.
        """
        return self.submit_chat(messages).result()

    def _name(self, token: int | None) -> str:
        """A special token written out; transformers renders what is missing as nothing."""
        return "" if token is None else (self._tokenizer.id_to_token(token) or "")
