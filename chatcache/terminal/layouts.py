"""Which Latin letter is on the key of a letter of another script, for shortcuts.

For terminals that do not report the place of a key. Where the layouts of a script differ, the most
used one is taken.
"""

from __future__ import annotations

_LATIN = "qwertyuiopasdfghjklzxcvbnm"
_LAYOUTS = (
    ("йцукенгшщзфывапролдячсмить", _LATIN),
    ("іїєґў", "s]'uo"),
    (";ςερτυθιοπασδφγηξκλζχψωβνμ", _LATIN),
    ("קראטוןםפשדגכעיחלךזסבהנמצ", "ertyuiopasdfghjklzxcvbnm"),
    ("ضصثقفغعهخحشسيبلاتنمئءؤرىة", "qwertyuiopasdfghjklzxcvnm"),
    ("ㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔㅁㄴㅇㄹㅎㅗㅓㅏㅣㅋㅌㅊㅍㅠㅜㅡ", _LATIN),
    ("ქწერტყუიოპასდფგჰჯკლზხცვბნმ", _LATIN),
)
_PLACES = {
    letter: latin
    for letters, latins in _LAYOUTS
    for letter, latin in zip(letters, latins, strict=True)
    if not letter.isascii()
}


def latin_of(character: str) -> str:
    """The letter at the place of this one; itself where none is known."""
    lower = character.lower()
    latin = _PLACES.get(lower, character)
    return latin.upper() if latin != character and character != lower else latin
