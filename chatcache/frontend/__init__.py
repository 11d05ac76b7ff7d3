"""What the two front ends share: the registry of commands, words for figures, texts and files.

Textual-free: the plain mode must not load a UI toolkit. Knows the chat service's types, and
neither screens nor terminals.
"""
