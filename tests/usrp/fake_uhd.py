"""A fake of UHD: one device with time, clocks, gains and streams, and incidents on order; hears nothing but zeros.

Only what stands here can be called, and ``test_signatures.py`` holds all of it to the real module.
"""

import time
from collections import deque
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np

PACKET = 500


class TimeSpec:
    def __init__(self, full: int, frac: float) -> None:
        assert isinstance(full, int) and 0.0 <= frac < 1.0
        self._full, self._frac = full, frac

    @staticmethod
    def from_ticks(ticks: int, rate: float) -> "TimeSpec":
        full = int(ticks // rate)
        return TimeSpec(full, (ticks - full * rate) / rate)

    def to_ticks(self, rate: float) -> int:
        return round(self._full * rate) + round(self._frac * rate)

    def get_full_secs(self) -> int:
        return self._full

    def get_frac_secs(self) -> float:
        return self._frac

    def get_real_secs(self) -> float:
        return self._full + self._frac


class StreamMode(Enum):
    start_cont, stop_cont = 1, 2


class RXMetadataErrorCode(Enum):
    none, timeout, late, broken_chain, overflow, alignment, bad_packet = 0, 1, 2, 4, 8, 12, 15


class TXMetadataEventCode(Enum):
    burst_ack, underflow, seq_error, time_error, underflow_in_packet, seq_error_in_packet, user_payload = range(7)


class StreamCMD:
    def __init__(self, mode: StreamMode) -> None:
        self.mode, self.stream_now, self.time_spec = mode, True, TimeSpec(0, 0.0)


class RXMetadata:
    def __init__(self) -> None:
        self.error_code, self.out_of_sequence = RXMetadataErrorCode.none, False
        self.has_time_spec, self.time_spec = False, TimeSpec(0, 0.0)


class TXMetadata:
    def __init__(self) -> None:
        self.start_of_burst = self.end_of_burst = self.has_time_spec = False
        self.time_spec = TimeSpec(0, 0.0)


class TXAsyncMetadata:
    def __init__(self) -> None:
        self.event_code, self.has_time_spec, self.time_spec = TXMetadataEventCode.burst_ack, False, TimeSpec(0, 0.0)


class TuneRequest:
    def __init__(self, target_freq: float = 0.0) -> None:
        self.target_freq = target_freq


class MetaRange:
    def __init__(self, low: float, high: float, step: float = 0.0) -> None:
        self._span = low, high, step

    def start(self) -> float:
        return self._span[0]

    def stop(self) -> float:
        return self._span[1]

    def clip(self, value: float, clip_step: bool = False) -> float:
        low, high, step = self._span
        return min(max(low + round((value - low) / step) * step if clip_step and step else value, low), high)


class SensorValue:
    def __init__(self, value: bool | float) -> None:
        self._value = value

    def to_bool(self) -> bool:
        return bool(self._value)

    def to_real(self) -> float:
        return float(self._value)


class DeviceAddr:
    def __init__(self, args: dict[str, str]) -> None:
        self._args = args

    def to_dict(self) -> dict[str, str]:
        return self._args


class StreamArgs:
    def __init__(self, cpu: str, wire: str) -> None:
        assert (cpu, wire) == ("sc16", "sc16")
        self.channels: list[int] = []


class Device:
    """What the fake hardware is and has seen. ``incidents`` are (kind, samples lost) for the receiver, in order."""

    def __init__(self) -> None:
        self.found = [{"serial": "30F", "type": "b200", "product": "B210"}]
        self.name, self.board_sensors, self.lo_sensors = "B210", ["ref_locked"], ["lo_locked"]
        self.locked = self.time_runs = self.pps = self.alive = True
        self.sources = ["internal", "external"]
        self.rate, self.rx_hz, self.tx_hz, self.rx_gain, self.tx_gain = 1e6, 0.0, 0.0, 0.0, 50.0
        self.tx_rate_step, self.gain_stuck = 0.0, False
        self.rx_tunes: list[float] = []
        self.bursts: list[dict[str, Any]] = []
        self.messages: deque[tuple[TXMetadataEventCode, int]] = deque()
        self.incidents: deque[tuple[str, int]] = deque()
        self.tx_takes = True
        self.streamers: list[Any] = []
        self.calls: list[str] = []
        self.zero_s, self.next_zero_s = time.monotonic(), None

    def now_s(self, at_s: float | None = None) -> float:
        at_s = time.monotonic() if at_s is None else at_s
        if self.next_zero_s is not None and at_s >= self.next_zero_s[0]:
            self.zero_s, self.next_zero_s = self.next_zero_s[1], None
        return max(0.0, at_s - self.zero_s) if self.time_runs else 0.0


def spec(seconds: float) -> TimeSpec:
    return TimeSpec(int(seconds), seconds - int(seconds))


class RXStreamer:
    def __init__(self, device: Device) -> None:
        self._device, self._tick, self._lost = device, None, None
        assert not any(isinstance(other, RXStreamer) for other in device.streamers), "output port connected already"
        device.streamers.append(self)

    def get_max_num_samps(self) -> int:
        return PACKET

    def issue_stream_cmd(self, command: StreamCMD) -> None:
        self._device.calls.append(command.mode.name)
        if command.mode is StreamMode.stop_cont:
            self._device.streamers.remove(self)
            return
        assert not command.stream_now
        self._tick = command.time_spec.to_ticks(self._device.rate)

    def recv(self, np_array: np.ndarray, metadata: RXMetadata, timeout: float = 0.1) -> int:
        device, count = self._device, np_array.shape[1]
        metadata.error_code, metadata.out_of_sequence = RXMetadataErrorCode.none, False
        if not device.alive or self._tick is None:
            time.sleep(timeout)
            metadata.error_code = RXMetadataErrorCode.timeout
            return 0
        if device.incidents:
            kind, lost = device.incidents.popleft()
            metadata.out_of_sequence = kind == "sequence"
            code = {"sequence": "overflow"}.get(kind, kind)
            metadata.error_code = RXMetadataErrorCode[code]
            self._tick += lost
            return 0
        time.sleep(max(0.0, (self._tick + count) / device.rate - device.now_s()))
        np_array[:] = 0
        metadata.has_time_spec, metadata.time_spec = True, TimeSpec.from_ticks(self._tick, device.rate)
        self._tick += count
        return count


class TXStreamer:
    def __init__(self, device: Device) -> None:
        self._device = device

    def send(self, np_array: np.ndarray, metadata: TXMetadata, timeout: float = 0.1) -> int:
        device = self._device
        if not device.tx_takes:
            return 0
        if metadata.start_of_burst:
            assert metadata.has_time_spec
            start = metadata.time_spec.to_ticks(device.rate)
            device.bursts.append({"start": start, "samples": [], "ended": False, "gain": device.tx_gain})
        assert not device.bursts[-1]["ended"]
        device.bursts[-1]["samples"] += np_array.view(np.int16).reshape(-1, 2).tolist()
        device.bursts[-1]["ended"] = metadata.end_of_burst
        return np_array.shape[1]

    def recv_async_msg(self, async_metadata: TXAsyncMetadata, timeout: float = 0.1) -> bool:
        if not self._device.messages:
            return False
        async_metadata.event_code, tick = self._device.messages.popleft()
        async_metadata.has_time_spec, async_metadata.time_spec = True, TimeSpec.from_ticks(tick, self._device.rate)
        return True


class MultiUSRP:
    device: Device

    def __init__(self, args: str) -> None:
        self.device.calls.append(f"open {args}")
        if not self.device.alive:
            raise RuntimeError("rpc::timeout: no answer")

    def _ask(self) -> Device:
        if not self.device.alive:
            raise RuntimeError("rpc::timeout: no answer")
        return self.device

    def get_mboard_name(self, mboard: int) -> str:
        return self._ask().name

    def get_clock_sources(self, mboard: int) -> list[str]:
        return self._ask().sources

    def get_time_sources(self, mboard: int) -> list[str]:
        return self._ask().sources

    def set_clock_source(self, source: str, mboard: int) -> None:
        self._ask().calls.append(f"clock {source}")

    def set_time_source(self, source: str, mboard: int) -> None:
        self._ask().calls.append(f"time {source}")

    def get_mboard_sensor_names(self, mboard: int) -> list[str]:
        return self._ask().board_sensors

    def get_mboard_sensor(self, name: str, mboard: int) -> SensorValue:
        assert name in self._ask().board_sensors
        return SensorValue(self._ask().locked)

    def get_time_now(self, mboard: int) -> TimeSpec:
        return spec(self._ask().now_s())

    def set_time_now(self, time_spec: TimeSpec, mboard: int) -> None:
        self._ask().zero_s = time.monotonic() - time_spec.get_real_secs()

    def set_time_next_pps(self, time_spec: TimeSpec, mboard: int) -> None:
        edge = int(time.monotonic()) + 1
        self._ask().next_zero_s = (edge, edge - time_spec.get_real_secs())

    def get_time_last_pps(self, mboard: int) -> TimeSpec:
        return spec(self._ask().now_s(int(time.monotonic())) if self.device.pps else 7.25)

    def set_rx_rate(self, rate: float, chan: int) -> None:
        self._ask().rate = rate

    def set_tx_rate(self, rate: float, chan: int) -> None:
        self._ask()

    def get_rx_rate(self, chan: int) -> float:
        return self._ask().rate

    def get_tx_rate(self, chan: int) -> float:
        return self._ask().rate + self.device.tx_rate_step

    def get_rx_rates(self, chan: int) -> MetaRange:
        return MetaRange(2e5, 61.44e6)

    def get_rx_freq_range(self, chan: int) -> MetaRange:
        return MetaRange(50e6, 6e9)

    def get_tx_freq_range(self, chan: int) -> MetaRange:
        return MetaRange(50e6, 6e9)

    def set_rx_freq(self, tune_request: TuneRequest, chan: int) -> None:
        self._ask().rx_hz = tune_request.target_freq
        self.device.rx_tunes.append(tune_request.target_freq)

    def set_tx_freq(self, tune_request: TuneRequest, chan: int) -> None:
        self._ask().tx_hz = tune_request.target_freq

    def get_rx_freq(self, chan: int) -> float:
        return self._ask().rx_hz

    def get_tx_freq(self, chan: int) -> float:
        return self._ask().tx_hz

    def get_rx_sensor_names(self, chan: int) -> list[str]:
        return [*self._ask().lo_sensors, "temp"]

    def get_tx_sensor_names(self, chan: int) -> list[str]:
        return self._ask().lo_sensors

    def get_rx_sensor(self, name: str, chan: int) -> SensorValue:
        return SensorValue(41.5 if name == "temp" else self._ask().locked)

    def get_tx_sensor(self, name: str, chan: int) -> SensorValue:
        return SensorValue(self._ask().locked)

    def set_rx_bandwidth(self, bandwidth: float, chan: int) -> None:
        self._ask()

    def set_tx_bandwidth(self, bandwidth: float, chan: int) -> None:
        self._ask()

    def get_tx_bandwidth(self, chan: int) -> float:
        return 160e6  # a fixed filter, wider than anything asked

    def set_rx_agc(self, enable: bool, chan: int) -> None:
        self._ask().calls.append(f"agc {enable}")
        raise RuntimeError("NotImplementedError: AGC is not available on this device")

    def get_rx_gain_range(self, chan: int) -> MetaRange:
        return MetaRange(0.0, 76.0, 1.0)

    def get_tx_gain_range(self, chan: int) -> MetaRange:
        return MetaRange(0.0, 89.75, 0.25)

    def set_rx_gain(self, gain: float, chan: int) -> None:
        self._ask().rx_gain = gain

    def get_rx_gain(self, chan: int) -> float:
        return self._ask().rx_gain

    def set_tx_gain(self, gain: float, chan: int) -> None:
        if not self._ask().gain_stuck:
            self.device.tx_gain = gain

    def get_tx_gain(self, chan: int) -> float:
        return self._ask().tx_gain

    def get_rx_stream(self, args: StreamArgs) -> RXStreamer:
        assert args.channels == [0]
        return RXStreamer(self._ask())

    def get_tx_stream(self, args: StreamArgs) -> TXStreamer:
        assert args.channels == [0]
        return TXStreamer(self._ask())


TYPES = (
    TimeSpec, StreamMode, RXMetadataErrorCode, TXMetadataEventCode, StreamCMD, RXMetadata, TXMetadata, TXAsyncMetadata,
    TuneRequest, MetaRange, SensorValue, DeviceAddr,
)  # fmt: skip
USRP = (MultiUSRP, StreamArgs, RXStreamer, TXStreamer)


def module(device: Device) -> SimpleNamespace:
    """Make a module with this device attached."""
    bound = type("MultiUSRP", (MultiUSRP,), {"device": device})

    def find(address: DeviceAddr) -> list[DeviceAddr]:
        return [DeviceAddr(each) for each in device.found if address.to_dict().items() <= each.items()]

    types = SimpleNamespace(**{each.__name__: each for each in TYPES})
    usrp = SimpleNamespace(**{each.__name__: each for each in USRP} | {"MultiUSRP": bound})
    return SimpleNamespace(types=types, usrp=usrp, find=find)
