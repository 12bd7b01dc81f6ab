"""Which GPUs of which host a process gets that was given none by hand. Pure: who asks, what is there, and out come seats.

All GPUs of a process are on one host; an engine larger than every host of its own is split evenly over as few as can hold it.
In this order a host is preferred that has fewer replicas of the service, better connected GPUs, more free ones, or stands
further up in the file. Within a host: NVLink neighbours, then one NUMA node, then those whose loss breaks up least of the rest.

Seats are given in the order of the asks and never taken back: who is seated already is not among the asks. An ask is refused
only if no arrangement of it and of those before it exists (in the first `TRIES` steps of the search for one).
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from supervisor.core.words import listing, plural

TRIES = 20_000
SHOWN = 3  # GPUs that a refusal names one by one


@dataclass(frozen=True, slots=True)
class Ask:
    """One process that needs `need` GPUs, on one of `hosts`; 0 = a place, and no GPU."""

    process: str
    service: str
    need: int
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU of a host. `blocked`: why it cannot be had, "" if it can."""

    index: int
    numa: int | None = None
    nvlink: frozenset[int] = frozenset()  # indexes of the cards that it reaches
    blocked: str = ""


@dataclass(frozen=True, slots=True)
class Seat:
    host: str
    gpus: tuple[int, ...]
    why: str = field(default="", compare=False)
    stands_in: str = ""  # for whom, on a host that is lost; it may have no host yet ("")


@dataclass(frozen=True, slots=True)
class Seated:
    """One seat for each host that the process needs."""

    seats: tuple[Seat, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """What lacks, and which host came nearest."""

    why: str


@dataclass(slots=True)
class Room:
    """What is left to give while seats are given."""

    cards: Mapping[str, Sequence[Card]]
    replicas: Counter[tuple[str, str]]  # (service, host)
    given: dict[tuple[str, int], str] = field(default_factory=dict)  # (host, index) -> process

    def free(self, host: str) -> tuple[Card, ...]:
        return tuple(c for c in self.cards.get(host, ()) if not c.blocked and (host, c.index) not in self.given)

    def total(self, host: str) -> int:
        return len(self.cards.get(host, ()))

    def give(self, ask: Ask, seat: Seat) -> None:
        self.given |= {(seat.host, index): ask.process for index in seat.gpus}
        self.replicas[ask.service, seat.host] += 1


def place(
    asks: Sequence[Ask], cards: Mapping[str, Sequence[Card]], seated: Mapping[tuple[str, str], int] | None = None
) -> dict[str, Seated | Refused]:
    """An answer for every ask. `cards`: of each host that is known. `seated`: (service, host) -> replicas already there."""
    room = Room(cards, Counter(seated or {}))
    found = _greedy(asks, room)
    if len(found) == len(asks):
        return found
    # Tight: some arrangement may do that the preferences alone do not lead to.
    room, found = Room(cards, Counter(seated or {})), {}
    accepted: list[Ask] = []
    for ask in asks:
        if _feasible([*accepted, ask], room):
            accepted.append(ask)
    for number, ask in enumerate(accepted):
        rest = accepted[number + 1 :]
        for hosts in _choices(ask, room):
            if _feasible(rest, room, less=Counter(dict.fromkeys(hosts, ask.need // len(hosts)))):
                found[ask.process] = _seat(ask, hosts, room)
                break
    return {ask.process: found.get(ask.process) or Refused(refusal(ask, room)) for ask in asks}


def nodes(ask: Ask, cards: Mapping[str, Sequence[Card]]) -> int:
    """Over how many hosts: one, unless none of them has so many GPUs, free or not. 0: not even all of them together."""
    sizes = [len(cards.get(host, ())) for host in ask.hosts]
    splits = (n for n in range(1, len(sizes) + 1) if ask.need % n == 0)
    return next((n for n in splits if sum(size >= ask.need // n for size in sizes) >= n), 0)


@functools.lru_cache(4096)
def best(cards: tuple[Card, ...], need: int) -> tuple[Card, ...]:
    """The `need` of these cards that are connected best; 16 cards, 8 of them needed, are the worst case (13 000 sets)."""
    return min(itertools.combinations(cards, need), key=lambda some: _badness(some, cards))


def _badness(some: tuple[Card, ...], cards: Sequence[Card]) -> tuple[object, ...]:
    chosen = {card.index for card in some}
    rest = {card.index for card in cards} - chosen
    torn = sum(len(card.nvlink & rest) for card in some)
    return -_links(some), len({card.numa for card in some}), torn, sorted(chosen)


def _links(some: Sequence[Card]) -> int:
    return sum(a.index in b.nvlink for a, b in itertools.combinations(some, 2))


# --- giving seats ---------------------------------------------------------------------------------------------------------


def _greedy(asks: Sequence[Ask], room: Room) -> dict[str, Seated | Refused]:
    """By preference alone, until somebody finds no seat."""
    found: dict[str, Seated | Refused] = {}
    for ask in asks:
        hosts = next(_choices(ask, room), None)
        if hosts is None:
            break
        found[ask.process] = _seat(ask, hosts, room)
    return found


def _choices(ask: Ask, room: Room) -> Iterator[tuple[str, ...]]:
    """The hosts that could seat it now, the best first."""
    split = nodes(ask, room.cards)
    if not split:
        return
    share = ask.need // split
    able = {host: free for host in ask.hosts if host in room.cards and len(free := room.free(host)) >= share}

    def preference(host: str) -> tuple[object, ...]:
        some = best(able[host], share)
        quality = _badness(some, able[host])[:2]
        return room.replicas[ask.service, host], *quality, -len(able[host]), ask.hosts.index(host)

    yield from itertools.combinations(sorted(able, key=preference), split)


def _seat(ask: Ask, hosts: tuple[str, ...], room: Room) -> Seated:
    seats = []
    for host in hosts:
        free, others = room.free(host), room.replicas[ask.service, host]
        some = best(free, ask.need // len(hosts))
        said = [_connected(some)] if len(some) > 1 else []
        said += [f"beside {others} of {ask.service}" if others else f"no other {ask.service} there"]
        said += [f"{len(free)} of {plural(room.total(host), 'GPU')} free"] if ask.need else []
        seats.append(Seat(host, tuple(card.index for card in some), ", ".join(said)))
        room.give(ask, seats[-1])
    return Seated(tuple(seats))


def _connected(some: Sequence[Card]) -> str:
    links, pairs = _links(some), len(some) * (len(some) - 1) // 2
    said = "NVLink between all" if links == pairs else "NVLink between some" if links else "no NVLink"
    numa = sorted({card.numa for card in some if card.numa is not None})
    return said + (f", NUMA node {listing([str(n) for n in numa])}" if numa else "")


# --- whether all can have one ---------------------------------------------------------------------------------------------


def _feasible(asks: Sequence[Ask], room: Room, less: Mapping[str, int] | None = None) -> bool:
    """Whether all of them find a seat at once. Free cards of a host are worth the same here: only their number counts."""
    free = {host: len(room.free(host)) - (less or {}).get(host, 0) for host in room.cards}
    wants = []
    for ask in asks:
        split = nodes(ask, room.cards)
        if not split:
            return False
        wants.append((ask.need // split, split, tuple(host for host in ask.hosts if host in free)))
    wants.sort(key=lambda want: (-want[0], len(want[2])))
    return _fits(wants, free, set(), [TRIES])


_Want = tuple[int, int, tuple[str, ...]]  # GPUs on each, how many hosts, which


def _fits(wants: list[_Want], free: dict[str, int], dead: set[object], tries: list[int]) -> bool:
    """Depth first; `dead` remembers what led nowhere."""
    if not wants:
        return True
    state = (len(wants), tuple(free.values()))
    tries[0] -= 1
    if state in dead or tries[0] < 0:
        return False
    (share, split, hosts), rest = wants[0], wants[1:]
    groups = {want[2] for want in rest}
    tried = set()
    able = sorted((host for host in hosts if free[host] >= share), key=lambda host: free[host])
    for some in itertools.combinations(able, split):
        # Hosts that have as much and can serve the same others are one to us.
        alike = tuple(sorted((free[host], tuple(sorted(host in group for group in groups))) for host in some))
        if alike in tried:
            continue
        tried.add(alike)
        left = {**free, **{host: free[host] - share for host in some}}
        if _fits(rest, left, dead, tries):
            return True
    dead.add(state)
    return False


# --- refusing -------------------------------------------------------------------------------------------------------------


def refusal(ask: Ask, room: Room) -> str:
    known = [host for host in ask.hosts if host in room.cards]
    if not ask.need:
        return f"needs a host, and none of {listing(list(ask.hosts))} answers"
    gpus = plural(ask.need, "GPU")
    if not any(room.total(host) for host in known):
        return f"needs {gpus}, and no GPU is known of on {listing(list(ask.hosts))}"
    split = nodes(ask, room.cards)
    if not split:
        sizes = listing([f"{host} {room.total(host)}" for host in known])
        return f"needs {gpus}, which no even split over its hosts gives (they have: {sizes})"
    each = plural(ask.need // split, "free GPU")
    nearest = max(known, key=lambda host: (len(room.free(host)), room.total(host)))
    needs = f"needs {each} of one host" if split == 1 else f"needs {each} on each of {split} hosts"
    taken = [f"GPU {card.index}: {why}" for card in room.cards[nearest] if (why := _taken(card, nearest, room))]
    more = f" and {len(taken) - SHOWN} more" if len(taken) > SHOWN else ""
    said = f"{needs}; nearest is {nearest} with {len(room.free(nearest))} of {room.total(nearest)} free"
    return said + (f" ({'; '.join(taken[:SHOWN])}{more})" if taken else "")


def _taken(card: Card, host: str, room: Room) -> str:
    given = room.given.get((host, card.index))
    return card.blocked or (f"given to {given}" if given else "")
