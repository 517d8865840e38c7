"""What the demo's voices say: commands with an intent, matrix sentences, commands with slots.

The wording of the commands is ours. The label scheme of the first ones (6 actions, 14 objects, 4
locations, 31 triples that make sense) is that of the Fluent Speech Commands corpus; those with
slots are in the manner of SNIPS. Matrix sentences, one word from each column in turn, are what
hearing tests ask listeners to repeat: the grammar helps nobody to guess a word.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

ROOMS = ("none", "kitchen", "bedroom", "washroom")
SWITCH = {
    "activate": ("start the {}", "{} on please"),
    "deactivate": ("kill the {}", "{} off now"),
}
ADJUST = {
    "increase": ("raise the {}", "more {} please"),
    "decrease": ("drop the {}", "less {} now"),
}
BRING = ("fetch the {}", "bring me my {}", "I need {}")
LANGUAGE = ("speak {}", "change to {}", "let us use {}")
ANY_LANGUAGE = ("use another language", "open the language menu", "pick a new language")
COLUMNS = (
    ("Alan", "Lucy", "Peter", "Rachel", "Steven", "Nina"),
    ("bought", "gives", "can't find", "wants", "holds", "sees"),
    ("two", "seven", "nine", "eleven", "four", "many"),
    ("chairs", "rings", "boxes", "shoes", "desks", "lamps"),
)

VALUES = {
    "artist": ("Drake", "the Beatles", "Sade", "Vivaldi"),
    "service": ("Spotify", "Deezer", "iTunes"),
    "playlist": ("morning", "dinner", "workout"),
    "city": ("Boston", "Paris", "Denver", "Tokyo"),
    "timeRange": ("tonight", "tomorrow", "next Friday"),
    "party_size_number": ("two", "six", "nine"),
    "object_name": ("Moby Dick", "Hamlet", "Dune"),
    "rating_value": ("one", "four", "five"),
}
PATTERNS = {
    "PlayMusic": ("play {artist} on {service}", "listen to {artist}"),
    "AddToPlaylist": ("add {artist} to my {playlist} list",),
    "GetWeather": ("what's the weather in {city} {timeRange}", "how is the weather"),
    "BookRestaurant": ("book a table for {party_size_number} in {city}",),
    "RateBook": ("give {object_name} {rating_value} stars", "rate the book"),
}


class SlotCommand(NamedTuple):
    """A sentence, an IOB tag for each of its words, and its intent."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    intent: str


def intent_commands() -> list[tuple[str, str, str, str]]:
    """Text, action, object and location of every command, in a fixed order.

    31 triples with four phrasings each (eight where a room is named).
    """
    commands = []

    def add(patterns: tuple[str, ...], name: str, action: str, rooms: tuple[str, ...]) -> None:
        for room in rooms:
            for pattern in patterns:
                plain = pattern.format(name)
                texts = (plain,)
                if room != "none":
                    texts = (f"{plain} in the {room}", pattern.format(f"{room} {name}"))
                commands.extend((text, action, name, room) for text in texts)

    for action, patterns in SWITCH.items():
        add(patterns, "lights", action, ROOMS)
        for name in ("lamp", "music"):
            add(patterns, name, action, ("none",))
    for action, patterns in ADJUST.items():
        add(patterns, "heat", action, ROOMS)
        add(patterns, "volume", action, ("none",))
    for name in ("newspaper", "juice", "socks", "shoes"):
        add(BRING, name, "bring", ("none",))
    for name in ("Chinese", "Korean", "English", "German"):
        add(LANGUAGE, name, "change language", ("none",))
    return commands + [(text, "change language", "none", "none") for text in ANY_LANGUAGE]


def sentences() -> list[str]:
    """Every matrix sentence, once, in a fixed order."""
    return [" ".join(words) for words in product(*COLUMNS)]


def slot_commands() -> list[list[SlotCommand]]:
    """For each pattern, all its commands in a fixed order."""
    return [
        _filled(pattern.split(), intent)
        for intent, patterns in PATTERNS.items()
        for pattern in patterns
    ]


def _filled(pattern: list[str], intent: str) -> list[SlotCommand]:
    names = [word.strip("{}") if word.startswith("{") else "" for word in pattern]
    choices = [VALUES.get(name, (word,)) for word, name in zip(pattern, names)]
    commands = []
    for values in product(*choices):
        tagged = []
        for name, value in zip(names, values):
            first, *others = value.split()
            tagged.append((first, f"B-{name}" if name else "O"))
            tagged += [(word, f"I-{name}") for word in others]
        commands.append(SlotCommand(*zip(*tagged), intent))
    return commands
