"""Puts simulated E320s on one simulated air, in real time: their samples travel through its links, clocks and noise.

    python tools/usrp_sim/bridge.py --radios 2 --preset usrp-free

prints a ``usrp:`` URI per radio. The air lives in this process; each simulated device asks it over a local socket for
what it hears, and hands it what it sends (frames of ``airs.FRAME``).
"""

from __future__ import annotations

import argparse
import json
import os
import socketserver
import sys
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

# threads of a matrix product wait for each other without pause, and here some may be more urgent than others
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
from airs import FRAME
from simulated import Simulated

from radio.base import RadioConfig
from radio.errors import RadioError
from radio.ether import Ether
from radio.paced import paced_options
from radio.presets import preset
from radio.urgency import hurry
from radio.warm import warm

FULL_SCALE = np.float32(2.0**15)
TX_GAIN_DB = (0.0, 89.75)  # of an E320; the lowest counts as switched off
MAX_RATE_HZ = 61.44e6


class Seat:
    """One radio of the air as one simulated device sees it: ticks instead of indices.

    Args:
        ether: the air.
        name: the radio.
        began_s: the monotonic time at which the air's time began.
    """

    def __init__(self, ether: Ether, name: str, began_s: float) -> None:
        self._ether, self._name, self._began_s = ether, name, began_s
        self.told: dict[str, float] = {}  # the last value of every setting
        self._clock: tuple[float, float] | None = None
        self._offset = 0  # index on the air minus tick
        ether.open(name, "a simulated E320")

    def settings(self, told: dict[str, float]) -> None:
        """Take settings as the device's daughterboard got them."""
        self.told.update(told)
        known = self.told
        if known["rate_hz"] > MAX_RATE_HZ:
            return  # the master clock that a device wakes up with
        gain_db = known.get("set_gain TX1", 0.0)
        wanted = RadioConfig(
            rate_hz=known["rate_hz"],
            tx_hz=known.get("catalina_tune TX1", 2.4e9),
            rx_hz=known.get("catalina_tune RX1", 2.4e9),
            bandwidth_hz=known["rate_hz"],
            rx_gain_db=known.get("set_gain RX1", 0.0),
            tx_attenuation_db=TX_GAIN_DB[1] - gain_db,
        )
        self._ether.configure(self._name, wanted)
        if gain_db > TX_GAIN_DB[0]:
            self._ether.unmute(self._name)
        else:
            self._ether.mute(self._name)
        if self._clock != (known["rate_hz"], known["zero_s"]):
            self._clock = known["rate_hz"], known["zero_s"]
            tick = round((time.monotonic() - known["zero_s"]) * known["rate_hz"])
            with self._ether.hold(self._name) as station:
                at_s = tick / known["rate_hz"] + known["zero_s"] - self._began_s
                self._offset = max(station.device_at(at_s), station.cursor) - tick

    def send(self, tick: int, samples: bytes) -> None:
        """Put sc16 samples on the air; what comes too late is dropped, as the device has told its host."""
        pairs = np.frombuffer(samples, "<i2").astype(np.float32) / FULL_SCALE
        with suppress(RadioError):
            self._ether.transmit(self._name, pairs.view(np.complex64), tick + self._offset)

    def hear(self, tick: int, count: int) -> bytes:
        """Give what is heard as sc16; silence from before the air's time."""
        index = tick + self._offset
        missed = min(count, max(0, self._ether.now(self._name) - index))
        heard = np.zeros(count, np.complex64)
        if missed < count:
            heard[missed:] = self._ether.receive(self._name, count - missed, index + missed).samples
        scaled = np.rint(heard.view(np.float32) * FULL_SCALE)
        return np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype("<i2").tobytes()


class Bridge:
    """Serves an air to simulated devices, in threads. A device takes the next radio in the order of the air's names.

    Args:
        ether: the air, made with ``radio.paced.paced_options``.
    """

    def __init__(self, ether: Ether) -> None:
        warm(ether.options, ether.names)
        began_s, names = time.monotonic(), iter(ether.names)
        self.seats: dict[str, Seat] = {}  # by serial
        seats = self.seats

        class Connection(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with suppress(ConnectionError):  # a device that is switched off
                    self.talk()

            def talk(self) -> None:
                seat = None
                while head := self.rfile.read(FRAME.size):
                    kind, tick, size = FRAME.unpack(head)
                    if kind == b"R":
                        assert seat is not None
                        self.wfile.write(seat.hear(tick, size // 4))
                        continue
                    payload = self.rfile.read(size)
                    if kind == b"H":
                        serial = json.loads(payload)["serial"]
                        seat = seats[serial] = seats.get(serial) or Seat(ether, next(names), began_s)
                    elif kind == b"S" and seat is not None:
                        seat.settings(json.loads(payload))
                    elif kind == b"T" and seat is not None:
                        seat.send(tick, payload)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server: Any = Server(("127.0.0.1", 0), Connection)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--radios", type=int, default=2)
    parser.add_argument("--preset", default="usrp-free")
    parser.add_argument("--snr-db", type=float, default=20.0, help="per node and resource element at the server")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=2, help="the first listens on 127.0.0.FIRST")
    parser.add_argument("--while-stdin", action="store_true", help="end when standard input does")
    options = parser.parse_args()
    names = ["server", *(f"node-{number}" for number in range(1, options.radios))]
    hurry(2)  # the air, and the devices that are started from here, stand for what no host can hold up
    air = preset(options.preset, seed=options.seed, snr_db=options.snr_db)
    bridge = Bridge(Ether(paced_options(air, names), names))
    with ExitStack() as devices, suppress(KeyboardInterrupt):
        for number, name in enumerate(names, options.first):
            device = devices.enter_context(Simulated(number, bridge.address))
            sys.stdout.write(f"{name}: usrp:{device.rest}\n")
            sys.stdout.flush()
        sys.stdin.read() if options.while_stdin else threading.Event().wait()


if __name__ == "__main__":
    main()
