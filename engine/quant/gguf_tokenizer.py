"""The tokenizer that a GGUF file carries, as a `tokenizers` object; tokenizer.json beside the file goes before it."""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from hub_loader.errors import ModelError

from .gguf_file import GGUFFile

# How text is cut before merging, by the name that the file gives: digits alone or in threes.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {
    "llama-bpe": _WORDS % "{1,3}",
    "llama3": _WORDS % "{1,3}",
    "llama-v3": _WORDS % "{1,3}",
    "qwen2": _WORDS % "",
    "gpt-2": None,
    "default": None,
}
# Of these a word that is a token is never merged from its parts, and text begins with BOS unless the file says not.
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_CONTROL, _USER_DEFINED = 3, 4


def read_tokenizer(file: GGUFFile) -> tokenizers.Tokenizer:
    """Byte-level BPE from the file's metadata.

    Raises:
        ModelError: it has another kind of tokenizer, or cuts text in a way that is not known here; or the tokenizer,
            here or beside the file, is malformed.
    """
    beside = file.path.parent / "tokenizer.json"
    try:
        return tokenizers.Tokenizer.from_file(str(beside)) if beside.is_file() else _build(file)
    except ModelError:
        raise
    except Exception as error:  # the library raises bare Exception for whatever is malformed
        source = beside if beside.is_file() else f"{file.path}: its tokenizer"
        raise ModelError(f"{source} cannot be read ({error}): fetch it again") from None


def _build(file: GGUFFile) -> tokenizers.Tokenizer:
    kind, cut = file.field("tokenizer.ggml.model"), file.field("tokenizer.ggml.pre") or "default"
    cure = f"put the model's tokenizer.json beside {file.path.name}"
    if kind != "gpt2" or cut not in _CUTS:
        raise ModelError(f"{file.path}: tokenizer {kind!r} with {cut!r} is not read from GGUF: {cure}")
    texts, merges = file.field("tokenizer.ggml.tokens"), file.field("tokenizer.ggml.merges")
    if not texts or merges is None:
        raise ModelError(f"{file.path} has no tokens or no merges: {cure}")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={text: i for i, text in enumerate(texts)}, merges=pairs, ignore_merges=cut in _LLAMA3
        )
    )
    words = _CUTS[cut]
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)]
    if words is not None:
        steps.insert(0, pre_tokenizers.Split(tokenizers.Regex(words), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    kinds = file.field("tokenizer.ggml.token_type") or []
    for text, its_kind in zip(texts, kinds, strict=False):
        if its_kind in (_CONTROL, _USER_DEFINED):
            tokenizer.add_tokens([AddedToken(text, special=its_kind == _CONTROL, normalized=False)])
    bos, adds = file.field("tokenizer.ggml.bos_token_id"), file.field("tokenizer.ggml.add_bos_token")
    if bos is not None and (cut in _LLAMA3 if adds is None else adds):
        first = texts[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first}:0 $A:0", special_tokens=[(first, bos)]
        )
    return tokenizer
