"""What keys and values take and save, in bytes and multiplications, from the shape of a model.

All are counts of what the arithmetic needs, of no machine; the bench measures times. With h heads
of width d, and k keys that a token looks at:

    linear layers      one multiplication per weight and token; the table of embeddings is looked
                       up, and the output matrix is multiplied where scores are needed
    attention          2 h d k per token and layer: queries times keys, weights times values
    keys and values    layers x 2 x KV heads x d numbers per token; multi-head latent attention
                       keeps one latent vector per token and layer instead

A mixture of experts multiplies fewer weights than it has, so its counts are upper limits.
"""

from __future__ import annotations

from dataclasses import dataclass

from chatcache.backends.questions import ModelShape

# A latent for K and V of 4 heads' width and half a head for the positions, as DeepSeek-V2 (2024)
# has it, for a model without one.
LATENT_HEADS = 4.5
GROUP = 4  # heads that share K and V, for a model of which none do


@dataclass(frozen=True, slots=True)
class Work:
    """Multiplications: in the linear layers, and with keys and values."""

    linear: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        return self.linear + self.attention

    def __add__(self, other: Work) -> Work:
        return Work(self.linear + other.linear, self.attention + other.attention)


def work(shape: ModelShape, start: int, stop: int, num_scored: int = 1) -> Work:
    """Computing positions `start` to `stop` behind the rows before them; `num_scored` of them get
    scores for what comes next."""
    num_tokens = max(0, stop - start)
    if not num_tokens:
        return Work()
    matrix = shape.vocab_size * shape.hidden_size
    inner = max(0, shape.num_parameters - matrix * num_embedding_matrices(shape))
    linear = num_tokens * inner + num_scored * matrix
    per_key = 2 * shape.num_heads * shape.head_dim
    return Work(linear, per_key * sum(_keys(start, stop, window) for window in _windows(shape)))


def work_before_each(shape: ModelShape, start: int, stop: int) -> Work:
    """For each position from `start` to `stop`: computing all rows before it, without scores."""
    num_rows = (stop * (stop - 1) - start * (start - 1)) // 2
    matrix = shape.vocab_size * shape.hidden_size * num_embedding_matrices(shape)
    per_key = 2 * shape.num_heads * shape.head_dim
    keys = sum(_keys_below(stop, w) - _keys_below(start, w) for w in _windows(shape))
    return Work(num_rows * max(0, shape.num_parameters - matrix), per_key * keys)


def num_embedding_matrices(shape: ModelShape) -> int:
    """1 where the table of embeddings is the output matrix as well."""
    return 1 if shape.has_tied_embeddings else 2


def num_kv_layers(shape: ModelShape) -> int:
    """The layers that keep a row per token: as many as fit into what is kept. Others keep a state
    of one size; a layer may have both."""
    per_layer = shape.latent_dim or 2 * shape.num_kv_heads * shape.head_dim
    per_layer *= shape.bytes_per_number
    if per_layer and shape.kv_bytes_per_token % per_layer == 0:
        return min(shape.num_layers, shape.kv_bytes_per_token // per_layer)
    return max(0, shape.num_layers - shape.num_states)


def _windows(shape: ModelShape) -> list[int]:
    """How far back the layers with attention look; 0: to the beginning."""
    num_layers = num_kv_layers(shape)
    windows = [*shape.windows[: shape.num_layers]]
    windows += [0] * (shape.num_layers - len(windows))
    return sorted(windows)[shape.num_layers - num_layers :]  # a state has no window


def _keys(start: int, stop: int, window: int) -> int:
    """The keys that positions look at in one layer, summed up."""
    full = stop if not window else min(stop, max(start, window))
    seen = (full * (full + 1) - start * (start + 1)) // 2
    return seen + (stop - full) * window


def _keys_below(stop: int, window: int) -> int:
    """The sum of `_keys(0, position, window)` over the positions below `stop`."""
    full = min(stop, window) if window else stop
    seen = (full - 1) * full * (full + 1) // 6
    if full == stop:
        return seen
    rest = stop - window  # positions from the window on: each has a full triangle, and a rectangle
    return seen + rest * (window * (window + 1) // 2) + window * (rest * (rest - 1) // 2)


@dataclass(frozen=True, slots=True)
class Keeping:
    """A way to keep keys and values, and what it takes per token for a model of this size."""

    name: str
    what: str
    num_bytes: int
    is_own: bool = False


def formula_bytes(shape: ModelShape, num_kv_heads: int) -> int:
    return num_kv_layers(shape) * 2 * num_kv_heads * shape.head_dim * shape.bytes_per_number


def latent_width(shape: ModelShape) -> int:
    return shape.latent_dim or round(LATENT_HEADS * shape.head_dim)


def latent_bytes(shape: ModelShape) -> int:
    return num_kv_layers(shape) * latent_width(shape) * shape.bytes_per_number


def keepings(shape: ModelShape) -> tuple[Keeping, ...]:
    """Multi-head, grouped-query, multi-query and latent attention, the model's own among them."""
    heads, own = shape.num_heads, shape.num_kv_heads
    is_latent = shape.latent_dim > 0
    grouped = own if 1 < own < heads else max(1, heads // GROUP)
    ways = (("MHA", heads), ("GQA", grouped), ("MQA", 1))
    found = [
        Keeping(
            name,
            f"{number} KV head{'' if number == 1 else 's'}",
            formula_bytes(shape, number),
            number == own and not is_latent,
        )
        for name, number in ways
    ]
    latent = f"one latent of {latent_width(shape)}"
    found.append(Keeping("MLA", latent, latent_bytes(shape), is_latent))
    return tuple(found)
