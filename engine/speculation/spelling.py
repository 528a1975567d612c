"""From the words of `speculate=` to a proposer."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from hub_loader.errors import SelfTestError, UsageError

from ..config import ModelConfig, load_config
from ..device import CPU
from ..kernels import Kernels
from ..model import Decoder
from ..model_source import find_model
from ..self_test import proven, shapes_of
from ..tokenizer import Tokenizer
from ..weights import open_weights
from .draft_model import BLOCK_SIZE, DraftModel, ModelChain, ModelTree
from .ngram import NGram
from .proposer import Proposer

SPELLINGS = "ngram:TOKENS, draft:MODEL:TOKENS, tree:MODEL:NODES or tree:MODEL:NODES:DEPTH"
_PATTERN = re.compile(
    r"(?P<kind>ngram):(?P<count>[1-9]\d*)"
    r"|(?P<kind1>draft):(?P<model1>.+):(?P<count1>[1-9]\d*)"
    r"|(?P<kind2>tree):(?P<model2>.+?):(?P<count2>[1-9]\d*)(:(?P<depth2>[1-9]\d*))?"
)


@dataclass(frozen=True)
class Spelling:
    """What `speculate` asks for. count: tokens of a chain or nodes of a tree; depth: of a tree's deepest node."""

    kind: str
    model: str
    count: int
    depth: int


def parse(text: str) -> Spelling:
    """Parse "ngram:4", "draft:MODEL:4", "tree:MODEL:16" (half as deep as it has nodes) or "tree:MODEL:16:6".

    Raises:
        UsageError: none of these.
    """
    match = _PATTERN.fullmatch(text)
    if not match:
        raise UsageError(f"speculate {text!r}: expected {SPELLINGS}, the numbers at least 1")
    found = {name.rstrip("12"): value for name, value in match.groupdict().items() if value}
    count = int(found["count"])
    depth = int(found.get("depth", -(-count // 2)))
    return Spelling(found["kind"], found.get("model", ""), count, min(depth, count))


@dataclass(frozen=True)
class Target:
    """The model that is guessed for: what a draft model has to share with it.

    tokens: how many the cache holds. places: how many lines run at a time. fall_back: as of `proven`.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    kernels: Kernels
    dtype: torch.dtype
    tokens: int
    places: int
    fall_back: bool = False
    device: torch.device = CPU


def make_proposer(speculate: str | Proposer | None, target: Target) -> Proposer | None:
    """The proposer that is spelled, its model loaded, or the given one.

    Raises:
        UsageError: the words mean nothing, the draft model's tokens mean something else, or attention cannot compute
            what is asked for.
        ModelError: the draft model cannot be loaded.
        SelfTestError: a kernel does not compute in the draft model's shapes what it should.
    """
    proposer = _make(parse(speculate), target) if isinstance(speculate, str) else speculate
    if proposer is None or not proposer.draws_trees:
        return proposer
    if not target.kernels.takes_trees:
        raise UsageError(
            "draft trees need a tree_mask, which the kernel of slot attention does not take: "
            "use attention=torch, or speculate with chains"
        )
    return proposer


def _make(spelling: Spelling, target: Target) -> Proposer:
    if spelling.kind == "ngram":
        return NGram(spelling.count)
    model = _load(spelling.model, target)
    if spelling.kind == "draft":
        return ModelChain(model, spelling.count)
    return ModelTree(model, spelling.count, spelling.depth)


def _load(model: str, target: Target) -> DraftModel:
    folder = find_model(model)
    config = load_config(folder)
    if Tokenizer(folder).vocabulary() != target.tokenizer.vocabulary():
        raise UsageError(
            f"the tokens of draft model {model} are not the model's: choose one with its tokenizer"
        )
    weights = open_weights(folder, config.scheme)
    shapes = shapes_of(config, target.dtype, BLOCK_SIZE, weights.formats, weights, str(target.device))
    try:
        kernels = proven(target.kernels, shapes, fall_back=target.fall_back)
    except SelfTestError as error:
        raise SelfTestError(f"draft model {model}: {error}") from error
    decoder = Decoder(config, weights, kernels, target.dtype, device=target.device)
    return DraftModel(decoder, kernels.plan_step, target.config.vocab_size, target.tokens, target.places)
