"""What can be asked of a model and its cache beside turns, and the answers: for the lens.

A question never changes what the cache holds, and nothing that it computes is kept. Those that
need no computing are answered at once, the others between turns. Like everything a backend is
asked: text, ids and numbers, immutable, free of torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from chatcache.backends.usage import Tier as Tier
from chatcache.token_ids import NO_IDS, TokenIds

# tokens


@dataclass(frozen=True, slots=True)
class DescribeTokens:
    """What ids stand for: each token of a vocabulary alone, whatever is around it."""

    ids: TokenIds


@dataclass(frozen=True, slots=True)
class Tokenize:
    """A text as the tokens of a model, which need not be the one that is loaded: `model` is a name
    as `--model` takes it, "" for the loaded one. Control tokens in the text are text."""

    text: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """One token of a vocabulary. `text` is its own text; a part of a character is written as its
    bytes, `<E2><82>`, and `is_part` says so. `is_control` tokens never come from what was typed."""

    token_id: int
    text: str
    is_control: bool = False
    is_part: bool = False


@dataclass(frozen=True, slots=True)
class TokenPieces:
    """Each distinct id once, in the order of first appearance; `ids` are all of them, in order.
    `tokenizer` is a name for people."""

    pieces: tuple[TokenPiece, ...]
    ids: TokenIds = NO_IDS
    tokenizer: str = ""


# the model


@dataclass(frozen=True, slots=True)
class DescribeModel:
    """The numbers of an architecture that decide what its cache takes."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """`kv_heads` is that of the first layer that keeps K and V. `latent_dim` is the width of what
    multi-head latent attention keeps, 0 without. `windows` are the sliding windows of the layers,
    0 for a layer that sees everything; `num_states` counts the layers with a recurrent state."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_parameters: int
    bytes_per_number: int
    kv_bytes_per_token: int
    windows: tuple[int, ...] = ()
    num_states: int = 0
    latent_dim: int = 0


# attention


@dataclass(frozen=True, slots=True)
class AskAttention:
    """What the tokens at positions `first` to `last` (the last one included) of a path attended to.

    Made from the K that is kept, by computing those tokens once more behind it. `layer` and `head`
    None: averaged over all of them."""

    ids: TokenIds
    first: int
    last: int
    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """One row per token asked for: its weights on positions 0 to itself, which add up to one.

    `num_computed` tokens were computed for it in `seconds`; `num_reused` came from the cache.
    """

    first: int
    rows: tuple[tuple[float, ...], ...]
    num_layers: int
    num_heads: int
    num_computed: int
    num_reused: int
    seconds: float


# the next token


@dataclass(frozen=True, slots=True)
class AskNextTokens:
    """The model's scores behind a path: the `num_tokens` most probable tokens, and with each of
    the sampling settings what becomes of them. None: off, as in `SamplingParams`."""

    ids: TokenIds
    num_tokens: int = 10
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class NextToken:
    """`probability` is the model's, `sampled` what it is after the settings (0: cut off)."""

    piece: TokenPiece
    logit: float
    probability: float
    sampled: float


@dataclass(frozen=True, slots=True)
class NextTokens:
    """`num_left` tokens of the vocabulary can still be drawn with the settings; `entropy_bits` of
    the model's own distribution. Costs as in `AttentionRows`."""

    candidates: tuple[NextToken, ...]
    num_left: int
    entropy_bits: float
    num_computed: int
    num_reused: int
    seconds: float


# the tree

TreeChange = Literal["inserted", "split", "evicted", "spilled", "restored", "hit", "given_up"]


@dataclass(frozen=True, slots=True)
class AskTree:
    """The radix tree of the model's namespace, and what happened to it last."""

    num_events: int = 64


@dataclass(frozen=True, slots=True)
class TreeEdge:
    """One edge: tokens `start` to `stop` of all paths through it.

    `parent` is the number of the edge above, -1 at the root; edges are numbered in the order of
    `TreeShape.edges`, parents first. `num_below` are the ends of paths below it that share it.
    Times are Unix time."""

    parent: int
    start: int
    ids: TokenIds
    tiers: tuple[Tier, ...]
    num_bytes: int
    num_below: int
    hits: int
    last_used: float
    is_pinned: bool = False
    is_live: bool = False

    @property
    def stop(self) -> int:
        return self.start + len(self.ids)


@dataclass(frozen=True, slots=True)
class TreeEvent:
    """One change: tokens `start` to `stop` of the path that ends with `tail`, its last ids."""

    number: int
    at: float
    change: TreeChange
    start: int
    stop: int
    tier: Tier | None = None
    tail: TokenIds = NO_IDS
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TreeShape:
    edges: tuple[TreeEdge, ...]
    events: tuple[TreeEvent, ...] = field(default=())


Question = DescribeTokens | Tokenize | DescribeModel | AskAttention | AskNextTokens | AskTree
Answer = TokenPieces | ModelShape | AttentionRows | NextTokens | TreeShape


def is_quick(question: Question) -> bool:
    """Whether it is answered at once, also during a turn: nothing is computed or loaded for it."""
    if isinstance(question, Tokenize):
        return not question.model
    return not isinstance(question, (AskAttention, AskNextTokens))
