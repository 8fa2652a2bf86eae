"""Starts UHD's simulated E320 on a loopback address; runs by the system's Python, in a process of its own.

    /usr/bin/python3 tools/usrp_sim/launch.py --address 127.0.0.2 --serial SIM0002

Needs the packages python3-uhd, python3-gevent, python3-msgpack and python3-six (Debian 12: UHD 4.3). Imports MPM, the
device side of UHD (GPL-3), at run time; nothing imports this file. MPM as packaged cannot start: its entry module is
absent, and so are mprpc, systemd, pyudev, pyroute2 and netaddr. What it needs of them is put in their place here.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import types

COMPAT = (4, 2)
RPC_PORT, DISCOVERY_PORT = 49601, 49600


def stand_in(name: str, **members: object) -> None:
    """Put a module of these members in the place of one that is not installed."""
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module


class RPCServer:
    """The msgpack-rpc server that MPM expects of mprpc: answers calls of its own public methods."""

    def __init__(self, pack_params: dict[str, object], unpack_params: dict[str, object]) -> None:
        self._pack, self._unpack = pack_params, unpack_params
        self.client_host, self.client_port = "", 0

    def __call__(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """Serve one connection until it ends."""
        import msgpack

        self.client_host, self.client_port = peer
        unpacker = msgpack.Unpacker(**self._unpack)
        while data := sock.recv(65536):
            unpacker.feed(data)
            for message in unpacker:
                kind, number, name, arguments = message if message[0] == 0 else (2, None, *message[1:])
                error, result = None, None
                try:
                    if name.startswith("_"):
                        raise AttributeError(name)
                    result = getattr(self, name)(*arguments)
                except Exception as raised:  # noqa: BLE001  the client must have an answer
                    error = str(raised) or type(raised).__name__
                if kind == 0:
                    sock.sendall(msgpack.packb([1, number, error, result], **self._pack))


def stand_ins(address: str) -> None:
    """Put small parts in the place of those that MPM lacks; the only network interface is the address."""
    refused = type("NotHere", (), {})
    stand_in("mprpc", RPCServer=RPCServer)
    stand_in("systemd", daemon=types.SimpleNamespace(notify=lambda state: None))
    stand_in("pyudev", Context=refused, Devices=refused)
    stand_in("pyroute2", IPRoute=refused, IPDB=refused)
    stand_in("netaddr", IPAddress=str, EUI=str)
    stand_in("usrp_mpm.sys_utils.uio", UIO=refused)  # imports a native module that is not packaged
    from usrp_mpm.mpmlog import get_main_logger

    get_main_logger(use_logbuf=False).setLevel(os.environ.get("MPM_LOG", "ERROR"))
    from usrp_mpm.periph_manager import base
    from usrp_mpm.sys_utils import net

    net.get_local_ip_addrs = lambda: [address]
    base.get_mender_artifact = lambda: ""  # None, for a device without a file system image, is no string to libuhd


def discovery(state: object, address: str) -> None:
    """Answer UHD's search on this address alone."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, DISCOVERY_PORT))
    while True:
        data, sender = sock.recvfrom(9000)
        if data.strip(b"\0") == b"MPM-DISC":
            told = [b"USRP-MPM"]
            for key in ("type", "product", "serial", "name"):
                told.append(key.encode() + b"=" + getattr(state, "dev_" + key).value)
            told.append(b"claimed=" + str(state.claim_status.value).encode())
            sock.sendto(b";".join(told), sender)
        elif data.startswith(b"MPM-ECHO"):
            sock.sendto(data, sender)


def device(options: argparse.Namespace) -> None:
    """Assemble the device class: clock, reference, links, and a daughterboard that tells its settings to the air."""
    import airs
    import streams
    import usrp_mpm.periph_manager as rack
    from usrp_mpm.periph_manager import sim as simulated
    from usrp_mpm.simulator import sim_dboard
    from usrp_mpm.simulator.config import Config

    clock = streams.DeviceClock(not options.no_clock)
    made = {"loop": airs.Loop, "counter": airs.Counter}.get(options.air)
    air = made() if made else airs.Remote(options.air, {"serial": options.serial, "address": options.address})
    signal.signal(signal.SIGUSR1, lambda *_: setattr(clock, "overrun", True))
    for part in (streams.OutputStream, streams.InputStream):
        part.clock, part.air = clock, air
    streams.Endpoint.address = options.address
    streams.install()
    simulated.ChdrEndpoint = streams.Endpoint
    config = Config.default()
    config.hardware.serial_num = options.serial
    simulated.Config = types.SimpleNamespace(default=lambda: config)

    class Links:
        """The one link, to the address."""

        def __init__(self, *_: object) -> None:
            self.chdr_port = streams.CHDR_PORT

        def init(self, args: object) -> None: ...
        def deinit(self) -> None: ...

        def get_xport_info(self) -> dict[str, str]:
            return {"addr": options.address}

        def get_chdr_link_options(self) -> list[dict[str, str]]:
            link = {"iface": "lo", "ipv4": options.address, "port": str(self.chdr_port), "type": "sfp"}
            return [{**link, "link_rate": str(125_000_000), "mtu": "9000"}]

    simulated.SimXportMgrUDP = Links

    class Board(sim_dboard.SimulatedCatalinaDboard):
        """Tells every gain, frequency and rate to the air."""

        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            for name in ("set_gain", "catalina_tune"):
                setattr(self, name, self._told(name, getattr(self, name)))

        def _told(self, name: str, call):
            def wrapped(port: str, value: float) -> object:
                air.settings(clock.now(), {f"{name} {port}": value, **clock.told()})
                return call(port, value)

            return wrapped

        def set_catalina_clock_rate(self, rate: float) -> float:
            clock.rate_hz = rate  # the time in seconds goes on
            air.settings(clock.now(), clock.told())
            return super().set_catalina_clock_rate(rate)

    sim_dboard.registry["SimulatedCatalinaDboard"] = Board

    told_sources = {"time": "internal", "clock": "internal"}

    class Device(simulated.sim):
        """An E320 whose time runs, with a PPS and a reference that is always locked."""

        mboard_sensor_callback_map: dict[str, str] = {"ref_locked": "get_ref_lock_sensor"}  # noqa: RUF012  MPM's way

        def get_ref_lock_sensor(self) -> dict[str, str]:
            locked = str(not options.unlocked).lower()
            return {"name": "ref_locked", "type": "BOOLEAN", "unit": "locked", "value": locked}

        def get_timekeeper_time(self, index: int, last_pps: bool) -> int:
            return clock.last_pps() if last_pps else clock.now()

        def set_timekeeper_time(self, index: int, ticks: int, next_pps: bool) -> None:
            clock.set(ticks, next_pps)
            air.settings(ticks, clock.told())

        def get_time_sources(self) -> tuple[str, ...]:
            return ("internal", "external")

        get_clock_sources = get_time_sources

        def set_time_source(self, source: str) -> None:
            told_sources["time"] = source

        def get_time_source(self) -> str:
            return told_sources["time"]

        def set_clock_source(self, source: str) -> None:
            told_sources["clock"] = source

        def get_clock_source(self) -> str:
            return told_sources["clock"]

    rack.periph_manager = Device


def main() -> None:
    """Serve until killed, or until standard input closes when ``--while-stdin`` is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="127.0.0.2")
    parser.add_argument("--serial", default="SIM0002", help="at most 7 characters")
    parser.add_argument("--air", default="loop", help="loop, counter, or HOST:PORT of a bridge")
    parser.add_argument("--no-clock", action="store_true", help="device time stands still, as in plain MPM")
    parser.add_argument("--unlocked", action="store_true", help="the reference never locks")
    parser.add_argument("--while-stdin", action="store_true")
    options = parser.parse_args()
    stand_ins(options.address)
    from usrp_mpm.rpc_server import MPM_COMPAT_NUM

    if MPM_COMPAT_NUM != COMPAT:
        sys.exit(f"this launcher mends the MPM of UHD 4.3, whose number is {COMPAT}; here it is {MPM_COMPAT_NUM}")
    device(options)
    from gevent.os import tp_read
    from gevent.pool import Pool
    from gevent.server import StreamServer
    from usrp_mpm.mpmtypes import SharedState
    from usrp_mpm.rpc_server import MPMServer

    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # MPM's own way out waits for its clients
    if options.while_stdin:
        threading.Thread(target=lambda: (tp_read(0, 1), os._exit(0)), daemon=True).start()
    state = SharedState()
    # a busy host may keep owner and device apart for longer than the 5 s after which MPM takes the device away
    server = MPMServer(state, {"rpc_timeout_interval": 10})
    threading.Thread(target=discovery, args=(state, options.address), daemon=True).start()
    listener = StreamServer((options.address, RPC_PORT), handle=server, spawn=Pool(100))
    listener.start()
    sys.stdout.write(json.dumps({"address": options.address, "serial": options.serial}) + "\n")
    sys.stdout.flush()
    listener.serve_forever()


if __name__ == "__main__":
    main()
