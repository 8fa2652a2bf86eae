"""The two streams of an open USRP: samples into a ring, bursts out at their tick; is handed UHD, never imports it."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from typing import Any

import numpy as np

from radio.base import EventKind, StreamEvent
from radio.errors import RadioError
from radio.pairs import IQ
from radio.ring import RxRing
from radio.urgency import hurry

FULL_SCALE = 2.0**15
START_S = 0.1
BLOCK_S = 2e-3
HAND_S = 0.2  # a burst is handed over this long before its time: until then a mute can drop it
CHUNK_S = 0.02  # what a mute cannot cut off a burst that is being handed over
POLL_S = 0.1
STALL_S = 1.0
DRIFT = 1e-4  # between the crystals of device and host
REMEDY = "check power and cable, then open it again"


class Streams:
    """Both directions of the first channel, running from construction to ``stop``. An index is device time in samples.

    Args:
        uhd: the module.
        usrp: the open device, rates and time set.
        ring: takes what is received.
        rate_hz: of both directions.
        name: of the radio, for messages.
    """

    def __init__(self, uhd: Any, usrp: Any, ring: RxRing, rate_hz: float, name: str) -> None:
        self._types, self._usrp, self._ring, self.rate_hz, self._name = uhd.types, usrp, ring, rate_hz, name
        wire = uhd.usrp.StreamArgs("sc16", "sc16")
        wire.channels = [0]
        self._rx, self._tx = usrp.get_rx_stream(wire), usrp.get_tx_stream(wire)
        per_packet = self._rx.get_max_num_samps()
        # whole packets: the time of a packet's rest is wrong on devices without a down-converter
        self.block = per_packet * max(1, round(BLOCK_S * rate_hz / per_packet))
        self.error: RadioError | None = None
        self._stop = threading.Event()
        self._bursts: queue.Queue[tuple[IQ, int, int]] = queue.Queue()
        self._drops = self._handed = 0
        self._ahead = 0.0  # of the host's clock, in samples, as far as the device and samples that came in tell
        self._events: deque[StreamEvent] = deque()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to receive, and to wait for bursts."""
        begin = self._command_start()
        self._ring.restart(begin, seam=self._ring.newest > 0)
        for work in (lambda: self._receiving(begin), self._sending):
            thread = threading.Thread(target=self._guarded, args=[work], daemon=True, name=self._name)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Stop, and let go of both streamers: a second one for a channel that has one fails."""
        self._stop.set()
        self.drop()
        for thread in self._threads:
            thread.join(10 * STALL_S)
        rx, self._rx, self._tx, self._usrp = self._rx, None, None, None
        rx.issue_stream_cmd(self._types.StreamCMD(self._types.StreamMode.stop_cont))

    def ticks(self) -> int:
        """Give the device's time, or a moment earlier: the received samples tell it, and asking takes milliseconds."""
        return round(self._ahead + time.monotonic() * self.rate_hz)

    def _spec(self, index: int) -> Any:
        """Give an index as whole seconds and fraction: one float of seconds comes late (uhd issue 592)."""
        return self._types.TimeSpec.from_ticks(index, self.rate_hz)

    def _command_start(self) -> int:
        # Asked at every start: the first samples may come late, while another call into libuhd holds the interpreter.
        told = int(self._usrp.get_time_now(0).to_ticks(self.rate_hz))
        self._ahead = told - time.monotonic() * self.rate_hz
        begin = self.ticks() + round(START_S * self.rate_hz)
        command = self._types.StreamCMD(self._types.StreamMode.start_cont)
        command.stream_now, command.time_spec = False, self._spec(begin)
        self._rx.issue_stream_cmd(command)
        return begin

    def _guarded(self, work: Any) -> None:
        hurry(2)
        try:
            work()
        except RuntimeError as error:
            self.error = RadioError(f"{self._name} stopped at RX index {self._ring.newest}: {error}", REMEDY)
            self._ring.fail(self.error)

    def _receiving(self, expected: int) -> None:
        """Fill the ring until told to stop."""
        codes, metadata = self._types.RXMetadataErrorCode, self._types.RXMetadata()
        buffer = np.zeros((1, self.block), np.int32)
        silent = -round(START_S / POLL_S)  # empty polls, not time gone by: this thread may itself be held up
        cause: EventKind = "lost"
        while not self._stop.is_set():
            count = self._rx.recv(buffer, metadata, POLL_S)
            if metadata.error_code == codes.overflow and not metadata.out_of_sequence:
                cause = "overflow"  # out of sequence, the same code says that the network lost a packet
            elif metadata.error_code == codes.late:
                self._command_start()
            if not count:
                silent += 1
                if silent * POLL_S > STALL_S:
                    raise RuntimeError(f"no samples for {STALL_S:g} s")
                continue
            silent = 0
            index = int(metadata.time_spec.to_ticks(self.rate_hz)) if metadata.has_time_spec else expected
            ahead = index + count - time.monotonic() * self.rate_hz  # less by as much as these samples were late
            self._ahead = max(ahead, self._ahead - DRIFT * count)
            gap, skip = index - expected, min(max(expected - index, 0), count)  # rounding may repeat a sample
            events = (StreamEvent(cause, expected, gap),) if gap > 0 and cause == "overflow" else ()
            self._ring.append(buffer[0, skip:count].view(np.int16).reshape(-1, 2), index + skip, events)
            expected, cause = max(expected, index + count), "lost"

    def add(self, pairs: IQ, start: int) -> tuple[StreamEvent, ...]:
        """Queue a burst; returns what the device has said of earlier ones."""
        self._bursts.put((pairs, start, self._drops))
        return tuple(self._events.popleft() for _ in range(len(self._events)))

    def drop(self) -> None:
        """Forget the bursts that wait, and cut the one that is being handed over."""
        self._drops += 1
        while not self._bursts.empty():
            self._bursts.get_nowait()

    def play_out(self) -> None:
        """Wait until what was handed over before a ``drop`` is over: it cannot be taken back."""
        while (left := self._handed - self.ticks()) > 0:
            time.sleep(left / self.rate_hz)

    def _sending(self) -> None:
        """Hand bursts to the device, and collect what it says of them, until told to stop."""
        start = count = 0
        while not self._stop.is_set():
            self._listen(start, count)
            try:
                pairs, start, drops = self._bursts.get(timeout=0.05)
            except queue.Empty:
                continue
            count = len(pairs)
            while (early_s := (start - self.ticks()) / self.rate_hz - HAND_S) > 0 and drops == self._drops:
                self._stop.wait(min(early_s, CHUNK_S))
            if drops == self._drops:
                self._send(pairs, start, drops)

    def _send(self, pairs: IQ, start: int, drops: int) -> None:
        metadata = self._types.TXMetadata()
        metadata.start_of_burst = metadata.has_time_spec = True
        metadata.time_spec = self._spec(start)
        words, chunk, sent = pairs.view(np.int32).reshape(1, -1), max(1, round(CHUNK_S * self.rate_hz)), 0
        self._handed = start + chunk
        while sent < words.shape[1]:
            cut = drops != self._drops
            piece = np.zeros((1, 1), np.int32) if cut else words[:, sent : sent + chunk]
            metadata.end_of_burst = cut or sent + piece.shape[1] == words.shape[1]
            wait_s = max(0.0, (start + sent - self.ticks()) / self.rate_hz)  # a full device takes it at its time
            taken = self._tx.send(piece, metadata, wait_s + STALL_S)
            if cut:
                return
            if not taken:
                raise RuntimeError(f"a burst for TX index {start} is not taken after {sent} samples")
            sent += taken
            self._handed = start + sent
            metadata.start_of_burst = metadata.has_time_spec = False

    def _listen(self, start: int, count: int) -> None:
        """Drain the device's messages: unread, they fill a queue that drops newer ones."""
        codes, message = self._types.TXMetadataEventCode, self._types.TXAsyncMetadata()
        kinds: dict[Any, EventKind] = {
            codes.time_error: "late",
            codes.underflow: "underflow",
            codes.underflow_in_packet: "underflow",
            codes.seq_error: "lost",
            codes.seq_error_in_packet: "lost",
        }
        while self._tx.recv_async_msg(message, 0.0):
            if message.event_code in kinds:
                kind, at = kinds[message.event_code], start
                if kind != "late" and message.has_time_spec:  # a late burst is dropped whole
                    at = min(max(int(message.time_spec.to_ticks(self.rate_hz)), start), start + count)
                self._events.append(StreamEvent(kind, at, start + count - at))
