"""The few colours that are said in code, as Textual style strings.

Both can be read on the background of every theme; `$primary` and `$foreground-muted` cannot.
`$quiet` is computed for each theme in `contrast.py`.
"""

from __future__ import annotations

MUTED = "$quiet"
TITLE = "bold $text-primary"
