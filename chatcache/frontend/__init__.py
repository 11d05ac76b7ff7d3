"""What the front ends share: the open chat, the model choice, the commands, words for figures.

Textual-free: the plain mode must not load a UI toolkit. Knows the chat service's types, and
neither screens nor terminals.
"""
