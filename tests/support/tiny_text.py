"""Small tokenizers, trained on the spot: the byte alphabet of GPT-2, and SentencePiece's way with byte fallback."""

from __future__ import annotations

import json
from functools import lru_cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from splitinfer.segment_runtime.text.codec import TextCodec

CORPUS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "Paris is the capital of France, and the river there is the Seine.",
    "Ein Gruß aus Köln; naïve café, señor! Łódź, Καλημέρα κόσμε, доброе утро",
    "漢字とかな交じり文。 안녕하세요 세계 👩🏽‍💻 🎉🎉 ∑∀∃ ﷽",
    "def f(x):\n    return x ** 2  # <0x41> is no byte here\n\n\t{'a': [1, 2, 3]}",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The template of ChatML models.
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@lru_cache(maxsize=1)
def byte_level_tokenizer() -> Tokenizer:
    """About 500 tokens; id 0 to 2 are special, the next 256 are the bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@lru_cache(maxsize=1)
def sentencepiece_tokenizer() -> Tokenizer:
    """As Llama 2: a word marker, unknown characters as ``<0xNN>``, and one leading space that is no text."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        CORPUS[:2],
        trainers.BpeTrainer(
            vocab_size=200, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
        ),
    )
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return tokenizer


def codec_of(tokenizer: Tokenizer, chat_template: str | None = CHATML) -> TextCodec:
    """A codec whose BOS is token 1 and whose EOS is token 2."""
    return TextCodec(
        tokenizer.to_str().encode(), bos_token_id=1, eos_token_ids=(2,), chat_template=chat_template
    )


@lru_cache(maxsize=2)
def tiny_codec(chat: bool = True) -> TextCodec:
    """The byte-level one, with or without a chat template."""
    return codec_of(byte_level_tokenizer(), CHATML if chat else None)
