"""Errors of the text layer.

TextError                 base
├── UnsupportedTokenizer  a tokenizer that cannot be read, or whose decoder has no exact increments (by name)
├── NoChatTemplate        the model has no chat template: it cannot chat, only complete
├── TemplateRefused       the template rejects these messages, in its own words
└── TemplateOverran       the template takes more time or memory than a template may
"""

from __future__ import annotations


class TextError(Exception):
    """Text and token ids cannot be turned into one another."""


class UnsupportedTokenizer(TextError):
    """A tokenizer that cannot be read, or whose decoder has no exact increments."""


class NoChatTemplate(TextError):
    """The model has no chat template."""


class TemplateRefused(TextError):
    """The template rejects these messages."""


class TemplateOverran(TextError):
    """The template takes more time or memory than a template may."""
