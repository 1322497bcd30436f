"""Writes a tokenizer for Hugging Face's ``AutoTokenizer``, which gives the same ids for the same text.

    tokenizer.json            the tokenizer, for the library ``tokenizers``
    tokenizer_config.json     special tokens, the length of the model
    vocab.json, merges.txt, or tokenizer.model      the original files, which ``import_hf.py`` and others read

The settings of a SentencePiece model are not in its file, so that they are found by trying: of the few possible
settings the one that gives the same ids on varied texts is used, and if none does the model is refused. Two splits of a
unigram model can be equally likely up to rounding, so that the other one may be found.

Two conventions are Hugging Face's: the spelling of a special token in a text is that token, and U+2581 is a space.

A byte-level tokenizer has no counterpart.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.ltd.errors import UserError
from megatron.ltd.hugging_face.config_file import MERGES, SENTENCEPIECE, TOKENIZER, VOCABULARY
from megatron.ltd.tokenizers.base import Tokenizer, needs_tokenizers, read_definition
from megatron.ltd.tokenizers.config import WORDPIECE_TYPES, TokenizerFiles
from megatron.ltd.tokenizers.gpt2_bpe import END_OF_TEXT, byte_alphabet
from megatron.ltd.tokenizers.tiktoken_ranks import WORDS, TikTokenizer

if TYPE_CHECKING:
    import tokenizers

_SPACE = "\u2581"
_PROBES = (
    "Hello world, it's 1868: they'll say 3.14159 isn't pi.",
    "  two spaces before,   three within, and some after   ",
    "def fade(x, *, by=0.5):\n\t'''tab'''\n    return x * by  # \u201cquotes\u201d\r\n\n\n",
    "naïve café, 東京, русский, 🙂, \ufb01, ½, ①, e\u0301",
    "aaaaaaaaaaaa ababababab the the the internationalization",
    "x",
    " ",
)


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Raise ``UserError`` for a tokenizer that Hugging Face has no class for."""
    if tokenizer.name in ("ByteTokenizer", "NullTokenizer") or tokenizer.name in WORDPIECE_TYPES:
        raise UserError(
            f"--tokenizer-type {tokenizer.name}: Hugging Face has no class for the tokenizer of this run; use "
            "--no-tokenizer to export without its files"
        )
    with needs_tokenizers("exporting a tokenizer (see --no-tokenizer)"):
        import tokenizers  # noqa: F401


def write_tokenizer(folder: Path, files: TokenizerFiles, tokenizer: Tokenizer, max_tokens: int) -> None:
    """Write the files of ``tokenizer``, which was built from ``files``; ``max_tokens``: the longest context of the
    model.

    Raises ``UserError`` if no Hugging Face tokenizer gives the same ids.
    """
    if tokenizer.name == "GPT2BPETokenizer":
        vocabulary = read_definition("--vocab-file", files.vocab_file, tokenizer.name)
        merges = read_definition("--merge-file", files.merge_file, tokenizer.name)
        (folder / VOCABULARY).write_bytes(vocabulary)
        (folder / MERGES).write_bytes(merges)
        converted, eod = _byte_level(json.loads(vocabulary), merges.decode("utf-8")), END_OF_TEXT
        unknown: str | None = END_OF_TEXT
        definition = converted.to_str().encode()
    elif isinstance(tokenizer, TikTokenizer):
        definition, eod, unknown = _from_ranks(tokenizer).to_str().encode(), tokenizer.decode([tokenizer.eod]), None
    elif tokenizer.name == "HuggingFaceTokenizer":
        from megatron.ltd.tokenizers.hugging_face import HuggingFaceTokenizer

        assert isinstance(tokenizer, HuggingFaceTokenizer)
        # Without the tokens that it would add around a text: the run was trained without them.
        definition = json.dumps({**json.loads(tokenizer.definition), "post_processor": None}).encode()
        eod, unknown = tokenizer.eod_token, None
    else:
        model = read_definition("--tokenizer-model", files.tokenizer_model, tokenizer.name)
        (folder / SENTENCEPIECE).write_bytes(model)
        converted, eod, unknown = _from_sentencepiece(model, str(files.tokenizer_model), tokenizer)
        definition = converted.to_str().encode()
    (folder / TOKENIZER).write_bytes(definition)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": eod,
        "eos_token": eod,
        "unk_token": unknown,
        "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _byte_level(vocabulary: dict[str, int], merges: str) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Converted

    lines = (line for line in merges.split("\n") if line and not line.startswith("#version"))
    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    converted = Converted(models.BPE(vocab=vocabulary, merges=pairs))
    converted.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    converted.decoder = decoders.ByteLevel()
    converted.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    return converted


def _from_ranks(tokenizer: TikTokenizer) -> tokenizers.Tokenizer:
    """Byte pieces that merge in the order of their ids, after Llama 3's split into words."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Converted

    spelling = {byte: character for character, byte in byte_alphabet().items()}
    vocabulary = {"".join(spelling[byte] for byte in piece): token for piece, token in tokenizer.ranks.items()}
    converted = Converted(models.BPE(vocab=vocabulary, merges=list(_merges(vocabulary)), ignore_merges=True))
    converted.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    converted.decoder = decoders.ByteLevel()
    converted.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in tokenizer.special_tokens]
    )
    if any(converted.encode(text).ids != tokenizer.encode(text) for text in _PROBES):
        raise UserError(
            "--tokenizer-type TikTokenizer: the library tokenizers encodes differently with these ranks; use "
            "--no-tokenizer to export without the tokenizer's files"
        )
    return converted


def _from_sentencepiece(model: bytes, source: str, tokenizer: Tokenizer) -> tuple[tokenizers.Tokenizer, str, str]:
    """The tokenizer, how its end of document is spelled, and its unknown piece."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    for merges, space_before in itertools.product((_has_ranks(processor), False), (False, True)):
        converted = _build(processor, tokenizer.eod, merges=merges, space_before=space_before)
        if all(converted.encode(text).ids == tokenizer.encode(text) for text in _PROBES):
            return converted, processor.id_to_piece(tokenizer.eod), processor.id_to_piece(processor.unk_id())
    raise UserError(
        f"--tokenizer-model {source}: changes text in a way (such as normalisation) that cannot be converted to "
        "Hugging Face's format; use --no-tokenizer to export without its files"
    )


def _has_ranks(processor: Any) -> bool:
    """Whether scores are the order of merges, not probabilities."""
    scores = [processor.get_score(token) for token in _usual_pieces(processor)]
    return scores == [float(-rank) for rank in range(len(scores))]


def _usual_pieces(processor: Any) -> Iterator[int]:
    """Ids of pieces that are text, not special, and not a byte."""
    for token in range(processor.get_piece_size()):
        if not (processor.is_unknown(token) or processor.is_control(token) or processor.is_byte(token)):
            yield token


def _build(processor: Any, eod: int, *, merges: bool, space_before: bool) -> tokenizers.Tokenizer:
    """With ``merges`` pairs are merged (BPE), else the likeliest split is found; a text may begin with a space."""
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Converted

    num_pieces, unknown = processor.get_piece_size(), processor.unk_id()
    has_bytes = any(processor.is_byte(token) for token in range(num_pieces))
    pieces = [processor.id_to_piece(token) for token in range(num_pieces)]
    if merges:
        vocabulary = {piece: token for token, piece in enumerate(pieces)}
        text = {pieces[token]: token for token in _usual_pieces(processor)}
        model: Any = models.BPE(
            vocab=vocabulary, merges=list(_merges(text)), unk_token=pieces[unknown], fuse_unk=True,
            byte_fallback=has_bytes,
        )  # fmt: skip
    else:
        scores = [processor.get_score(token) for token in range(num_pieces)]
        model = models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=unknown, byte_fallback=has_bytes)
    converted = Converted(model)
    marks = [normalizers.Prepend(_SPACE)] if space_before else []
    converted.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(content=" ", left=1)] if space_before else []
    converted.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = [token for token in range(num_pieces) if processor.is_control(token) or token in (unknown, eod)]
    converted.add_special_tokens([AddedToken(pieces[token], normalized=False, special=True) for token in special])
    return converted


def _merges(text: dict[str, int]) -> Iterator[tuple[str, str]]:
    """All pairs of pieces that make a piece, in the order of the pieces."""
    for piece in sorted(text, key=text.__getitem__):
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in text and right in text:
                yield left, right
