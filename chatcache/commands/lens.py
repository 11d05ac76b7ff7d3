"""`chatcache lens`: what a model has read of a session, and why a turn was quick, as text, JSON, or
a picture.

Only a view that asks a model has one loaded, and then the one that the session was read by.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from chatcache import compose
from chatcache.chat.service import ChatService
from chatcache.chat.views import SessionSummary
from chatcache.checks import whole
from chatcache.commands import GROUPS, ShellCommand
from chatcache.commands.parser import Parser, number_option, sampling_options, settings_of
from chatcache.config import Settings
from chatcache.errors import ChatcacheError, NotFoundError, UsageError
from chatcache.frontend import remembered
from chatcache.frontend.lens.ansi import as_coloured_text, has_colours
from chatcache.frontend.lens.exports import as_text, write_new
from chatcache.frontend.lens.lens import Lens
from chatcache.frontend.lens.page import Page
from chatcache.frontend.lens.png import png
from chatcache.frontend.lens.source import LensSource
from chatcache.frontend.lens.state import LensState
from chatcache.frontend.lens.svg import svg
from chatcache.frontend.lens.view import LensView
from chatcache.frontend.lens.views import VIEW_NAMES, VIEWS, view_named
from chatcache.frontend.shell_output import Narrator, is_terminal, print_json, write_data
from chatcache.frontend.shell_turn import watch_backend
from chatcache.places import path_of
from chatcache.remotes import remote_model
from chatcache.sections import QUANTIZE

MIN_WIDTH, MAX_WIDTH = 40, 400
DEFAULT_WIDTH = 80


def configure(parser: Parser) -> None:
    parser.description = (
        "See what a cache is in a session of yours: its turns, the tokens of a prompt by where\n"
        "their K and V came from, what attended to what, and what it cost. Text by default; with\n"
        "--json and no --view, the data of all views. A view that asks a model loads it."
    )
    parser.add_argument(
        "session", nargs="?", metavar="SESSION", help="name or id; left out: the last one"
    )
    parser.add_argument(
        "--view", metavar="V", help=f"{', '.join(VIEW_NAMES)}; default: {VIEW_NAMES[0]}"
    )
    for name, least, words in (
        ("turn", 1, "left out: the last one that was answered"),
        ("token", 0, "a position in the prompt of the turn"),
        ("layer", 0, "counted from 0; left out: averaged over all"),
        ("head", 0, "counted from 0; left out: averaged over all"),
        ("step", 0, "a step of what is played step by step"),
    ):
        kind = number_option(whole(least), int)
        parser.add_argument(f"--{name}", metavar="N", type=kind, help=words)
    parser.add_argument("--ids", action="store_true", help="with the ids of the tokens")
    parser.add_argument(
        "--tokenizer", metavar="M", default="", help="tokens: what that model makes of the question"
    )
    parser.add_argument(
        "--width",
        metavar="N",
        type=number_option(whole(MIN_WIDTH), int),
        help=f"cells; default: those of the terminal, else {DEFAULT_WIDTH}",
    )
    parser.add_argument(
        "--height",
        metavar="N",
        type=number_option(whole(1), int),
        help="lines: long views show what is around the chosen token; default: all",
    )
    parser.add_argument("--svg", metavar="FILE", help="a picture, for light and dark")
    parser.add_argument("--png", metavar="FILE", help="a picture; needs Pillow")
    parser.add_argument(
        "--no-load", action="store_true", help="load no model: show what the disk knows"
    )
    parser.add_sampling()
    parser.add_engine()
    parser.add_json()
    parser.add_quiet()


def run(arguments: Namespace) -> int:
    view = view_named(arguments.view) if arguments.view is not None else None
    pictures = [Path(path_of(name)) for name in (arguments.svg, arguments.png) if name is not None]
    for path in pictures:
        if path.exists():
            raise UsageError(f"{path} is there already.", "Choose another name.")
    views = (view,) if view is not None else VIEWS if arguments.json else VIEWS[:1]
    settings = settings_of(arguments, sampling_options(arguments))
    with compose.opened_service(settings, has_engine=False) as service:
        session = _session(service, settings, arguments.session)
    settings = _for_session(settings, session)
    narrator = Narrator(arguments.quiet)
    with _opened(settings, session, views, narrator, is_loading=not arguments.no_load) as service:
        lens = _lens(service, session, settings, arguments)
        pages = dict(_pages(lens, views, arguments))
        turn = lens.state.turn or lens.source.last_answered() or None
    narrator.release()
    _write(arguments, session, turn, pages, narrator)
    return 0


def _session(service: ChatService, settings: Settings, name: str | None) -> SessionSummary:
    if name is not None:
        return service.find_session(name)
    found = remembered.last_chat(service, settings.paths.data_dir / "last_chat.json")
    if found is None:
        raise NotFoundError("There is no session yet.", "Say something first: `chatcache ask`.")
    return found


def _for_session(settings: Settings, session: SessionSummary) -> Settings:
    """With the model that the session was read by, unless another was named: ids are its own."""
    is_named = settings.origins.get("model.default") in ("option", "environment")
    if is_named or session.model is None:
        return settings
    model = replace(settings.config.model, default=session.model)
    if session.quantization in QUANTIZE and settings.origins.get("model.quantize") != "option":
        model = replace(model, quantize=session.quantization)
    return replace(settings, config=replace(settings.config, model=model))


@contextmanager
def _opened(
    settings: Settings,
    session: SessionSummary,
    views: tuple[LensView[Any], ...],
    narrator: Narrator,
    *,
    is_loading: bool,
) -> Iterator[ChatService]:
    """The conversations, with a model that is loaded where a view needs it and one can answer."""
    is_asked = any(view.need != "disk" for view in views) and session.num_turns > 0
    has_engine = is_asked and is_loading
    with contextlib.ExitStack() as opened:
        service = None
        if has_engine and _is_loadable(settings, narrator, is_alone=len(views) == 1):
            service = opened.enter_context(compose.opened_service(settings, "lens"))
            watch_backend(service, narrator, lambda: compose.sampling(settings))
            if service.backend is not None:
                with _telling(narrator, is_alone=len(views) == 1):
                    service.backend.wait_ready()
        if service is None:
            service = opened.enter_context(compose.opened_service(settings, has_engine=False))
        yield service


def _is_loadable(settings: Settings, narrator: Narrator, *, is_alone: bool) -> bool:
    """Whether there is a model of this machine to load."""
    is_loadable = False
    with _telling(narrator, is_alone=is_alone):
        if remote_model(settings.config.model.default, settings.config.remotes) is None:
            compose.check_model(settings)
            is_loadable = True
    return is_loadable


@contextmanager
def _telling(narrator: Narrator, *, is_alone: bool) -> Iterator[None]:
    """Of several views, what a model would be needed for is left out with a word; one that is
    asked for alone fails with it."""
    try:
        yield
    except ChatcacheError as error:
        if is_alone:
            hint = f"{error.hint} --no-load shows what the disk knows.".strip()
            raise type(error)(error.message, hint) from error
        narrator.warn(f"{error.message} What the disk knows is shown.")


def _lens(
    service: ChatService, session: SessionSummary, settings: Settings, arguments: Namespace
) -> Lens:
    state = LensState(
        token=arguments.token,
        layer=arguments.layer,
        head=arguments.head,
        step=arguments.step,
        has_ids=arguments.ids,
        tokenizer=arguments.tokenizer,
        sampling=compose.sampling(settings).params,
    )
    source = LensSource(service, session.session_id, compose.price_list(settings))
    lens = Lens(source, state=state)
    if arguments.turn is not None:
        lens.choose_turn(arguments.turn)
        lens.state = replace(state, turn=arguments.turn)
    return lens


def _pages(
    lens: Lens, views: tuple[LensView[Any], ...], arguments: Namespace
) -> Iterator[tuple[str, Page]]:
    """Of several views, one that cannot be shown says why; one alone fails with it."""
    width = _width(arguments)
    for view in views:
        lens.show(view.name)
        try:
            yield view.name, lens.page_now(width, arguments.height)
        except ChatcacheError as error:
            if len(views) == 1:
                raise
            problem = {"error": error.message, "hint": error.hint}
            yield view.name, Page(view.title, (), (error.message,), problem)


def _width(arguments: Namespace) -> int:
    if arguments.width is not None:
        return min(MAX_WIDTH, int(arguments.width))
    is_text = not (arguments.json or arguments.svg or arguments.png)
    if is_text and is_terminal(sys.stdout):
        return max(MIN_WIDTH, min(MAX_WIDTH, shutil.get_terminal_size().columns - 1))
    return DEFAULT_WIDTH


def _write(
    arguments: Namespace,
    session: SessionSummary,
    turn: int | None,
    pages: dict[str, Page],
    narrator: Narrator,
) -> None:
    """To stdout and to the files that were named."""
    page = next(iter(pages.values()))
    caption = f"{page.title}: {session.name}" + (f", turn {turn}" if turn else "")
    if arguments.svg is not None:
        write_new(path_of(arguments.svg), svg(page, caption).encode())
        narrator.note(f"Written to {arguments.svg}.")
    if arguments.png is not None:
        write_new(path_of(arguments.png), png(page))
        narrator.note(f"Written to {arguments.png}.")
    if arguments.json:
        data = {
            "session_id": session.session_id,
            "session": session.name,
            "turn": turn,
            "views": {name: shown.data for name, shown in pages.items()},
        }
        print_json(data)
    elif arguments.svg is None and arguments.png is None:
        is_coloured = is_terminal(sys.stdout) and has_colours(os.environ)
        write_data(as_coloured_text(page) if is_coloured else as_text(page), is_last=True)


COMMANDS = {"": ShellCommand(GROUPS["lens"], configure, run)}
