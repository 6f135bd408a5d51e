"""Gemma's tokenizer from its SentencePiece model, against the sentencepiece package and against a tokenizer.json."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
from a2v.ltx.prompt.sentencepiece import CHAT, build_tokenizer, read_pieces
from a2v.tests.tiny import TinyFiles, sentencepiece_model
from transformers import AutoTokenizer

sentencepiece = pytest.importorskip("sentencepiece")

LICENSE = (Path(__file__).resolve().parents[3] / "LICENSE").read_text(encoding="utf-8")
RUNS = ["\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "\t\t", "<table>", "</table>"]
TURNS = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]
TEXTS = (
    "A woman speaks to the camera.",
    "",
    " ",
    "  leading and trailing  ",
    "tabs\tand\t\tmore",
    "line\nline\n\nparagraph\n\n\n\nfar",
    "1 12 123 1234567 3.14 1,000",
    "héllo wörld, naïve façade, Ωmega",
    "你好,世界。日本語テスト 한국어",
    "😀 🧑🏽‍🚀 \u200b\u00a0\ufeff",
    "aaaaaaaaaaaa bbbb",
    "<start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n",
    "<bos>text<eos><pad><unk>",
    "<table><tr>x</tr></table> <0x41> ▁ ▁▁",
    "a" + " " * 20 + "b",
    "The quick brown fox; LICENSE, Version 2.0",
)


def trained(byte_fallback: bool = True, model_type: str = "bpe", tab: bool = True) -> bytes:
    """A model trained as Gemma's was, on the licence: the same kinds of pieces in the same places."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((LICENSE + "héllo wörld 你好 " * 50).splitlines()),
        model_writer=out,
        model_type=model_type,
        vocab_size=1200 if model_type == "bpe" else 800,
        byte_fallback=byte_fallback,
        **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
        **{"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>", "unk_piece": "<unk>"},
        user_defined_symbols=["<mask>", *TURNS, *RUNS, *(["\t"] if tab else [])],
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return out.getvalue()


@pytest.fixture(scope="module")
def model() -> bytes:
    return trained()


def texts() -> list[str]:
    """The above, and words of the licence in random company."""
    chance = random.Random(0)
    words = LICENSE.split()
    glue = [" ", "  ", "\n", "\n\n", "é", "你", "9", "\t", "<end_of_turn>", "🦊"]
    mixed = [
        "".join(chance.choice([chance.choice(words), chance.choice(words)[:3], chance.choice(glue)]) for _ in range(n))
        for n in (chance.randint(1, 24) for _ in range(400))
    ]
    return [*TEXTS, *mixed]


def test_ids_are_those_of_sentencepiece(model: bytes) -> None:
    ours, theirs = build_tokenizer(model), sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in texts():
        if any(sign in text for sign in ("<bos>", "<eos>", "<pad>", "<unk>", "▁")):
            continue  # in Gemma's tokenizer.json the tokens, in SentencePiece letters; and a ▁ that was typed
        ids = ours(text, add_special_tokens=False).input_ids
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == text, text


def test_ids_are_those_of_the_json_with_the_same_vocabulary(tiny_default: TinyFiles) -> None:
    theirs = AutoTokenizer.from_pretrained(tiny_default.gemma)
    ours = build_tokenizer(sentencepiece_model())
    for text in texts():
        assert ours(text).input_ids == theirs(text).input_ids, text
    tab, mask = {"\t": 18}, {"<0x09>": 18, "<mask>": 434}  # a tab has no piece there; <mask> transformers adds itself
    assert ours.get_vocab().items() - tab.items() == theirs.get_vocab().items() - mask.items()
    for name in ("bos", "eos", "pad", "unk", "boi", "eoi", "image"):
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")


def test_the_tiny_model_is_one_that_sentencepiece_reads() -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    pieces = read_pieces(sentencepiece_model())
    assert theirs.get_piece_size() == len(pieces)
    for i, piece in enumerate(pieces):
        assert (theirs.id_to_piece(i), theirs.get_score(i)) == (piece.text, piece.score)
        assert (theirs.is_unknown(i), theirs.is_control(i), theirs.is_byte(i)) == (
            piece.kind == 2,
            piece.kind == 3,
            piece.kind == 6,
        )


def test_special_tokens(model: bytes) -> None:
    tokenizer = build_tokenizer(model)
    pieces = [piece.text for piece in read_pieces(model)]
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id] == [
        0,
        1,
        2,
        3,
    ]
    assert tokenizer.image_token_id == len(pieces)  # the one token that the model has no piece for comes after them
    assert tokenizer.boi_token_id == pieces.index("<start_of_image>")
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    assert special == {"<pad>", "<eos>", "<bos>", "<unk>", *TURNS, "<image_soft_token>"}
    assert tokenizer("a").input_ids[0] == 2 and tokenizer("a").input_ids.count(2) == 1
    ids = tokenizer("<start_of_turn>hello<end_of_turn>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello"


def test_a_tab_without_a_piece_takes_the_byte_s_place() -> None:
    model = trained(tab=False)
    tokenizer = build_tokenizer(model)
    place = next(i for i, piece in enumerate(read_pieces(model)) if piece.text == "<0x09>")
    assert tokenizer("\t", add_special_tokens=False).input_ids == [place]
    assert sentencepiece.SentencePieceProcessor(model_proto=model).encode("\t") == [place]


# The published template's own words for two cases, written out.
SYSTEM_AND_USER = "<bos><start_of_turn>user\nBe brief.\n\nhello<end_of_turn>\n<start_of_turn>model\n"
WITH_IMAGE = "<bos><start_of_turn>user\nBe brief.\n\n<start_of_image>hello<end_of_turn>\n<start_of_turn>model\n"
TWO_TURNS = (
    "<bos><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\nhi<end_of_turn>\n"
    "<start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n"
)


def test_turns_are_those_gemma_was_trained_on(model: bytes) -> None:
    tokenizer = build_tokenizer(model)
    said = {"type": "text", "text": " hello\n"}
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    user, model_turn = (
        {"role": r, "content": [{**said, "text": t}]} for r, t in (("user", " hello\n"), ("assistant", "hi"))
    )
    looking = {"role": "user", "content": [{"type": "image"}, said]}
    for messages, expected in (
        ([system, user], SYSTEM_AND_USER),
        ([system, looking], WITH_IMAGE),
        ([user, model_turn, user], TWO_TURNS),
    ):
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
    assert tokenizer.chat_template == CHAT


@pytest.mark.parametrize("kind", ["unigram", "json", "cut", "empty", "noise"])
def test_what_is_no_gemma_tokenizer(model: bytes, kind: str) -> None:
    data = {
        "unigram": lambda: trained(model_type="unigram"),
        "json": lambda: json.dumps({"model": {}}).encode(),
        "cut": lambda: model[: len(model) // 2],
        "empty": lambda: b"",
        "noise": lambda: random.Random(1).randbytes(4000),
    }[kind]()
    with pytest.raises(ValueError):
        build_tokenizer(data)


@pytest.mark.parametrize("data", [b"\x08\x01", b"\x10\x05", b"\x0a\x02\x08\x01", b"\x0a\x02\x10\x01"], ids=bytes.hex)
def test_a_field_of_another_type(data: bytes) -> None:
    """A number as a piece, as the settings, as a piece's text and as its score."""
    with pytest.raises(ValueError, match="type"):
        read_pieces(data)


def test_every_cut_is_an_error_and_nothing_worse(model: bytes) -> None:
    for end in range(0, len(model) - 1, 251):
        with pytest.raises(ValueError):
            read_pieces(model[:end])
