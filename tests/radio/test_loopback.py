"""The air behind a socket: same bits, same errors, one owner per radio."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

import radio
from radio.airserver import EtherServer
from radio.errors import ConfigError, LinkError, ProtocolMismatch, RadioNotFound, RadioRefused, TooLate
from radio.ether import Ether
from radio.loopback import LoopbackRadio, RemoteEther
from radio.presets import preset
from radio.wire import VERSION

CONFIG = radio.RadioConfig(1e6, 915e6, 915e6, 1e6, 70.0)
OPTIONS = preset("pluto-stock", seed=8)


@pytest.fixture
def served() -> Iterator[EtherServer]:
    server = EtherServer(Ether(OPTIONS, ["server", "n"]), "tcp://127.0.0.1:0")
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.stop()
    thread.join(10)
    assert not thread.is_alive()


def exchange(radios: list[LoopbackRadio]) -> list[bytes]:
    for each in radios:
        assert each.configure(CONFIG).tx_hz == pytest.approx(915e6, abs=2.4)
    report = radios[1].transmit(np.full(5000, 0.1 + 0.2j, np.complex64))
    return [str(report).encode(), *(each.receive(80_000).samples.tobytes() for each in radios)]


def test_the_socket_changes_no_bit(served):
    ether = Ether(OPTIONS, ["server", "n"])
    near = exchange([LoopbackRadio(name, ether) for name in ether.names])
    far = [LoopbackRadio(name, RemoteEther(served.address)) for name in ether.names]
    assert exchange(far) == near
    assert far[0].capabilities == ether.capabilities("server")
    for each, other in ((far[0], 0.0), (far[1], 1.0)):
        each.witness.deposit("k", each.name, {"x": np.array([other, 2.0], np.float32), "n": np.array(3)})
    found = far[0].witness.collect("k", ("server", "n"))
    np.testing.assert_array_equal(found["x"], np.array([1.0, 4.0], np.float32))
    assert found["x"].dtype == np.float32 and found["n"] == 6
    offsets = np.linspace(-4e5, 4e5, 5)
    np.testing.assert_array_equal(
        far[0].witness.amplitude("n", "server", far[0].now(), offsets),
        ether.amplitude("n", "server", 80_000 + 16_384, offsets),
    )
    assert far[0]._air.state() == ether.state()
    for each in far:
        each.close()
        each._air.disconnect()


def test_errors_come_back_as_themselves(served):
    remote = RemoteEther(served.address)
    with pytest.raises(RadioNotFound, match="server, n"):
        LoopbackRadio("m", remote)
    node = LoopbackRadio("n", remote)
    with pytest.raises(RadioRefused, match="rx_gain_db"):
        node.configure(radio.RadioConfig(1e6, 915e6, 915e6, 1e6, 170.0))
    node.configure(CONFIG)
    with pytest.raises(TooLate) as late:
        node.transmit(np.zeros(10, np.complex64), node.earliest() - 5)
    assert late.value.late_samples == 5 and late.value.remedy
    with pytest.raises(ConfigError, match="is not this one"):
        remote.restore({"version": 0})
    with pytest.raises(ConfigError, match="does not travel"):
        node.witness.deposit("k", "n", {"x": np.array(["text"])})
    node.close()
    remote.disconnect()


def test_a_radio_has_one_owner_until_that_owner_dies(served):
    script = (
        "import sys, time, radio\n"
        "r = radio.open(sys.argv[1], radio.PROFILES['conducted'])\n"
        "print('open', flush=True)\n"
        "time.sleep(60)\n"
    )
    uri = f"loopback:{served.address}/n"
    with subprocess.Popen([sys.executable, "-c", script, uri], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with pytest.raises(RadioRefused, match="already open by another program"):
            radio.open(uri, radio.PROFILES["conducted"])
        other.kill()
        other.wait()
    for _ in range(50):
        try:
            taken = radio.open(uri, radio.PROFILES["conducted"])
            break
        except RadioRefused:  # the kernel may take a moment to tell that the connection is gone
            threading.Event().wait(0.1)
    taken.configure(CONFIG)
    assert taken.receive(100).samples.size == 100
    taken.close()


def test_port_in_use_and_nobody_there(served):
    with pytest.raises(LinkError, match=r"cannot listen on tcp://127.0.0.1:\d+.*choose another port"):
        EtherServer(Ether(OPTIONS, ["server"]), served.address)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(LinkError, match=f"no simulated air answered hello at {address} within 0.3 s"):
        RemoteEther(address, timeout_s=0.3)
    with pytest.raises(LinkError, match="no address"):
        RemoteEther("nonsense")


def test_versions_and_rubbish_are_refused(served):
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.connect(served.address)

        def ask(*frames: bytes) -> dict:
            client.send_multipart(frames)
            assert client.poll(5000)
            return json.loads(client.recv_multipart()[0])

        told = ask(json.dumps({"version": 99, "id": 1, "call": "hello", "args": {}}).encode(), b"")
        assert told["error"]["class"] == ProtocolMismatch.__name__
        assert "99" in told["error"]["message"] and str(VERSION) in told["error"]["message"]
        bare = json.dumps({"version": VERSION, "id": 3}).encode()
        for rubbish in ((b"\xff",), (b"[]", b""), (b"{}", b""), (bare, b"")):
            assert "error" in ask(*rubbish)
        table = {
            "version": VERSION,
            "id": 4,
            "call": "deposit",
            "args": {"key": "k", "name": "n"},
            "arrays": [["x", "<f8", [9]]],
        }
        assert "error" in ask(json.dumps(table).encode(), b"short")
        table["arrays"] = [["x", "|O", [1]]]
        assert "error" in ask(json.dumps(table).encode(), b"12345678")
    remote = RemoteEther(served.address)  # and the air is still there
    assert remote.names == ("server", "n")
    remote.disconnect()


def test_import_is_light():
    code = (
        "import sys, time; start = time.process_time(); import radio; "
        "print(time.process_time() - start, sorted({'zmq', 'torch', 'numba'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, loaded = told.split(" ", 1)
    assert loaded.strip() == "[]"
    assert float(seconds) < 1.0
