"""The nodes of a lab as a calibration asks them: tasks out, replies in, over the control link; knows no step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from calibration.tasks import Reply, Task
from radio.errors import LinkError
from testbed.bus import Envelope, Lost, ServerBus
from testbed.messages import Ack, Hello, Measure, Measured, Nack, Welcome

__all__ = ["PATIENCE_S", "BusTeam"]

#: How long a node may take for a task beyond the time that it lasts on the air.
PATIENCE_S = 60.0
GONE = "its process has ended, or its network link is down"


class BusTeam:
    """The nodes of a lab behind the control link. ``ask`` is called from the thread of the steps, the rest from the
    loop that this was made in.

    Attributes:
        hellos: what each node said of itself.
    """

    def __init__(self, bus: ServerBus, names: Sequence[str]) -> None:
        self._bus, self._names = bus, tuple(names)
        self._loop = asyncio.get_running_loop()
        self._asked = 0
        self.hellos: dict[str, Hello] = {}

    def ask(self, tasks: Mapping[str, Task], span_s: float) -> dict[str, Reply]:
        """Send every node its task and wait for all of them."""
        return asyncio.run_coroutine_threadsafe(self._ask(tasks, span_s), self._loop).result()

    async def _ask(self, tasks: Mapping[str, Task], span_s: float) -> dict[str, Reply]:
        self._asked += 1
        gone: set[str] = set()
        for name, task in tasks.items():
            order = Measure(what=task.what, detail=dict(task.detail), round=self._asked)
            gone |= set(await self._bus.send_all([name], order, dict(task.arrays)))
        replies = await self._gather(set(tasks) - gone, span_s + PATIENCE_S)
        nothing = Reply(failure=f"no answer within {span_s + PATIENCE_S:.0f} s")
        return {name: Reply(failure=GONE) if name in gone else replies.get(name, nothing) for name in tasks}

    async def _gather(self, names: Iterable[str], timeout_s: float) -> dict[str, Reply]:
        """Wait for one answer of every node; who is lost or refuses says why."""
        wanted = set(names)
        replies: dict[str, Reply] = {}
        end = time.monotonic() + timeout_s
        while wanted - set(replies) and (left := end - time.monotonic()) > 0:
            item = await self._bus.receive(min(left, 1.0))
            if isinstance(item, Lost):
                replies[item.name] = Reply(failure=GONE)
            elif isinstance(item, Envelope):
                message = item.message
                if isinstance(message, Hello):
                    replies[item.name] = Reply(failure="it started anew")
                elif message.round != self._asked:
                    continue
                elif isinstance(message, Nack):
                    replies[item.name] = Reply(failure=message.reason, late_samples=message.late_samples)
                elif isinstance(message, Measured):
                    replies[item.name] = Reply(message.told, item.arrays)
                elif isinstance(message, Ack):
                    replies[item.name] = Reply(message.detail)
        return {name: reply for name, reply in replies.items() if name in wanted}

    async def join(self, timeout_s: float, alive: Callable[[], None]) -> None:
        """Wait until every node has said Hello.

        Args:
            timeout_s: longest wait.
            alive: raises when a process that the lab needs has ended.

        Raises:
            LinkError: a node did not join.
        """
        end = time.monotonic() + timeout_s
        while missing := [name for name in self._names if name not in self.hellos]:
            if time.monotonic() > end:
                raise LinkError(
                    f"{', '.join(missing)} did not join within {timeout_s:.0f} s at {self._bus.control_address}",
                    f"start it: testbed node {missing[0]}; or leave it out with --node",
                )
            alive()
            item = await self._bus.receive(0.2)
            if isinstance(item, Envelope) and isinstance(item.message, Hello):
                self.hellos[item.name] = item.message

    async def welcome(self, message: Welcome, places: Mapping[str, int], timeout_s: float) -> list[int]:
        """Admit every node under its place in the lab; returns the lead in samples that each needs.

        Raises:
            LinkError: a node did not take it.
        """
        for name, place in places.items():
            await self._bus.send_all([name], message.model_copy(update={"client": place, "shift": place}))
        replies = await self._gather(places, timeout_s)
        for name in places:
            reply = replies.get(name, Reply(failure=f"no answer within {timeout_s:.0f} s"))
            if reply.failure:
                raise LinkError(f"node {name}: {reply.failure}", f"read its log, then start it: testbed node {name}")
        return [int(reply.told["lead_samples"]) for reply in replies.values()]

    async def stop(self, outcome: str) -> None:
        """Let the nodes go."""
        await self._bus.dismiss(outcome)
