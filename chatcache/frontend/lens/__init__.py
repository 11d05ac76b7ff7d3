"""The lens: what a cache is, seen in a conversation of one's own.

Each view is a module: frozen facts, made of what the chat database keeps and of what the engine
answers; and one function that draws them as a `Page`. The screen, plain mode, the command and the
pictures all show that page.
"""
