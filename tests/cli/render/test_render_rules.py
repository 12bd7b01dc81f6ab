"""What holds for every snapshot, and the corners that no golden text shows."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from render_snapshots import NOW, all_ready, degraded, process, service, status
from test_render_golden import PLAN, SECRETS, frames

from supervisor.cli.render import Look, Progress, check_code, is_ready, show_plan, show_status, show_why, verdict
from supervisor.cli.render.plan import MASK, quote
from supervisor.cli.render.progress import bare
from supervisor.cli.render.text import cells, fit, wrap
from supervisor.cli.render.times import ahead, clock, duration
from supervisor.core.snapshot import GpuStatus, Status
from supervisor.core.words import clip, listing, plain
from supervisor.errors import UsageError

words = st.one_of(
    st.sampled_from(["qwen", "qwen-0", "big-prefill", "big-decode", "frontend", "etcd", "gpu01", "模型", "👩‍💻", ""]),
    st.text(max_size=12),
)
states = st.sampled_from(
    ["pending", "starting", "ready", "draining", "stopping", "stopped", "backoff", "failed", "stuck", "unknown", "new"]
)
times = st.floats(0, 4e9) | st.floats(allow_nan=False)
exits = st.fixed_dictionaries(
    {"code": st.none() | st.integers(0, 255), "signal": st.none() | st.integers(-1, 99), "cause": words, "at": times}
)
gpu = st.builds(lambda n: GpuStatus(index=n, uuid=f"GPU-{n}", proof=""), st.integers(0, 15))
processes = st.fixed_dictionaries(
    {
        "name": words, "service": words, "replica": st.integers(0, 9), "rank": st.integers(0, 9), "kind": words,
        "host": words, "desired": st.sampled_from(["running", "stopped"]), "state": states, "last_known_state": states,
        "cordoned": st.booleans(), "run": st.none() | words, "pid": st.none() | st.integers(1, 2**22),
        "sid": st.none() | st.integers(1, 2**22), "gpus": st.lists(gpu, max_size=3),
        "ports": st.dictionaries(words, st.integers(0, 65535), max_size=2), "restarts": st.integers(0, 99),
        "since": st.none() | times, "next_attempt_at": st.none() | times, "last_exit": st.none() | exits,
        "reason": words,
    },
    optional={"stage": words, "moves": words, "log_tail": st.lists(words, max_size=9), "evidence": st.lists(words, max_size=3)},
)  # fmt: skip
services = st.fixed_dictionaries(
    {
        "name": words, "kind": st.sampled_from(["etcd", "nats", "frontend", "vllm"]), "wanted": st.integers(0, 9),
        "ready": st.integers(0, 9), "serving": st.integers(0, 9), "reason": words,
    }
)  # fmt: skip
hosts = st.fixed_dictionaries(
    {"name": words, "state": st.sampled_from(["up", "silent", "refused"]), "asof": st.none() | times,
     "boot_id": words, "gpus": st.lists(gpu, max_size=2)},
    optional={"reason": words},
)  # fmt: skip
snapshots = st.fixed_dictionaries(
    {
        "deployment": words, "endpoints": st.lists(words, max_size=2), "verdict": words, "ready": st.booleans(),
        "controller": st.none() | st.just({"pid": 1, "version": "0.1.0", "since": NOW}),
        "asof": times, "services": st.lists(services, max_size=7), "processes": st.lists(processes, max_size=7),
        "hosts": st.lists(hosts, max_size=3),
    },
    optional={"controller_gone_since": st.none() | times},
)  # fmt: skip
widths = st.none() | st.integers(1, 200)
many = settings(suppress_health_check=[HealthCheck.too_slow], max_examples=150)


def check(text: str, width: int | None) -> None:
    assert text.endswith("\n")
    for line in text.split("\n"):
        assert bare(line).isprintable()
        assert width is None or cells(bare(line)) <= width


@many
@given(snapshots, widths, st.booleans(), st.booleans())
def test_status_of_anything(s: Status, width: int | None, colour: bool, every: bool) -> None:
    shown = show_status(s, Look(width, colour), all=every)
    check(shown, width)
    first = bare(shown.split("\n")[0])
    assert first.startswith(verdict(s)) if width is None else fit(verdict(s), 12).startswith(first[: min(width, 7)].rstrip("…"))


@many
@given(snapshots, widths)
def test_why_of_anything(s: Status, width: int | None) -> None:
    shown = show_why(s, Look(width))
    check(shown, width)
    if width is None:
        assert shown.split("\n")[0] == verdict(s)
    for name in {p["name"] for p in s["processes"]} | {x["name"] for x in s["services"]} | {h["name"] for h in s["hosts"]}:
        check(show_why(s, Look(width), name), width)


@many
@given(st.lists(st.tuples(snapshots, times, st.integers(1, 200), st.integers(1, 40)), max_size=3), st.booleans())
def test_progress_of_anything(seen: list[tuple[Status, float, int, int]], terminal: bool) -> None:
    p = Progress(terminal=terminal, colour=True)
    for s, now, width, height in seen:
        text = p.update(s, now, width=width, height=height)
        if terminal:
            assert all(cells(bare(line.partition("\x1b[K")[0])) <= max(width - 1, 1) for line in shown_lines(text))
            assert len(p._block) < max(height, 3)
        assert p.update(s, now, width=width, height=height) == ""


def shown_lines(text: str) -> list[str]:
    body = text.partition("F")[2] if text.startswith("\x1b[") and "F" in text[:6] else text
    return body.removesuffix("\x1b[J").split("\n")


@many
@given(snapshots)
def test_the_verdict_is_one_line_and_agrees_with_itself(s: Status) -> None:
    word = verdict(s).split("  ")[0]
    assert word in ("READY", "STARTING", "DEGRADED", "UNKNOWN", "STOPPING", "STOPPED")
    assert verdict(s).isprintable()
    assert is_ready(s) == (word == "READY") == (check_code(s) == 0)
    assert (word == "UNKNOWN") == (check_code(s) == 4)
    if word == "READY":
        assert all(x["serving"] >= x["wanted"] for x in s["services"])


def test_what_could_not_be_placed_is_not_called_starting() -> None:
    assert verdict(status([service("qwen", 2, 1, "no free GPU")], [process("qwen-0")])) == "DEGRADED  qwen 1/2 serving"


def test_a_cordoned_replica_is_a_shortfall_and_says_how_to_end_it() -> None:
    word = {"by": "ann", "at": NOW - 5, "names": ["gpu01", "qwen-0"]}
    s = status([service("qwen", 1, 0)], [process("qwen-0", cordoned=True, cordon=word)])
    assert verdict(s) == "DEGRADED  qwen NOT SERVING: 0/1 (cordoned, see: noray why qwen)"
    why = show_why(s, Look())
    assert "next: noray uncordon gpu01 qwen-0" in why, "every word that keeps it out"
    assert "by ann since" in why
    assert "(5.0 s)" in why, "since that was said, however long it has been ready"


def test_whom_the_witness_took_out_no_word_of_ours_puts_back() -> None:
    s = status([service("qwen", 1, 0)], [process("qwen-0", cordoned=True)])
    assert "uncordon" not in show_why(s, Look())


def test_many_models_stay_one_line() -> None:
    complete = [service(f"m{n}", 2, 2) for n in range(30)]
    assert verdict(status(complete)) == "READY  30 models complete: 60 replicas serving"
    assert verdict(status([*complete, service("big", 2, 0, "crash loop")])) == (
        "DEGRADED  big NOT SERVING: 0/2 (crash loop, see: noray why big) · 30 more complete: 60 replicas serving"
    )


def test_four_hundred_of_the_same_trouble_are_one_paragraph() -> None:
    lost = [process(f"qwen-{n}", "failed", reason="model missing") for n in range(400)]
    shown = show_why(status([service("qwen", 400, 0)], lost), Look(100))
    assert len(shown.splitlines()) < 10
    assert "qwen-0, qwen-1, qwen-2 and 397 more" in shown
    assert len(show_status(status([service("qwen", 400, 0)], lost), Look(100)).splitlines()) < 30


def test_starting_again_after_a_failure_is_not_called_starting() -> None:
    s = status([service("qwen", 2, 1)], [process("qwen-0"), process("qwen-1", "starting", restarts=1)])
    assert verdict(s) == "DEGRADED  qwen 1/2 serving"


def test_without_a_controller_nothing_is_ready() -> None:
    assert check_code(all_ready()) == 0
    assert check_code(all_ready(controller=False)) == 1


def test_an_unknown_name_is_a_usage_error_with_a_guess() -> None:
    with pytest.raises(UsageError) as caught:
        show_why(degraded(), Look(), "qwne")
    assert str(caught.value) == "nothing here is called 'qwne'"
    assert caught.value.hint == "did you mean qwen?"


def test_a_narrowed_terminal_is_climbed_by_the_rows_it_now_shows() -> None:
    p = Progress(terminal=True)
    [(first, t0), (second, t1), *_] = frames()
    p.update(first, t0, width=100)
    assert p.update(second, t1, width=40).startswith("\x1b[6F")  # five lines, the 65 cells of the first folded once


def test_secrets_are_in_no_plan() -> None:
    shown = show_plan(PLAN, Look(), verbose=True, secrets=SECRETS)
    assert "hf_supersecret" not in shown
    assert f"URL='http://u:{MASK}@hub'" in shown


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20))
def test_a_quoted_word_is_printable_and_means_itself(word: str) -> None:
    assert quote(word).isprintable()
    if word.isprintable():
        assert shlex.split(quote(word)) == [word]


def test_bash_reads_what_we_quote() -> None:
    tricky = ["two\nlines", "it's", "\x1b[31m\t\\", "ü\u2028\U000e0001x", "", "$(id)"]
    script = f"printf '%s\\0' {' '.join(map(quote, tricky))}"
    said = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}).stdout
    assert said.decode().split("\0")[:-1] == tricky


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0.0 s"), (2.1, "2.1 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"), (180, "3 min"), (3569, "59 min"),
     (3571, "1 h"), (7200, "2 h"), (47 * 3600, "47 h"), (48 * 3600, "2 d"), (float("inf"), "?")],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_clocks() -> None:
    assert clock(NOW, NOW) == "12:06:04"
    assert clock(NOW - 86400, NOW) == "2026-02-28 12:06"
    assert clock(1e300, NOW) == "?"
    assert (ahead(0.1), ahead(4.2), ahead(180)) == ("a moment", "4 s", "3 min")


def test_words() -> None:
    assert plain("a\x1b[31m\r\n b\t") == "a [31m b"
    assert listing([]) == ""
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing(list("abcdef")) == "a, b, c and 3 more"
    assert clip("five restarts in ten minutes", 20) == "five restarts in…"


@given(st.text(max_size=60), st.integers(1, 30))
def test_wrapping_keeps_every_word_and_the_width(text: str, width: int) -> None:
    text = plain(text)
    lines = wrap(text, width, "> ", "  ")
    assert all(cells(line) <= width for line in lines)
    if width >= 14:
        assert "".join(lines).replace(" ", "") == f">{text}".replace(" ", "")


def test_wide_characters_take_two_cells() -> None:
    assert cells("模型-0") == 6
    assert fit("模型模型", 5) == "模型…"


def test_numbers_that_move_are_no_news_where_every_line_stays() -> None:
    """Ten hours of a log would be full of them."""
    progress = Progress(terminal=False)
    seen = [status(processes=[process("qwen-0", "starting", stage="loading", moves=f"{n}.3 GB read")]) for n in range(3)]
    said = [progress.update(each, NOW + n) for n, each in enumerate(seen)]
    assert said[1:] == ["", ""]
    assert "loading: 2.3 GB read" in show_status(seen[-1], Look(width=100))
