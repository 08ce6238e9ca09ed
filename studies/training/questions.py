"""Questions about a picture with known contents, and the words they are made of."""

import random
from collections.abc import Callable, Sequence

from .pictures import CELLS, COLORS, KINDS, Thing

COLOR_NAMES = tuple(COLORS)
ROWS, COLS = ("top", "middle", "bottom"), ("left", "center", "right")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
NEIGHBOURS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
SPECIAL = ("<pad>", "<bos>", "<eos>", "<image>", "<unk>")
OTHERS = "what color is the at where of how many digits shapes there a yes no list row everything above below nothing"
WORDS = tuple(dict.fromkeys((*SPECIAL, *KINDS, *COLOR_NAMES, *ROWS, *COLS, *NUMBERS, *OTHERS.split())))

Question = tuple[str, str]  # question and answer, words separated by blanks


def name(thing: Thing) -> str:
    return f"{COLOR_NAMES[thing.color]} {KINDS[thing.kind]}"


def place(thing: Thing) -> str:
    return f"{ROWS[thing.row]} {COLS[thing.col]}"


def neighbour(things: Sequence[Thing], thing: Thing, relation: str) -> Thing | None:
    down, right = NEIGHBOURS[relation]
    wanted = thing.row + down, thing.col + right
    return next((t for t in things if (t.row, t.col) == wanted), None)


def ask_color(rng: random.Random, things: Sequence[Thing]) -> Question | None:
    kinds = [t.kind for t in things]
    once = [t for t in things if kinds.count(t.kind) == 1]
    if not once:
        return None
    thing = rng.choice(once)
    return f"what color is the {KINDS[thing.kind]}", COLOR_NAMES[thing.color]


def ask_kind(rng: random.Random, things: Sequence[Thing]) -> Question | None:
    colors = [t.color for t in things]
    once = [t for t in things if colors.count(t.color) == 1]
    if not once:
        return None
    thing = rng.choice(once)
    return f"what is the {COLOR_NAMES[thing.color]}", KINDS[thing.kind]


def ask_at(rng: random.Random, things: Sequence[Thing]) -> Question:
    if rng.random() < 0.1 and len(things) < CELLS * CELLS:
        taken = {(t.row, t.col) for t in things}
        free = [(r, c) for r in range(CELLS) for c in range(CELLS) if (r, c) not in taken]
        row, col = rng.choice(free)
        return f"what is at {ROWS[row]} {COLS[col]}", "nothing"
    thing = rng.choice(things)
    return f"what is at {place(thing)}", name(thing)


def ask_where(rng: random.Random, things: Sequence[Thing]) -> Question:
    thing = rng.choice(things)
    return f"where is the {name(thing)}", place(thing)


def ask_next(rng: random.Random, things: Sequence[Thing]) -> Question | None:
    """One step from a named thing."""
    pairs = [(t, r, n) for t in things for r in NEIGHBOURS if (n := neighbour(things, t, r)) is not None]
    if not pairs:
        return None
    thing, relation, other = rng.choice(pairs)
    return f"what is {relation} the {name(thing)}", name(other)


def ask_count(rng: random.Random, things: Sequence[Thing]) -> Question:
    which = rng.random()
    if which < 0.4:
        color = rng.choice(things).color if rng.random() < 0.8 else rng.randrange(len(COLOR_NAMES))
        return f"how many {COLOR_NAMES[color]}", NUMBERS[sum(t.color == color for t in things)]
    if which < 0.6:
        kind = rng.choice(things).kind if rng.random() < 0.8 else rng.randrange(len(KINDS))
        return f"how many {KINDS[kind]}", NUMBERS[sum(t.kind == kind for t in things)]
    if which < 0.8:
        return "how many digits", NUMBERS[sum(t.kind < 10 for t in things)]
    return "how many shapes", NUMBERS[sum(t.kind >= 10 for t in things)]


def ask_presence(rng: random.Random, things: Sequence[Thing]) -> Question | None:
    """As POPE asks: half are there, and most that are not have a kind and a colour that are."""
    if rng.random() < 0.5:
        return f"is there a {name(rng.choice(things))}", "yes"
    there = {(t.kind, t.color) for t in things}
    for _ in range(20):
        kind = rng.choice(things).kind if rng.random() < 0.7 else rng.randrange(len(KINDS))
        color = rng.choice(things).color if rng.random() < 0.7 else rng.randrange(len(COLOR_NAMES))
        if (kind, color) not in there:
            return f"is there a {COLOR_NAMES[color]} {KINDS[kind]}", "no"
    return None


def ask_row(rng: random.Random, things: Sequence[Thing]) -> Question:
    """The word that matters comes last, in this as in the other questions: that is learnt much sooner."""
    row = rng.randrange(CELLS)
    found = " ".join(name(t) for t in things if t.row == row)
    return f"list the row at the {ROWS[row]}", found or "nothing"


def ask_everything(rng: random.Random, things: Sequence[Thing]) -> Question:
    return "list everything", " ".join(map(name, things))


ASKERS: dict[str, Callable[[random.Random, Sequence[Thing]], Question | None]] = {
    "color": ask_color,
    "kind": ask_kind,
    "at": ask_at,
    "where": ask_where,
    "next": ask_next,
    "count": ask_count,
    "presence": ask_presence,
    "row": ask_row,
    "everything": ask_everything,
}
"""Task -> a question of it, None where the picture has none."""
