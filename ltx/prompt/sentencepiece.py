"""Builds Gemma's tokenizer from its SentencePiece model, which ComfyUI's single-file text encoders hold as a tensor.

The tokenizer gives the same ids as the `tokenizer.json` of Gemma's own repository. That file was made from the same
model by transformers' converter, and this module follows the converter's rules. The model is a simple protocol buffer,
so reading it needs neither the protobuf nor the sentencepiece package.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

IMAGE_TOKENS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
TURNS = ("<start_of_turn>", "<end_of_turn>")
NAMED = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}  # ids 0 to 3
CONTROL, USER_DEFINED = 3, 4  # kinds of pieces in sentencepiece_model.proto
BPE = 2  # a kind of model there
BYTE_TAB = "<0x09>"
CHAT = (
    "{{ bos_token }}{% set before = namespace(text='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set before.text = message['content'][0]['text'] + '\n\n' %}{% else %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ before.text }}{% set before.text = '' %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""The chat template that Gemma 3 was trained with. The system has no turn; its text begins the user's first turn."""


class Piece(NamedTuple):
    """An entry of the vocabulary; its position is its id."""

    text: str
    score: float
    kind: int


def read_pieces(model: bytes) -> list[Piece]:
    """Reads the vocabulary of a SentencePiece model. Raises ValueError if the bytes are not a model of Gemma's kind."""
    pieces, kind = [], None
    try:
        for number, value in _fields(model):
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                kind = next((value for number, value in _fields(value) if number == 3), None)
    except (TypeError, AttributeError, struct.error) as error:  # a number where bytes are due, or the other way round
        raise ValueError("a field of its SentencePiece model has another type") from error
    if kind != BPE or [piece.text for piece in pieces[:4]] != list(NAMED.values()):
        raise ValueError("not Gemma's SentencePiece model")
    return pieces


def build_tokenizer(model: bytes, chat_template: str = CHAT) -> PreTrainedTokenizerFast:
    """Bytes of a SentencePiece model → tokenizer with Gemma 3's special tokens. Raises ValueError as `read_pieces`."""
    pieces = read_pieces(model)
    scores = {piece.text: piece.score for piece in pieces}
    scores.update(dict.fromkeys(list(NAMED.values())[:3], 0.0))
    if "\t" not in scores and BYTE_TAB in scores:  # the first Gemma's model had no piece for a tab
        scores = {("\t" if text == BYTE_TAB else text): score for text, score in scores.items()}
        scores["\t"] = 0.0
    vocabulary = {text: number for number, text in enumerate(scores)}
    if len(vocabulary) != len(pieces):
        raise ValueError("its SentencePiece model has a piece twice")
    known = {piece.text for piece in pieces} | {"\t"}
    bpe = models.BPE(vocabulary, _merges(scores, known), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    special = {piece.text for piece in pieces if piece.kind == CONTROL}.union(TURNS, IMAGE_TOKENS.values())
    tokenizer.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=piece.text in special)
            for piece in pieces
            if piece.kind in (CONTROL, USER_DEFINED)
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **NAMED,
        extra_special_tokens=IMAGE_TOKENS,
        chat_template=chat_template,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _merges(scores: dict[str, float], known: set[str]) -> list[tuple[str, str]]:
    """Every pair of pieces that joins to a third piece. A third piece with a better score comes first; for the same
    third piece, a longer left half comes first."""
    merges = [
        (-score, -cut, cut - len(text), text)
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    ]
    merges.sort(key=lambda merge: merge[:3])  # pieces with equal scores keep the order of the vocabulary
    return [(text[:-cut], text[-cut:]) for _, cut, _, text in merges]


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1:
            text = value.decode("utf-8")
        elif number == 2:
            (score,) = struct.unpack("<f", value)
        elif number == 3:
            kind = value
    return Piece(text, score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields (number, value) of a message's fields. The value is an int for a varint and bytes for any other type."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("it is not a protocol buffer")
        if at + size > end:
            raise ValueError("its SentencePiece model is cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns the number that starts at `at`, and the position after it."""
    number = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise ValueError("its SentencePiece model is cut off")
