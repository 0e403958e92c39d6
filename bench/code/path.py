"""The main path: what a thread executes where all its elements lie inside a sample and nothing is out of the ordinary.

Of all ways from a kernel's entry to its end, each loop passed once, it is the one that
1. does the wanted 128-bit accesses, or comes nearest to them;
2. passes the fewest rare instructions: calls, atomics, and branches that close a loop;
3. does the wanted fused multiply-adds, or comes nearest to them;
4. is the longest of those: whatever else a branch may do is counted.

An instruction under a guard is counted as one; whether it does something follows from 1 to 3. Where a thread goes round
several times, the outermost loop with 128-bit accesses is passed so often, the same way each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fastdiff.bench.code.listing import Instruction, Listing

Edge = tuple[int, int]


class Tally(NamedTuple):
    """What tells the ways through a kernel apart: 128-bit loads and stores, fused multiply-adds, rare instructions."""

    loads: int = 0
    stores: int = 0
    fma: int = 0
    rare: int = 0

    def plus(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))

    def away_from(self, wanted: Tally) -> tuple[int, int, int]:
        accesses = abs(self.stores - wanted.stores) + abs(self.loads - wanted.loads)
        return accesses, self.rare, abs(self.fma - wanted.fma)


_NOTHING = Tally()


class Step(NamedTuple):
    """An instruction on the way, and whether it does anything: its guard may be false."""

    instruction: Instruction
    acts: bool


@dataclass(frozen=True)
class Path:
    """The main path, and how many loops without 128-bit accesses it passes: each counts as passed once."""

    steps: list[Step]
    loops: int


class _Way(NamedTuple):
    length: int
    before: tuple[int, Tally] | None


def main_path(listing: Listing, wanted: Tally, tally: Callable[[Instruction], Tally], turns: int = 1) -> Path:
    """Return the main path of a kernel; `tally` tells what one instruction adds, and `wanted` what one turn takes.

    Raises:
        ValueError: the kernel never ends.
    """
    order, back = _forward_order(listing)
    added = [tally(instruction) for instruction in listing]
    closing = {end for end, _ in back}
    ways: list[dict[Tally, _Way]] = [{} for _ in listing]
    ways[0][_NOTHING] = _Way(0, None)
    ends: list[tuple[tuple[int, ...], int, Tally, Tally]] = []
    for place in order:
        instruction = listing[place]
        onward = [target for target in instruction.following if (place, target) not in back]
        for before, way in ways[place].items():
            for effect in {added[place], _NOTHING} if instruction.guarded else [added[place]]:
                after = before.plus(effect).plus(Tally(rare=int(place in closing)))
                if instruction.ends:
                    ends.append(((*after.away_from(wanted), -way.length), place, before, after))
                for target in onward:
                    if after not in ways[target] or ways[target][after].length <= way.length:
                        ways[target][after] = _Way(way.length + 1, (place, before))
    if not ends:
        raise ValueError("no way through this kernel ends")
    _, place, before, after = min(ends)
    places = list(_trace(ways, place, before, after))[::-1]
    once = [Step(listing[place], acts or added[place] == _NOTHING) for place, acts in places]
    return _repeated(listing, once, [place for place, _ in places], back, added, turns)


def _trace(ways: list[dict[Tally, _Way]], place: int, before: Tally, after: Tally) -> Iterator[tuple[int, bool]]:
    """Yield each place from the last one on, and whether it added to the tally."""
    while True:
        yield place, before != after
        previous = ways[place][before].before
        if previous is None:
            return
        after, (place, before) = before, previous


def _repeated(
    listing: Listing, once: list[Step], places: list[int], back: set[Edge], added: list[Tally], turns: int
) -> Path:
    """Return a path on which the longest of its loops with 128-bit accesses is passed `turns` times."""
    at = {place: k for k, place in enumerate(places)}
    with_accesses, without = [(0, 0, 0)], 0
    for end, head in back:
        passed = sorted(at[place] for place in _body(listing, end, head) if place in at)
        if head not in at or (end not in at and len(passed) == 1):
            continue  # passed by
        if any(added[places[k]][:2] != (0, 0) for k in passed):
            with_accesses.append((passed[-1] + 1 - at[head], at[head], end))
        else:
            without += 1
    length, begin, end = max(with_accesses)
    turn = once[begin : begin + length] + ([] if end in at else [Step(listing[end], True)])
    return Path(once[:begin] + turn * (turns - 1) * (length > 0) + once[begin:], without)


def _body(listing: Listing, end: int, head: int) -> set[int]:
    """Return the places of a loop: those from which its end is reached without its head."""
    before: dict[int, list[int]] = {}
    for place, instruction in enumerate(listing):
        for following in instruction.following:
            before.setdefault(following, []).append(place)
    body, waiting = {head, end}, [end] if end != head else []
    while waiting:
        for place in before.get(waiting.pop(), []):
            if place not in body:
                body.add(place)
                waiting.append(place)
    return body


def _forward_order(listing: Listing) -> tuple[list[int], set[Edge]]:
    """Return what can be reached, each place before what follows it, and the edges back that close a loop."""
    done: list[int] = []
    back: set[Edge] = set()
    open_, seen = {0}, {0}
    stack = [(0, iter(listing[0].following))]
    while stack:
        place, following = stack[-1]
        target = next(following, None)
        if target is None:
            stack.pop()
            open_.discard(place)
            done.append(place)
        elif target in open_:
            back.add((place, target))
        elif target not in seen:
            seen.add(target)
            open_.add(target)
            stack.append((target, iter(listing[target].following)))
    return done[::-1], back
