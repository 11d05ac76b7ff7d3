"""The remote backend: a server with an OpenAI-compatible API answers, in a thread of this process.

Owns everything that speaks HTTP. Nothing is kept on this side but the text: the server has the K
and V, and messages are sent anew each turn, in the same order and with the same bytes, so that its
own prefix cache can work.
"""
