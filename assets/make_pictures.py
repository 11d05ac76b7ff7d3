"""Takes the pictures of the README from the real program: `python assets/make_pictures.py`.

A chat with the built-in model is had in a temporary home, left, taken up again by a second engine
process, and forked. Nothing is composed: what is seen is what was answered and measured.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent
SIZE = (120, 36)
SECONDS = 120
FIRST = (
    "Hello! My name is Maralin and I live in Oslo.",
    "What is a KV cache?",
    "My cat is called Pip.",
)
LATER = ("What is my name?",)
# What the lens shows of that last turn: behind ` is` the model looks for what followed it before.
LENS = {
    "tokens": (),
    "attention": ("--token", "142", "--height", "24"),
    "growth": ("--step", "2"),
    "next": ("--turn", "2", "--step", "3", "--temperature", "0.7"),
    "tree": (),
}
FORKED = ("/fork 2", "How do I fork a chat?")


async def until(pilot: Any, is_true: Callable[[], bool]) -> None:
    for _ in range(SECONDS * 20):
        await pilot.pause(0.05)
        if is_true():
            return
    raise TimeoutError


async def talk(texts: tuple[str, ...], picture: str, after: tuple[str, ...] = ()) -> None:
    from chatcache.compose import opened_service
    from chatcache.config import load_settings
    from chatcache.frontend.options import Backstage
    from chatcache.frontend.sampling import Sampling
    from chatcache.tui.app import ChatCacheApp

    with opened_service(load_settings()) as service:
        service.backend.wait_ready(SECONDS)  # type: ignore[union-attr]
        app = ChatCacheApp(lambda: Backstage(service, Sampling()))
        async with app.run_test(size=SIZE) as pilot:
            await pilot.pause(1)
            for text in texts:
                num_answers = _num_answers(service)
                app.screen.composer.set_text(text)  # type: ignore[attr-defined]
                await pilot.press("enter")
                if not text.startswith("/"):
                    await until(pilot, lambda n=num_answers: _num_answers(service) > n)  # type: ignore[misc]
                await pilot.pause(1)
            for key in after:
                await pilot.press(key)
                await pilot.pause(1)
            (ASSETS / picture).write_text(app.export_screenshot(title="chatcache"))


def look(view: str, options: tuple[str, ...]) -> None:
    from chatcache import cli

    picture = ASSETS / f"lens-{view}.svg"
    picture.unlink(missing_ok=True)
    if cli.main(["lens", "--view", view, "--svg", str(picture), "--quiet", *options]):
        raise RuntimeError(f"no picture of {view}")


def _num_answers(service: Any) -> int:
    session = service.last_session()
    if session is None:
        return 0
    messages = service.transcript(session.session_id)
    return sum(message.role == "assistant" for message in messages)


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        for name in ("DATA_DIR", "CACHE_DIR"):
            os.environ[f"CHATCACHE_{name}"] = str(Path(home) / name.lower())
        os.environ["CHATCACHE_CONFIG"] = str(Path(home) / "config.toml")
        os.environ["CHATCACHE_KEEP_ALIVE"] = "none"  # no engine is left behind
        asyncio.run(talk(FIRST, "chat.svg"))
        asyncio.run(talk(LATER, "chat.svg"))
        asyncio.run(talk((), "lens.svg", after=("f6",)))
        for view, options in LENS.items():
            look(view, options)
        asyncio.run(talk((), "fork.svg", after=("f4",)))
        asyncio.run(talk(FORKED, "tree.svg", after=("f3",)))


if __name__ == "__main__":
    main()
