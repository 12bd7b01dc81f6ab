"""supervisor/transport/base.py, sentence by sentence, over every transport."""

from __future__ import annotations

import os
import time

import anyio
import anyio.lowlevel
import pytest

from supervisor.errors import HostRefused, HostUnreachable
from supervisor.transport.base import MAX_CHANNELS, MAX_LINE_BYTES, Channel
from tests.transport.conftest import Host

pytestmark = pytest.mark.anyio


async def heard(channel: Channel, count: int = 1) -> list[dict[str, object]]:
    messages: list[dict[str, object]] = []
    with anyio.fail_after(20):
        async for message in channel:
            messages.append(message)
            if len(messages) == count:
                break
    return messages


async def end_of(channel: Channel) -> tuple[list[dict[str, object]], str]:
    messages: list[dict[str, object]] = []
    try:
        with anyio.fail_after(20):
            async for message in channel:
                messages.append(message)
    except HostUnreachable as exc:
        return messages, str(exc)
    pytest.fail("a channel ended quietly")


async def test_a_conversation(host: Host) -> None:
    channel = await host.transport().open("echo", 20)
    for text in ("plain", "ünïcode \u2028 \0 'quoted' $HOME `id` !!", "line\nbreak"):
        await channel.send({"text": text, "nested": {"list": [1, 2.5, None, True]}})
        assert await heard(channel) == [{"text": text, "nested": {"list": [1, 2.5, None, True]}}]
    assert channel.preamble == ""
    await channel.aclose()
    assert host.still_running() == []


async def test_long_messages(host: Host) -> None:
    channel = await host.transport().open("echo", 20)
    frame = len(b'{"blob":""}\n')
    for size in (1024 * 1024, MAX_LINE_BYTES - frame):
        message = {"blob": "x" * size}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.send, message)
            assert await heard(channel) == [message]
    with pytest.raises(ValueError, match="limit"):
        await channel.send({"blob": "x" * MAX_LINE_BYTES})
    await channel.aclose()


async def test_many_messages_keep_their_order(host: Host) -> None:
    channel = await host.transport().open("echo", 20)

    async def say_all() -> None:
        for number in range(5000):
            await channel.send({"number": number})

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(say_all)
        assert [message["number"] for message in await heard(channel, 5000)] == list(range(5000))
    await channel.aclose()


async def test_several_tasks_may_send(host: Host) -> None:
    channel = await host.transport().open("echo", 20)

    async def say(task: int) -> None:
        for number in range(20):
            await channel.send({"task": task, "number": number, "filler": "x" * 20_000})

    async with anyio.create_task_group() as tasks:
        for task in range(5):
            tasks.start_soon(say, task)
        messages = await heard(channel, 100)
    for task in range(5):
        assert [m["number"] for m in messages if m["task"] == task] == list(range(20))
    await channel.aclose()


async def test_a_cancelled_reader_loses_nothing(host: Host) -> None:
    channel = await host.transport().open("echo", 20)
    with anyio.move_on_after(0.01):
        await heard(channel)
    await channel.send({"number": 1})
    assert await heard(channel) == [{"number": 1}]
    await channel.aclose()


async def test_a_program_that_ends_is_a_lost_line_with_its_last_words(host: Host) -> None:
    channel = await host.transport().open("die", 20)
    await channel.send({"now": True})
    messages, reason = await end_of(channel)
    assert messages == [{"last": "words"}]
    assert "host program on gpu01 ended with exit code 3" in reason
    assert "it was | all too much" in reason
    for _ in range(2):
        with pytest.raises(HostUnreachable, match="exit code 3"):
            await channel.send({"still": "there?"})
        assert await end_of(channel) == ([], reason)
    await channel.aclose()
    assert host.still_running() == []


@pytest.mark.parametrize("host", ["fake", "ssh"], indirect=True)  # this machine has no line to itself
async def test_a_cut_line_says_nothing_about_the_program(host: Host) -> None:
    transport = host.transport()
    channel = await transport.open("echo", 20)
    other = await transport.open("hang", 20)
    await channel.send({"number": 1})
    assert await heard(channel) == [{"number": 1}]
    host.cut()
    for lost in (channel, other):
        messages, reason = await end_of(lost)
        assert messages == []
        assert reason.startswith("the line to gpu01 was lost")
        assert "exit" not in reason
        with pytest.raises(HostUnreachable, match="was lost"):
            await lost.send({"number": 2})
        await lost.aclose()
    again = await host.transport().open("echo", 20)
    await again.send({"number": 3})
    assert await heard(again) == [{"number": 3}]
    await again.aclose()


async def test_what_is_not_json_is_not_understood(host: Host) -> None:
    channel = await host.transport().open("garbage", 20)
    messages, reason = await end_of(channel)
    assert messages == []
    assert "cannot understand what gpu01 says" in reason
    assert "Traceback" in reason
    await channel.aclose()


async def test_an_unread_channel_does_not_slow_the_other(host: Host) -> None:
    transport = host.transport()
    flooded = await transport.open("flood", 20)
    channel = await transport.open("echo", 20)
    slowest = 0.0
    for number in range(100):
        started = time.monotonic()
        await channel.send({"number": number})
        assert await heard(channel) == [{"number": number}]
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < 1.0  # it is milliseconds; a blocked one never comes back
    await heard(flooded, 5000)
    await flooded.aclose()
    await channel.aclose()
    assert host.still_running() == []


async def test_at_most_four_channels(host: Host) -> None:
    transport = host.transport()
    channels = [await transport.open("echo", 20) for _ in range(MAX_CHANNELS)]
    with pytest.raises(HostRefused, match="already holds 4"):
        await transport.open("echo", 20)
    await channels[0].aclose()
    again = await transport.open("echo", 20)
    await again.send({"number": 5})
    assert await heard(again) == [{"number": 5}]
    await transport.aclose()


async def test_closing_is_idempotent_and_final(host: Host) -> None:
    transport = host.transport()
    await transport.aclose()
    transport = host.transport()
    channel = await transport.open("echo", 20)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.aclose)
        tasks.start_soon(channel.aclose)
    await channel.aclose()
    with pytest.raises(HostUnreachable, match="closed here"):
        await channel.send({})
    assert "closed here" in (await end_of(channel))[1]
    await transport.aclose()
    await transport.aclose()
    with pytest.raises(HostUnreachable, match="closed here"):
        await transport.open("echo", 20)
    assert host.still_running() == []


async def test_closing_finishes_under_cancellation(host: Host) -> None:
    transport = host.transport()
    channel = await transport.open("hang", 20)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await channel.aclose()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await transport.aclose()
    assert host.still_running() == []


async def test_closing_wakes_who_reads(host: Host) -> None:
    transport = host.transport()
    channel = await transport.open("hang", 20)
    reading = anyio.Event()
    reasons: list[str] = []

    async def read() -> None:
        reading.set()
        reasons.append((await end_of(channel))[1])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await reading.wait()
        await anyio.wait_all_tasks_blocked()
        await transport.aclose()
    assert reasons == ["the line to gpu01 was closed here"]


@pytest.mark.parametrize("turns", [1, 10, 30])
async def test_closing_while_opening_leaves_nothing(host: Host, turns: int) -> None:
    warm = host.transport()
    await warm.open("echo", 20)
    await warm.aclose()
    before = len(os.listdir("/proc/self/fd"))
    transport = host.transport()
    opened: list[Channel] = []

    async def open_it() -> None:
        try:
            opened.append(await transport.open("echo", 20))
        except HostUnreachable:
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_it)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        await transport.aclose()
    for channel in opened:  # it was quicker
        assert "closed here" in (await end_of(channel))[1]
    await no_more_descriptors_than(before)
    assert host.still_running() == []


async def no_more_descriptors_than(count: int) -> None:
    with anyio.fail_after(5):  # a closed socket leaves the event loop a turn later
        while len(os.listdir("/proc/self/fd")) > count:
            await anyio.lowlevel.checkpoint()


async def test_twenty_lives_leak_nothing(host: Host) -> None:
    for _ in range(20):
        before = len(os.listdir("/proc/self/fd"))
        transport = host.transport()
        channel = await transport.open("echo", 20)
        await channel.send({"number": 1})
        await heard(channel)
        await transport.aclose()
        await no_more_descriptors_than(before)
    assert host.still_running() == []
