"""Paths as people read them: the messages of a transcript, and the places to fork at."""

from __future__ import annotations

from collections.abc import Sequence

from chatcache.backends.base import CostEstimate
from chatcache.chat.conversation import one_line
from chatcache.chat.costs import NO_COST, CostBook
from chatcache.chat.journal_table import AnswerFigures
from chatcache.chat.node_table import StoredNode
from chatcache.chat.store import SessionStore
from chatcache.chat.views import ForkPoint, TranscriptMessage

LINE_LENGTH = 200

# Costs are asked for the newest places first, as long as their journals stay within this sum.
MAX_ESTIMATED_TOKENS = 2_000_000


def transcript(
    store: SessionStore, tip: int | None, last_turns: int | None
) -> list[TranscriptMessage]:
    """The messages from root to tip, or those of the last turns."""
    if tip is None:
        return []
    above = -1
    if last_turns is not None:
        num_left_out = store.nodes.get(tip).node.turn - max(0, last_turns)
        above = num_left_out if num_left_out > 0 else -1
    path = store.nodes.path(tip, above_turn=above)
    variants = store.nodes.variants(path)
    figures = store.answers.along(tip, above_turn=above)
    return [
        _shown(stored, figures.get(stored.seq), variants.get(stored.seq, (0, 1))) for stored in path
    ]


def _shown(
    stored: StoredNode, figures: AnswerFigures | None, variant: tuple[int, int]
) -> TranscriptMessage:
    node, message = stored.node, stored.node.message
    return TranscriptMessage(
        node_id=node.node_id,
        turn=node.turn,
        role=node.role,
        text=node.text,
        reasoning=message.reasoning,
        model=message.model,
        finish_reason=message.finish_reason,
        created_at=message.created_ms / 1000.0,
        num_tokens=stored.num_tokens,
        result_json=figures.result_json if figures else None,
        num_siblings=variant[1],
        sibling_index=variant[0],
        quantization=figures.quantization if figures else "",
    )


def variants_of(store: SessionStore, node_id: str) -> list[str]:
    """The ids of the messages beside one and itself, oldest first; [] for an unknown id."""
    stored = store.nodes.find(node_id)
    return [sibling.node.node_id for sibling in store.nodes.siblings(stored)] if stored else []


def fork_points(store: SessionStore, tip: int | None, costs: CostBook) -> list[ForkPoint]:
    """One place per turn, newest first, and last the system prompt alone."""
    path = store.nodes.path(tip)
    by_turn: dict[int, list[StoredNode]] = {0: []}
    for stored in path:
        by_turn.setdefault(stored.node.turn, []).append(stored)
    ends = [nodes[-1].seq for nodes in by_turn.values() if nodes]
    estimates = _estimates(store, tip, ends, costs)
    points = []
    for turn, nodes in sorted(by_turn.items(), reverse=True):
        last = nodes[-1] if nodes else None
        points.append(
            ForkPoint(
                turn=turn,
                user_text=_line(nodes, "user"),
                answer_text=_line(nodes, "assistant"),
                num_tokens=last.num_tokens if last else 0,
                cost=estimates.get(last.seq) if last and turn else NO_COST,
            )
        )
    return points


def _line(nodes: Sequence[StoredNode], role: str) -> str:
    return next(
        (one_line(stored.node.text, LINE_LENGTH) for stored in nodes if stored.node.role == role),
        "",
    )


def _estimates(
    store: SessionStore, tip: int | None, ends: Sequence[int], costs: CostBook
) -> dict[int, CostEstimate | None]:
    known = costs.tokenizer_of(tip)
    if known is None:
        return {}
    namespace_id, tokenizer_id = known
    path = store.journals.along(tip, tokenizer_id)
    budget = MAX_ESTIMATED_TOKENS
    wanted: set[int] = set()
    for seq in sorted(set(ends) & set(path.lengths), reverse=True):
        budget -= path.lengths[seq]
        if budget < 0 and wanted:
            break
        wanted.add(seq)
    journals = path.of(wanted)
    estimates = costs.estimate(namespace_id, list(journals.values()))
    return dict(zip(journals, estimates, strict=True))
