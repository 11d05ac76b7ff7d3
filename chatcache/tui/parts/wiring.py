"""Puts together what works behind the chat screen, as soon as there is a service to work on."""

from __future__ import annotations

from chatcache.frontend.open_chat import OpenChat
from chatcache.frontend.options import Backstage, ChatOptions
from chatcache.tui.panel.state import PanelState
from chatcache.tui.parts.chat_view import ChatView
from chatcache.tui.parts.drafts import DraftKeeper
from chatcache.tui.parts.idle import IdleHooks
from chatcache.tui.parts.listening import Listening
from chatcache.tui.parts.long_work import LongWork
from chatcache.tui.parts.turns import Turns
from chatcache.tui.stage import Stage
from chatcache.tui.status import BackendStatus
from chatcache.tui.widgets.bars import TitleBar
from chatcache.tui.widgets.composer import Composer
from chatcache.tui.widgets.transcript import Transcript


class ChatParts:
    """Everything that works for one chat screen; each part is given the peers that it uses."""

    def __init__(
        self,
        stage: Stage,
        backstage: Backstage,
        options: ChatOptions,
        status: BackendStatus,
        panel: PanelState,
        title: TitleBar,
        transcript: Transcript,
        composer: Composer,
        drafts: DraftKeeper,
    ) -> None:
        self.stage, self.options, self.status, self.panel = stage, options, status, panel
        self.transcript, self.composer, self.desk = transcript, composer, backstage.desk
        self.chat = OpenChat(
            backstage.service,
            sampling=backstage.sampling,
            personas=options.personas,
            prices=options.prices,
            is_busy=lambda: self.turns.running is not None,
        )
        self.view = ChatView(stage, self.chat, options, title, transcript, composer, panel, drafts)
        self.turns = Turns(stage, self.chat, self.view, transcript, composer, panel)
        drafts.queued = lambda: self.turns.unsaved_texts
        self.idle = IdleHooks(stage, self.chat, self.turns, composer)
        self.listening = Listening(stage, backstage.service.backend, status, panel)
        self.work = LongWork(stage)
