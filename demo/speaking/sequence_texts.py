"""What the voices of the sequence tasks say: matrix sentences to write down, commands with slots.

Matrix sentences, one word from each column in turn, are what hearing tests ask listeners to repeat:
the grammar helps nobody to guess a word. The commands are ours, in the manner of SNIPS.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

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


class Command(NamedTuple):
    """A sentence, an IOB tag for each of its words, and its intent."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    intent: str


def sentences() -> list[str]:
    """Every matrix sentence, once, in a fixed order."""
    return [" ".join(words) for words in product(*COLUMNS)]


def commands() -> list[list[Command]]:
    """For each pattern, all its commands in a fixed order."""
    return [
        _filled(pattern.split(), intent)
        for intent, patterns in PATTERNS.items()
        for pattern in patterns
    ]


def _filled(pattern: Sequence[str], intent: str) -> list[Command]:
    names = [word.strip("{}") if word.startswith("{") else "" for word in pattern]
    choices = [VALUES.get(name, (word,)) for word, name in zip(pattern, names)]
    found = []
    for values in product(*choices):
        tagged = []
        for name, value in zip(names, values):
            first, *others = value.split()
            tagged.append((first, f"B-{name}" if name else "O"))
            tagged += [(word, f"I-{name}") for word in others]
        words, tags = zip(*tagged)
        found.append(Command(words, tags, intent))
    return found
