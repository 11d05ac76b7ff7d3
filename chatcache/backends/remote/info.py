"""What is known of a model that a server has: which one is meant, and what to say of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chatcache.backends.base import ModelInfo
from chatcache.backends.remote.explanation import names_words
from chatcache.backends.remote.listing import ServerModel
from chatcache.cache.book.namespace import namespace_id
from chatcache.errors import UsageError
from chatcache.network import proxy_for
from chatcache.remotes import RemoteModel, RemoteProfile

# Journals hold token ids, and a server tells none: no model of this machine shares this name.
TOKENIZER = "remote"


def choose_model(
    remote: RemoteModel, offered: Sequence[ServerModel]
) -> tuple[RemoteModel, ServerModel]:
    """The model that is meant, with what the server tells of it.

    A server with only one model needs no name. A name that is not in the list may be another name
    of one that is: the server decides. Raises UsageError when a name is missing.
    """
    if remote.model is not None:
        found = [model for model in offered if model.name == remote.model] or [
            replace(model, max_context_tokens=0, num_parameters=0) for model in offered[:1]
        ]
        return remote, found[0] if found else ServerModel(remote.model)
    profile = remote.profile
    if len(offered) != 1:
        raise UsageError(
            f"The profile {profile.name!r} names no model.",
            f"{names_words([model.name for model in offered]) if offered else ''}"
            f" Say {profile.name}:NAME, or set remote.{profile.name}.model.".strip(),
        )
    return replace(remote, model=offered[0].name), offered[0]


def model_info(remote: RemoteModel, chosen: ServerModel) -> ModelInfo:
    """The model as front ends show it. What K and V are, the server does not say."""
    profile = remote.profile
    fields = {
        "weights": remote.name,
        "soft.name": remote.name,
        "soft.server": profile.host,
        "soft.reach": "this machine" if profile.is_loopback else "network",
    }
    return ModelInfo(
        model=remote.name,
        backend="remote",
        architecture="",
        num_parameters=chosen.num_parameters,
        dtype="",
        device=profile.host,
        num_layers=0,
        kv_bytes_per_token=0,
        max_context_tokens=chosen.max_context_tokens,
        cut="none",
        cut_detail="the server keeps its own cache; nothing of it is on this side",
        tokenizer_id=TOKENIZER,
        namespace=namespace_id(fields),
        namespace_fields=fields,
        description=privacy_words(profile),
    )


def privacy_words(profile: RemoteProfile) -> str:
    """Where the messages go, and who can read them on the way."""
    if profile.is_loopback:
        return "A server on this machine."
    proxy = proxy_for(profile.api_url)
    way = "" if proxy is None else f" by way of the proxy of {proxy.origin}"
    words = f"Your messages go to {profile.host}{way}, each time with the whole chat before them."
    return words if profile.is_encrypted else f"{words} The way there is not encrypted."
