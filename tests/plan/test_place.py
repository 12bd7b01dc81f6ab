"""Who gets which GPUs: what must hold always, and what an operator expects to see."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from supervisor.plan.place import Ask, Card, Refused, Seat, Seated, best, nodes, place

Cards = Mapping[str, Sequence[Card]]
HOSTS = ("a", "b", "c")


def host(count: int, *, blocked: str = "", pairs: bool = False, numa: int = 0) -> tuple[Card, ...]:
    """`blocked`: a digit for each card that cannot be had; `pairs`: 0-1, 2-3, … linked; `numa`: cards on each node."""
    return tuple(
        Card(n, n // numa if numa else None, frozenset({n ^ 1}) if pairs else frozenset(), "held" if str(n) in blocked else "")
        for n in range(count)
    )


def asks(*needs: int, hosts: tuple[str, ...] = HOSTS, service: str = "q") -> list[Ask]:
    return [Ask(f"{service}-{n}", service, need, hosts) for n, need in enumerate(needs)]


def seats(answers: Mapping[str, Seated | Refused]) -> list[Seat]:
    return [seat for answer in answers.values() if isinstance(answer, Seated) for seat in answer.seats]


def where(answers: Mapping[str, Seated | Refused]) -> list[str]:
    """`a01 b0`: each process on its hosts; `-` = refused."""
    said = []
    for answer in answers.values():
        parts = answer.seats if isinstance(answer, Seated) else ()
        said.append("+".join(seat.host + "".join(map(str, seat.gpus)) for seat in parts) or "-")
    return said


# --- what holds always ----------------------------------------------------------------------------------------------------

sizes = st.integers(0, 4)
fleets = st.fixed_dictionaries(
    {}, optional={h: st.builds(host, sizes, blocked=st.sampled_from(["", "0", "12", "3"])) for h in HOSTS}
)


@st.composite
def requests(draw: st.DrawFn) -> list[Ask]:
    found = []
    for service in "pq":
        on = tuple(draw(st.lists(st.sampled_from(HOSTS), min_size=1, max_size=3, unique=True)))
        need = draw(st.sampled_from([1, 1, 2, 3, 4, 6, 8]))
        found += [Ask(f"{service}-{n}", service, need, on) for n in range(draw(st.integers(0, 3)))]
    return draw(st.permutations(found))


@given(requests(), fleets)
@settings(max_examples=400, deadline=None)
def test_every_gpu_once_free_ones_only_and_as_many_as_asked(wanted: list[Ask], cards: Cards) -> None:
    answers = place(wanted, cards)
    assert list(answers) == [ask.process for ask in wanted]
    given_away = [(seat.host, gpu) for seat in seats(answers) for gpu in seat.gpus]
    assert len(given_away) == len(set(given_away))
    free = {(name, card.index) for name, own in cards.items() for card in own if not card.blocked}
    assert set(given_away) <= free
    for ask in wanted:
        answer = answers[ask.process]
        if isinstance(answer, Seated):
            shares = {len(seat.gpus) for seat in answer.seats}
            assert shares == {ask.need // len(answer.seats)}, "evenly"
            assert len({seat.host for seat in answer.seats}) == len(answer.seats) == nodes(ask, cards)
            assert {seat.host for seat in answer.seats} <= set(ask.hosts)


@given(requests(), fleets)
@example([Ask("p-0", "p", 2, ("b", "a")), Ask("q-0", "q", 2, ("b", "c"))], {"a": host(2), "b": host(2), "c": ()})
@settings(max_examples=400, deadline=None)
def test_refused_only_if_no_arrangement_exists(wanted: list[Ask], cards: Cards) -> None:
    """By brute force: with all that were accepted before it, in the order asked."""
    answers = place(wanted, cards)
    accepted: list[Ask] = []
    for ask in wanted:
        possible = any(True for _ in arrangements([*accepted, ask], cards))
        assert isinstance(answers[ask.process], Seated) == possible
        if possible:
            accepted.append(ask)


def arrangements(wanted: list[Ask], cards: Cards) -> Iterator[object]:
    """Every way to give hosts to all of them, without one clever thought."""
    free = {name: sum(not card.blocked for card in own) for name, own in cards.items()}
    choices = []
    for ask in wanted:
        split = nodes(ask, cards)
        some = itertools.combinations([h for h in ask.hosts if h in cards], split) if split else iter(())
        choices.append([(hosts, ask.need // split) for hosts in some])
    for chosen in itertools.product(*choices):
        used = Counter[str]()
        for hosts, share in chosen:
            used.update(dict.fromkeys(hosts, share))
        if all(used[h] <= free[h] for h in used):
            yield chosen


@given(requests(), fleets, st.integers(1, 2))
@settings(max_examples=200, deadline=None)
def test_one_replica_more_moves_nobody(wanted: list[Ask], cards: Cards, need: int) -> None:
    """Who sits keeps its seat: the cards are then given, and only who is new asks."""
    before = place(wanted, cards)
    taken = {(seat.host, gpu) for seat in seats(before) for gpu in seat.gpus}
    left = {
        name: tuple(Card(c.index, c.numa, c.nvlink, c.blocked or ("given" if (name, c.index) in taken else "")) for c in own)
        for name, own in cards.items()
    }
    after = place([Ask("new-0", "new", need, HOSTS)], left)
    assert not taken & {(seat.host, gpu) for seat in seats(after) for gpu in seat.gpus}
    assert place(wanted, cards) == before, "the same question has the same answer"


@given(st.integers(1, 8), st.integers(1, 3))
def test_replicas_spread(replicas: int, hosts: int) -> None:
    names = HOSTS[:hosts]
    answers = place(asks(*[1] * replicas, hosts=names), dict(zip(names, (host(9), host(4), host(4)), strict=False)))
    on = Counter(seat.host for seat in seats(answers))
    counts = [on[name] for name in names]
    assert sum(counts) == replicas
    assert max(counts) - min(counts) <= 1


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=9), st.integers(1, 4))
@settings(deadline=None)
def test_no_other_gpus_of_the_host_are_linked_better(links: set[tuple[int, int]], need: int) -> None:
    both = {frozenset(pair) for pair in links if pair[0] != pair[1]}
    cards = tuple(Card(n, None, frozenset(o for o in range(6) if frozenset({n, o}) in both)) for n in range(6))

    def linked(some: Sequence[Card]) -> int:
        return sum(frozenset({a.index, b.index}) in both for a, b in itertools.combinations(some, 2))

    assert linked(best(cards, need)) == max(linked(some) for some in itertools.combinations(cards, need))


# --- what an operator expects ---------------------------------------------------------------------------------------------


def test_neighbours_over_nvlink_first_then_one_numa_node() -> None:
    assert where(place(asks(2, hosts=("a",)), {"a": host(4, blocked="0", pairs=True)})) == ["a23"]
    assert where(place(asks(2, hosts=("a",)), {"a": host(4, blocked="0", numa=2)})) == ["a23"]
    linked_across = tuple(Card(n, n // 2, frozenset({(n + 2) % 4})) for n in range(4))  # 0-2 and 1-3, nodes 01 and 23
    assert where(place(asks(2, hosts=("a",)), {"a": linked_across})) == ["a02"]


def test_one_gpu_breaks_no_pair_where_that_can_be_helped() -> None:
    assert where(place(asks(1, hosts=("a",)), {"a": host(4, blocked="2", pairs=True)})) == ["a3"]


def test_the_host_with_the_better_connected_gpus_wins_over_the_emptier_one() -> None:
    assert where(place(asks(2, hosts=("a", "b")), {"a": host(4), "b": host(2, pairs=True)})) == ["b01"]


def test_what_preferences_alone_would_block_is_found() -> None:
    """p prefers the empty host a, on which alone the big q has room."""
    wanted = [Ask("p-0", "p", 2, ("a", "b")), Ask("q-0", "q", 4, ("a",))]
    assert where(place(wanted, {"a": host(4), "b": host(2)})) == ["b01", "a0123"]


def test_who_was_asked_for_first_is_seated_first() -> None:
    assert where(place(asks(3, 2, 1, hosts=("a",)), {"a": host(4)})) == ["a012", "-", "a3"]


def test_replicas_that_sit_already_count() -> None:
    cards = {"a": host(4), "b": host(4)}
    assert where(place(asks(1, hosts=("a", "b")), cards, {("q", "a"): 1})) == ["b0"]


def test_an_engine_larger_than_every_host_takes_the_smallest_even_split() -> None:
    cards = {"a": host(4), "b": host(4), "c": host(4)}
    assert where(place(asks(8), cards)) == ["a0123+b0123"]
    assert where(place(asks(12), cards)) == ["a0123+b0123+c0123"]
    assert where(place(asks(6), cards)) == ["a012+b012"]


def test_busy_is_not_too_small() -> None:
    """Half of it is taken: the engine is not torn apart for that."""
    answers = place(asks(4), {"a": host(4, blocked="01"), "b": host(2)})
    assert where(answers) == ["-"]


def refused(wanted: list[Ask], cards: Cards) -> str:
    answer = list(place(wanted, cards).values())[-1]
    assert isinstance(answer, Refused)
    return answer.why


def test_a_refusal_names_what_lacks_and_who_came_nearest() -> None:
    cards = {"a": host(2, blocked="01"), "b": host(3, blocked="1")}
    assert refused(asks(1, 2, hosts=("a", "b")), cards) == (
        "needs 2 free GPUs of one host; nearest is b with 1 of 3 free (GPU 0: given to q-0; GPU 1: held)"
    )
    assert refused(asks(1), {"a": ()}) == "needs 1 GPU, and no GPU is known of on a, b and c"
    assert refused(asks(5), {"a": host(4), "b": host(2)}) == (
        "needs 5 GPUs, which no even split over its hosts gives (they have: a 4 and b 2)"
    )
    assert refused(asks(8), {"a": host(4), "b": host(4, blocked="0"), "c": host(2)}) == (
        "needs 4 free GPUs on each of 2 hosts; nearest is a with 4 of 4 free"
    )


def test_a_seat_says_why() -> None:
    answers = place(asks(2, 1, hosts=("a",)), {"a": host(4, pairs=True, numa=2)})
    assert [seat.why for seat in seats(answers)] == [
        "NVLink between all, NUMA node 0, no other q there, 4 of 4 GPUs free",
        "beside 1 of q, 2 of 4 GPUs free",
    ]


def test_a_large_fleet_is_placed_in_a_moment() -> None:
    """50 hosts of 8, full to the last GPU, with linked GPUs and two sorts of engine."""
    names = tuple(f"h{n}" for n in range(50))
    wanted = [*asks(*[2] * 100, hosts=names), *asks(*[1] * 200, hosts=names, service="p")]
    answers = place(wanted, {name: host(8, pairs=True, numa=4) for name in names})
    assert "-" not in where(answers)
