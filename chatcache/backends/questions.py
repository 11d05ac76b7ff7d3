"""What can be asked of a model and its cache beside turns, and the answers: for the lens.

A question never changes what the cache holds, and nothing that it computes is kept. Those that
need no computing are answered at once, the others between turns. Like everything a backend is
asked: text, ids and numbers, immutable, free of torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from chatcache.cache.views import TreeChange as TreeChange
from chatcache.cache.views import TreeEdge as TreeEdge
from chatcache.cache.views import TreeEvent as TreeEvent
from chatcache.cache.views import TreeSegment as TreeSegment
from chatcache.cache.views import TreeShape as TreeShape
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
    """`num_kv_heads` is that of the first layer that keeps K and V, `head_dim` the mean width of
    both. `latent_dim` is the width of what multi-head latent attention keeps in the place of those,
    0 without. `windows` are the sliding windows of the layers, 0 for a layer that sees everything;
    `num_states` counts the layers with a recurrent or convolution state. `has_tied_embeddings`: one
    matrix embeds tokens and scores them. `prefill_chunk` is the most tokens of a prompt that are
    computed at once, 0 where that is not known."""

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
    has_tied_embeddings: bool = True
    prefill_chunk: int = 0


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
    """One row per token asked for: its weights on positions 0 to itself. They add up to one, but
    in models that can attend to nothing (sinks).

    `num_layers` are those with attention; they are numbered without the others. `num_computed`
    tokens were computed for it in `seconds`, `num_reused` came from the cache. No token is computed
    for another layer or head of the rows that were asked for last.
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
    """The model's scores behind a path: the `num_tokens` most probable tokens, and what becomes of
    them with the sampling settings. As in `SamplingParams`, None: what the model's generation
    config says, else off. Temperature 0, top-k 0, top-p 1, min-p 0, penalty 1: off in any case;
    without a temperature the most probable token is taken."""

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
    the model's own distribution. Costs as in `AttentionRows`. The last five are the settings that
    counted."""

    candidates: tuple[NextToken, ...]
    num_left: int
    entropy_bits: float
    num_computed: int
    num_reused: int
    seconds: float
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


# the tree


@dataclass(frozen=True, slots=True)
class AskTree:
    """The radix tree of the model's namespace, and what happened to it last."""

    num_events: int = 64


Question = DescribeTokens | Tokenize | DescribeModel | AskAttention | AskNextTokens | AskTree
Answer = TokenPieces | ModelShape | AttentionRows | NextTokens | TreeShape


def is_quick(question: Question) -> bool:
    """Whether it is answered at once, also during a turn: nothing is computed or loaded for it."""
    if isinstance(question, Tokenize):
        return not question.model
    return not isinstance(question, (AskAttention, AskNextTokens))
