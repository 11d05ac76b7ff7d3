"""Talks to a model without end and prints each message once it is on disk; made to be killed."""

from __future__ import annotations

import itertools
import sys

from chatcache.backends.base import SamplingParams
from chatcache.chat.tasks import TurnOptions
from chatcache.chat.views import UserMessageSaved
from chatcache.compose import opened_service
from chatcache.config import load_settings


def main(model: str, round_name: str) -> None:
    settings = load_settings({"model.default": model})
    with opened_service(settings) as service:
        session = service.last_session() or service.create_session("talk")
        for number in itertools.count():
            text = f"round {round_name} message {number}."
            options = TurnOptions(SamplingParams(temperature=0.0, max_new_tokens=8))
            for event in service.send(session.session_id, text, options):
                if isinstance(event, UserMessageSaved):
                    print(text, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
