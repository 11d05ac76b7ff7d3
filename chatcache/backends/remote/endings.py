"""What is wrong with how an answer ended, in words; None where it ended well.

Knows the reasons that servers give, and whether anything was written. Asks nothing.
"""

from __future__ import annotations

from chatcache.backends.remote.answer import TOO_LONG, ServerAnswer
from chatcache.errors import UnavailableError

CONTENT_FILTER = ("content_filter", "safety", "SAFETY")
TOOL_CALLS = ("tool_calls", "function_call", "tool_use")


def ending_problem(host: str, answer: ServerAnswer) -> UnavailableError | None:
    """Why what has come is no answer: it is not whole, or there is none at all."""
    if answer.is_begun:
        if answer.is_finished:
            return None
        return UnavailableError(
            f"{host} ended in the middle of the answer.", "What was written is kept."
        )
    if answer.finish_said in CONTENT_FILTER:
        return UnavailableError(
            f"{host} gave no answer: its content filter ended it.",
            "Say it in other words, or choose another model.",
        )
    if answer.finish_said in TOOL_CALLS:
        return UnavailableError(
            f"{host} gave no answer: its model asked for a tool, and there is none here.",
            "Say it in other words, or have the server offer its model no tools.",
        )
    if answer.finish_said is not None:
        return None  # the model had nothing to say
    return UnavailableError(
        f"{host} ended without an answer.",
        "Its log may tell why; often the conversation is too long for its model.",
    )


def ending_remark(host: str, answer: ServerAnswer) -> str:
    """What there is to say of an answer that may lack its end; "": nothing."""
    if answer.finish_said in CONTENT_FILTER:
        return f"The content filter of {host} ended the answer."
    if answer.finish_said in TOOL_CALLS:
        return f"The model at {host} asked for a tool where the answer ends; there is none here."
    if answer.has_words:
        return ""
    if not answer.is_begun:
        return f"The model at {host} answered nothing at all."
    if answer.finish_said in TOO_LONG:
        return f"The model at {host} was still thinking when the limit of the answer was reached."
    return f"The model at {host} wrote thoughts only, and no answer."


def began_anew(host: str) -> UnavailableError:
    return UnavailableError(
        f"{host} wrote another answer instead of going on, so nothing was added.",
        "What is written stays. `/regen` answers anew, and a message such as `Go on.` works.",
    )
