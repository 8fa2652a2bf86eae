"""Streams of the simulated E320: paced by a device clock, with timestamps; replaces MPM's, whose faults it lists.

Faults of the simulator in UHD 4.3 that end here: a credit of 5 kB is less than one frame, so sending never starts; the
receive buffer of 8000 bytes truncates frames of 8016; packets are spaced by bytes, not samples, so receive runs at a
quarter of the rate; the queue of stream status overflows and kills the socket thread; the capacity downstream is
forgotten after the first start; a finite stream cannot be followed by another; device time stands still and no packet
carries a timestamp. Runs under gevent: threads are greenlets, and nothing here needs a lock.
"""

from __future__ import annotations

import queue
import socket
import struct
import time
from threading import Thread

from uhd.chdr import (
    ChdrHeader,
    ChdrPacket,
    ChdrWidth,
    CtrlOpCode,
    CtrlPayload,
    PacketType,
    StrcOpCode,
    StrsPayload,
    StrsStatus,
)
from usrp_mpm.simulator import stream_endpoint_node
from usrp_mpm.simulator.chdr_endpoint import ChdrEndpoint
from usrp_mpm.simulator.chdr_stream import XferCount
from usrp_mpm.simulator.rfnoc_common import NodeType
from usrp_mpm.simulator.rfnoc_graph import RFNoCGraph

WIDTH = ChdrWidth.W64
CHDR_PORT = 49153
BATCH_S = 4e-3  # samples are heard this much at a time
CREDIT_BYTES = 40_000  # five frames: less never starts, more than the default socket buffer holds loses packets
FRAME_BYTES = 9000
DATA_WITH_TIME = 7  # packet type, bits 53-55 of the header word (RFNoC specification, CHDR packet)
DATA_WITHOUT_TIME = 6


# what a radio block writes to its host of its own accord (UHD, radio_control_impl)
TX_ERRORS, RX_ERRORS = 0x0000, 0x1000
RADIO_REGISTERS = (0x1000, 0x1100)
TX_UNDERRUN, TX_LATE, TX_DONE, RX_OVERRUN = 1, 2, 3, 2


class DeviceClock:
    """Ticks of one device: whole seconds of the host's monotonic clock are its PPS edges, common to all devices.

    Args:
        runs: false for a device as MPM simulates it, whose time is always 0.
    """

    def __init__(self, runs: bool) -> None:
        self.runs = runs
        self.rate_hz = 1e6
        self.overrun = False  # set it, and the receiver stops as if its buffer had run over
        self.heard = 0  # ticks that have been played to a listening host
        self._zero_s = time.monotonic()
        self._before_s = self._zero_s  # what counts until the edge at ``_from_s``
        self._from_s = 0.0

    def set(self, ticks: int, at_next_pps: bool) -> None:
        """Set the time now or at the next edge."""
        now = time.monotonic()
        edge = float(int(now) + 1) if at_next_pps else now
        self._before_s, self._from_s = self._zero(now), edge
        self._zero_s = edge - ticks / self.rate_hz

    def _zero(self, at_s: float) -> float:
        return self._zero_s if at_s >= self._from_s else self._before_s

    def at(self, host_s: float) -> int:
        """Give the ticks at a time of the host."""
        return round((host_s - self._zero(host_s)) * self.rate_hz) if self.runs else 0

    def now(self) -> int:
        """Give the ticks now."""
        return self.at(time.monotonic())

    def last_pps(self) -> int:
        """Give the ticks at the last edge."""
        return max(0, self.at(float(int(time.monotonic()))))

    def sleep_until(self, tick: int, otherwise_s: float) -> None:
        """Sleep until a tick of the running clock, or where it stands still until a time of the host."""
        until_s = tick / self.rate_hz + self._zero_s if self.runs else otherwise_s
        time.sleep(max(0.0, until_s - time.monotonic()))

    def told(self) -> dict[str, float]:
        """Say how ticks and the host's monotonic clock belong together, from now or from the next edge on."""
        return {"rate_hz": self.rate_hz, "zero_s": self._zero_s}


class OutputStream:
    """Samples from the device to the host: as many as time has passed, each packet with the tick of its first one."""

    clock: DeviceClock
    air: object
    tell: object  # takes (address, code, tick) for the host

    def __init__(self, log, chdr_w, sample_source, spec, send_wrapper) -> None:
        self._log, self._spec, self._send = log, spec, send_wrapper.send_data
        self._status = queue.Queue()
        self._sent, self._received = XferCount(), XferCount()
        self._stop = False
        self._timed_start = spec.init_timestamp if spec.is_timed else None
        spec.is_timed = False  # MPM never takes it back
        Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        spec, clock = self._spec, self.clock
        per_packet = spec.packet_samples // 4  # MPM counts a sample of four bytes as four
        at_once = per_packet * max(1, round(BATCH_S * clock.rate_hz / per_packet))
        left = None if spec.is_continuous else spec.total_samples
        tick = clock.now() if self._timed_start is None else self._timed_start
        number, begun_s, done = 0, time.monotonic(), 0  # a clock that stands still is paced by the host
        while not self._stop and left != 0:
            count = at_once if left is None else min(at_once, left)
            done += count
            clock.sleep_until(tick + count, begun_s + done / clock.rate_hz)
            if self._stop:
                return
            if clock.overrun:
                clock.overrun = False
                self.tell(RX_ERRORS, RX_OVERRUN, tick)  # the host starts it again
                return
            clock.heard = tick + count
            samples = self.air.hear(tick, count)
            left = None if left is None else left - count
            for begin in range(0, count, per_packet):
                ends = left == 0 and begin + per_packet >= count  # the last packet of a finite burst says so
                self._packet(samples[4 * begin : 4 * (begin + per_packet)], tick + begin, number, ends)
                number = (number + 1) & 0xFFFF
            tick += count

    def _packet(self, samples: bytes, tick: int, number: int, ends: bool) -> None:
        """Send one packet when the host has room."""
        kind, time_of_first = DATA_WITHOUT_TIME, b""
        if self.clock.runs:
            kind, time_of_first = DATA_WITH_TIME, struct.pack("<Q", tick)
        size = 8 + len(time_of_first) + len(samples)
        head = self._spec.dst_epid | size << 16 | number << 32 | kind << 53 | ends << 57
        while not self._fits(size):
            self._received = XferCount.from_strs(self._status.get().get_payload_strs())
        self._send(struct.pack("<Q", head) + time_of_first + samples, self._spec.addr)
        self._sent.count_packet(size)

    def _fits(self, size: int) -> bool:
        """Say whether the host has room for one more packet."""
        while not self._status.empty():
            self._received = XferCount.from_strs(self._status.get().get_payload_strs())
        packets = self._sent.num_packets - self._received.num_packets
        occupied = self._sent.num_bytes - self._received.num_bytes
        return packets < self._spec.capacity_packets and occupied + size <= self._spec.capacity_bytes

    def finish(self) -> None:
        """Stop."""
        self._stop = True

    def queue_packet(self, packet) -> None:
        """Take a stream status packet of the host."""
        self._status.put(packet)


class InputStream:
    """Samples from the host to the device. A burst whose first sample comes late is dropped, one that dries up ends."""

    clock: DeviceClock
    air: object
    tell: object  # takes (address, code, tick) for the host

    def __init__(self, log, chdr_w, sample_sink, send_wrapper, epid) -> None:
        self._log, self._epid, self._send = log, epid, send_wrapper
        self._count, self._due = XferCount(), XferCount()
        self._every = None
        self._host = None
        self._tick = 0
        self._in_burst = self._late = False

    def data(self, packet: bytes) -> None:
        """Take a data packet as it came."""
        (head,) = struct.unpack_from("<Q", packet)
        timed = head >> 53 & 7 == DATA_WITH_TIME
        samples = packet[16 if timed else 8 : head >> 16 & 0xFFFF]
        if not self._in_burst:
            self._tick = struct.unpack_from("<Q", packet, 8)[0] if timed else self.clock.now()
            # a simulator that is short of processor time lags in both directions alike: judge by what has been heard
            self._late = timed and self.clock.runs and self._tick < self.clock.heard
            if self._late:
                late = self.clock.heard - self._tick
                self._log.warning("burst at tick %d dropped: %d samples late", self._tick, late)
                self.tell(TX_ERRORS, TX_LATE, self._tick)
        elif not self._late and self.clock.runs and self._tick < self.clock.heard:
            self._late = True
            self._log.warning("no samples in time from tick %d on", self._tick)
            self.tell(TX_ERRORS, TX_UNDERRUN, self._tick)
        if not self._late:
            self.air.send(self._tick, samples)
        self._tick += len(samples) // 4
        self._in_burst = not head >> 57 & 1
        if not self._in_burst and not self._late:
            self.tell(TX_ERRORS, TX_DONE, self._tick)
        self._taken(len(packet))

    def queue_packet(self, packet, size, host) -> None:
        """Take a stream command of the host: it starts flow control, or asks for the status."""
        command = packet.get_payload_strc()
        if command.op_code == StrcOpCode.INIT:
            self._count.clear()
            self._every, self._host = XferCount.from_strc(command), (command.src_epid, host)
        elif command.op_code == StrcOpCode.RESYNC:
            self._count = XferCount.from_strc(command)
        else:
            self._count.count_packet(size)
        self._status(command.src_epid, host)

    def _taken(self, size: int) -> None:
        self._count.count_packet(size)
        self._due.count_packet(size)
        if self._every is not None and self._due.has_exceeded(self._every):
            self._due.clear()
            self._status(*self._host)

    def _status(self, epid: int, host) -> None:
        header = ChdrHeader()
        header.dst_epid = epid
        payload = StrsPayload()
        payload.src_epid = self._epid
        payload.status = StrsStatus.OKAY
        payload.capacity_bytes, payload.capacity_pkts = CREDIT_BYTES, 0xFFFFFF
        payload.xfer_count_bytes, payload.xfer_count_pkts = self._count.num_bytes, self._count.num_packets
        self._send.send_packet(ChdrPacket(WIDTH, header, payload), host)

    def finish(self) -> None:
        """Stop; nothing runs."""


class Sender:
    """Sends straight from the endpoint's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def send_packet(self, packet, addr) -> int:
        """Send a packet of UHD's own type."""
        data = bytes(packet.serialize())
        self.send_data(data, addr)
        return len(data)

    def send_data(self, data: bytes, addr) -> None:
        """Send bytes."""
        self._socket.sendto(data, addr)


class Endpoint(ChdrEndpoint):
    """The data port, on one address alone."""

    address: str

    def __init__(self, log, config) -> None:
        self.log, self.config = log.getChild("ChdrEndpoint"), config
        self.source_gen, self.sink_gen = config.source_gen, config.sink_gen
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((self.address, CHDR_PORT))
        self.graph = RFNoCGraph(
            self.get_default_nodes(), self.log, 0, Sender(self._socket), WIDTH, config.hardware.rfnoc_device_type
        )
        self._node = self.graph.graph_map[(NodeType.STRM_EP, 0)]
        self.thread = Thread(target=self.socket_worker, daemon=True)
        self.thread.start()

    def socket_worker(self) -> None:
        """Hand every packet to the graph, and samples straight to their stream."""
        while True:
            data, sender = self._socket.recvfrom(FRAME_BYTES)
            kind = data[6] >> 5
            if kind in (DATA_WITH_TIME, DATA_WITHOUT_TIME):
                self._node.input_stream.data(data)
                continue
            packet = ChdrPacket.deserialize(WIDTH, data)
            answer = self.graph.handle_packet(packet, (NodeType.XPORT, 0), sender, sender, len(data))
            if answer is not None:
                self._socket.sendto(bytes(answer.serialize()), sender)


class EndpointNode(stream_endpoint_node.StreamEndpointNode):
    """A stream endpoint that may start again: MPM forgets the capacity of the host, and lets finite streams linger."""

    def _handle_ctrl_packet(self, packet, regs, sender=None, **kwargs):
        """Answer a request; note whom the radio block belongs to, and let acknowledgements of its own messages be."""
        payload = packet.get_payload_ctrl()
        if payload.is_ack:
            return None
        if RADIO_REGISTERS[0] <= payload.address < RADIO_REGISTERS[1]:
            self._master = (payload.src_epid, payload.src_port, payload.dst_port, sender)
            InputStream.tell = OutputStream.tell = self.tell
        return super()._handle_ctrl_packet(packet, regs, sender=sender, **kwargs)

    def tell(self, address: int, code: int, tick: int) -> None:
        """Write an error code of the radio block to the host that controls it."""
        epid, port, block_port, host = self._master
        header, payload = ChdrHeader(), CtrlPayload()
        header.dst_epid, header.pkt_type = epid, PacketType.CTRL
        payload.src_epid, payload.src_port, payload.dst_port = self.epid, block_port, port
        payload.op_code, payload.address, payload.timestamp = CtrlOpCode.WRITE, address, tick
        payload.set_data([code])
        self.send_wrapper.send_packet(ChdrPacket(WIDTH, header, payload), host)

    def begin_output(self, spec) -> None:
        """Start a stream to the host."""
        if self.output_stream is not None:
            self.output_stream.finish()
            self.output_stream = None
        capacity = self.downstream_capacity
        super().begin_output(spec)
        self.downstream_capacity = capacity

    def end_output(self) -> None:
        """Stop the stream, if one runs."""
        if self.output_stream is not None:
            super().end_output()

    def _handle_strs_packet(self, packet, **kwargs) -> None:
        if packet.get_header().dst_epid in self.strs_handlers or self.output_stream is not None:
            super()._handle_strs_packet(packet, **kwargs)


def install() -> None:
    """Put these streams in the place of MPM's."""
    from usrp_mpm.simulator import chdr_endpoint, rfnoc_graph

    stream_endpoint_node.ChdrOutputStream = OutputStream
    stream_endpoint_node.ChdrInputStream = InputStream
    # the graph tells endpoints by their exact class
    chdr_endpoint.StreamEndpointNode = rfnoc_graph.StreamEndpointNode = EndpointNode
