"""What the demo's voices say: commands with an action, an object and a location.

The wording of the commands is ours; the label scheme (6 actions, 14 objects, 4 locations, 31
triples that make sense) is that of the Fluent Speech Commands corpus.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A sentence and its three labels."""

    text: str
    action: str
    object: str
    location: str


_ROOMS = ("none", "kitchen", "bedroom", "washroom")
_SWITCH = {
    "activate": ("start the {}", "{} on please"),
    "deactivate": ("kill the {}", "{} off now"),
}
_ADJUST = {
    "increase": ("raise the {}", "more {} please"),
    "decrease": ("drop the {}", "less {} now"),
}
_BRING = ("fetch the {}", "bring me my {}", "I need {}")
_LANGUAGE = ("speak {}", "change to {}", "let us use {}")
_ANY_LANGUAGE = ("use another language", "open the language menu", "pick a new language")


def commands() -> list[Command]:
    """Every command, once, in a fixed order: 31 triples with four phrasings each (eight where a
    room is named).
    """
    found = []

    def add(patterns: tuple[str, ...], name: str, action: str, rooms: tuple[str, ...]) -> None:
        for room in rooms:
            for pattern in patterns:
                plain = pattern.format(name)
                texts = (plain,)
                if room != "none":
                    texts = (f"{plain} in the {room}", pattern.format(f"{room} {name}"))
                found.extend(Command(text, action, name, room) for text in texts)

    for action, patterns in _SWITCH.items():
        add(patterns, "lights", action, _ROOMS)
        for name in ("lamp", "music"):
            add(patterns, name, action, ("none",))
    for action, patterns in _ADJUST.items():
        add(patterns, "heat", action, _ROOMS)
        add(patterns, "volume", action, ("none",))
    for name in ("newspaper", "juice", "socks", "shoes"):
        add(_BRING, name, "bring", ("none",))
    for name in ("Chinese", "Korean", "English", "German"):
        add(_LANGUAGE, name, "change language", ("none",))
    found += [Command(text, "change language", "none", "none") for text in _ANY_LANGUAGE]
    return found
