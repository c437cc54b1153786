"""The thread that computes for a loop: results, errors, order, cancellation, its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import AsyncIterator

import pytest

from splitinfer.segment_runtime.compute import ComputeThread


@pytest.fixture
async def thread() -> AsyncIterator[ComputeThread]:
    """One that is closed at the end."""
    thread = ComputeThread("compute-test")
    yield thread
    thread.close()


async def test_results_and_errors_come_back_and_all_jobs_share_one_thread(thread: ComputeThread) -> None:
    """What a call gives or raises is what the caller gets; engines rely on there being one thread."""
    assert await thread.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await thread.run(divmod, 7, 0)
    names = {(await thread.run(threading.current_thread)).name for _ in range(5)}
    assert names == {"compute-test"}


async def test_an_error_that_no_future_takes_is_told_as_another(thread: ComputeThread) -> None:
    """StopIteration would leave the caller waiting for ever."""
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(thread.run(next, iter(())), 10)


async def test_nothing_of_a_job_is_kept_after_it(thread: ComputeThread) -> None:
    """What it named may be the weights of a range that was dropped; also when it failed, and before the next one."""

    class Weights:
        def use(self) -> None:
            """Nothing."""

        def fail(self) -> None:
            raise ValueError("no")

    gc.disable()
    try:
        for job in ("use", "fail"):
            weights = Weights()
            gone = weakref.ref(weights)
            with contextlib.suppress(ValueError):
                await thread.run(getattr(weights, job))
            del weights
            for _ in range(1000):
                if gone() is None:
                    break
                await asyncio.sleep(0.001)  # the thread lets go of it just after it has told
            assert gone() is None, job
    finally:
        gc.enable()


async def test_jobs_run_in_the_order_in_which_they_were_given(thread: ComputeThread) -> None:
    """Also those that nobody waits for: KV is closed behind the step that uses it."""
    seen: list[int] = []
    first = asyncio.ensure_future(thread.run(seen.append, 1))
    await asyncio.sleep(0)
    thread.post(lambda: seen.append(2))
    await thread.run(seen.append, 3)
    await first
    assert seen == [1, 2, 3]


async def test_a_job_that_is_cancelled_before_its_turn_is_left_out(thread: ComputeThread) -> None:
    """The one under way ends in peace, and its late result troubles nobody."""
    release, seen = threading.Event(), list[str]()
    running = asyncio.ensure_future(thread.run(release.wait, 10))
    waiting = asyncio.ensure_future(thread.run(seen.append, "ran"))
    await asyncio.sleep(0)
    waiting.cancel()
    running.cancel()
    release.set()
    assert await thread.run(lambda: "next") == "next"
    assert running.cancelled()
    assert not seen


async def test_an_error_that_nobody_waits_for_is_logged_and_the_thread_lives(
    thread: ComputeThread, caplog: pytest.LogCaptureFixture
) -> None:
    """A job without a caller must not take the thread with it, nor fail in silence."""

    def fail() -> None:
        raise ValueError("in the background")

    thread.post(fail)
    assert await thread.run(int) == 0
    [logged] = caplog.records
    assert "failed" in logged.getMessage()
    assert "in the background" in str(logged.exc_info)


async def test_closing_waits_for_the_job_under_way_and_gives_up_the_rest() -> None:
    """No thread is left inside an engine when the process ends; who waits for a job that will not run is told."""
    thread = ComputeThread("to-close")
    began, release, seen = threading.Event(), threading.Event(), list[str]()

    def long() -> None:
        began.set()
        release.wait(10)
        seen.append("ended")

    running = asyncio.ensure_future(thread.run(long))
    waiting = asyncio.ensure_future(thread.run(seen.append, "never"))
    await asyncio.to_thread(began.wait, 10)
    threading.Timer(0.05, release.set).start()
    thread.close()
    assert seen == ["ended"]
    assert "to-close" not in {t.name for t in threading.enumerate()}
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await running
    with pytest.raises(RuntimeError, match="the to-close thread is closed"):
        await thread.run(int)
    with pytest.raises(RuntimeError, match="closed"):
        thread.post(int)
    thread.close()
