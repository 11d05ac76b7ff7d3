"""Puts together what works behind the chat screen, as soon as there is a service to work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chatcache.frontend.open_chat import OpenChat
from chatcache.frontend.options import Backstage, ChatOptions
from chatcache.tui.panel.state import PanelState
from chatcache.tui.parts.chat_view import ChatView
from chatcache.tui.parts.idle import IdleHooks
from chatcache.tui.parts.listening import Listening
from chatcache.tui.parts.long_work import LongWork
from chatcache.tui.parts.turns import Turns
from chatcache.tui.stage import Stage
from chatcache.tui.status import BackendStatus
from chatcache.tui.widgets.bars import TitleBar
from chatcache.tui.widgets.composer import Composer
from chatcache.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from chatcache.frontend.desk import SegmentDesk


@dataclass(frozen=True, slots=True)
class ChatParts:
    """Everything that works for one chat screen."""

    options: ChatOptions
    status: BackendStatus
    panel: PanelState
    transcript: Transcript
    composer: Composer
    desk: SegmentDesk | None
    chat: OpenChat
    view: ChatView
    turns: Turns
    idle: IdleHooks
    listening: Listening
    work: LongWork


def assemble(
    stage: Stage,
    backstage: Backstage,
    options: ChatOptions,
    status: BackendStatus,
    panel: PanelState,
    title: TitleBar,
    transcript: Transcript,
    composer: Composer,
) -> ChatParts:
    """Give each part the peers that it uses."""
    service = backstage.service
    chat = OpenChat(
        service,
        sampling=backstage.sampling,
        personas=options.personas,
        is_busy=lambda: turns.running is not None,
    )
    view = ChatView(stage, chat, options, title, transcript, composer, panel)
    turns = Turns(stage, chat, view, transcript, composer, panel)
    return ChatParts(
        options=options,
        status=status,
        panel=panel,
        transcript=transcript,
        composer=composer,
        desk=backstage.desk,
        chat=chat,
        view=view,
        turns=turns,
        idle=IdleHooks(stage, chat, view, turns, composer),
        listening=Listening(stage, service.backend, status, panel),
        work=LongWork(stage),
    )
