"""Text to token ids and back, by the model's own `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import tokenizers
from tokenizers.decoders import DecodeStream

from hub_loader.errors import ModelError

from .quant.gguf_file import open_gguf
from .quant.gguf_tokenizer import read_tokenizer


class Tokenizer:
    """The tokenizer of a model folder, or of a GGUF file."""

    def __init__(self, folder: Path) -> None:
        """Read `tokenizer.json`, or what the file carries.

        Raises:
            ModelError: it is missing or malformed.
        """
        if folder.suffix == ".gguf":
            self._tokenizer = read_tokenizer(open_gguf(folder))
            return
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{folder} has no tokenizer.json: fetch it into the model folder")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every malformed file
            raise ModelError(f"{path} cannot be read ({error}): fetch it again") from None

    def to_json(self) -> str:
        """The tokenizer as tokenizer.json has it."""
        text: str = self._tokenizer.to_str()
        return text

    def vocabulary(self) -> dict[str, int]:
        """Every token's spelling and id, special tokens too."""
        spelled: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return spelled

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; by default with the special tokens the model puts around a prompt.

        A rendered chat has them already: encode it without adding any.
        """
        # Other threads go on meanwhile: the library's `encode` does not let them.
        [encoded] = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoded.ids
        return ids

    def decode(self, tokens: Sequence[int], show_special: bool = False) -> str:
        """Text of token ids, by default without special tokens; half a character becomes U+FFFD."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=not show_special)
        return text

    def stream(self, show_special: bool = False) -> Callable[[int], str]:
        """A function that takes one token id after another and returns the text each completes, perhaps none."""
        decoder = DecodeStream(skip_special_tokens=not show_special)
        return lambda token: decoder.step(self._tokenizer, token) or ""
