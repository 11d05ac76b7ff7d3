"""The token ids of one turn, from what the database keeps of it."""

from __future__ import annotations

from chatcache.chat import figures
from chatcache.chat.conversation import check_turn
from chatcache.chat.store import SessionStore
from chatcache.chat.views import TurnIds


def turn_ids(store: SessionStore, tip: int | None, turn: int | None) -> TurnIds | None:
    """Of turn `turn` on the path to a tip; None: of the last one. None when no model has read it,
    or nothing was said. Raises NotFoundError for a number that is none of a turn."""
    path = store.nodes.path(tip)
    last = path[-1].node.turn if path else 0
    if turn is not None:
        check_turn(turn, last, first=1)
    nodes = {stored.seq: stored.node for stored in path if stored.node.turn == (turn or last)}
    namespace = store.answers.last_namespace(max(nodes, default=None)) if last else None
    if namespace is None:
        return None
    journal = store.journals.along(max(nodes), namespace.tokenizer_id)
    end = journal.last_of(nodes)
    if end is None:
        return None
    ids, namespace_id, num_prompt = journal.up_to(end), "", None
    if (told := store.answers.along(end).get(end)) is not None:
        namespace_id, read = told.namespace_id or "", figures.decode(told.result_json)
        num_prompt = read.usage.prompt_tokens if read else None
    return TurnIds(
        turn=nodes[end].turn,
        node_id=nodes[end].node_id,
        namespace_id=namespace_id,
        tokenizer_id=namespace.tokenizer_id,
        prompt=ids[:num_prompt],
        answer=ids[len(ids[:num_prompt]) :],
    )
