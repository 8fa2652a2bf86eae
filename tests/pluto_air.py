"""Virtual Plutos in a process of their own, as in a lab: what they did is asked, and faults are made, over a pipe.

In one process the interpreter's lock would join the air's delays to the driver's.
"""

import json
import subprocess
import sys
from typing import Any

CHILD = """
import json, sys
import numpy as np
from radio.ether import Ether
from radio.paced import PacedRadio, Wall, paced_options
from radio.presets import preset
from radio.virtual_pluto import VirtualPluto, VirtualPlutos

name, count, changes = json.loads(sys.argv[1])
names = ["server", *(f"node-{i}" for i in range(1, count))]
ether = Ether(paced_options(preset(name, **changes), names), names)
wall = Wall()
radios = [PacedRadio(ether, each, wall) for each in names]
plutos = [VirtualPluto(radio, f"1044{number:028x}") for number, radio in enumerate(radios)]
lab = VirtualPlutos(plutos)
lab.start()
print(json.dumps([pluto.uri for pluto in plutos]), flush=True)
for line in sys.stdin:
    number, what, args = json.loads(line)
    if what == "amplitude":
        value = float(ether.amplitude(names[number], names[args[0]], args[1], np.zeros(1))[0])
    elif what == "config":
        value = vars(radios[number].config)
    else:
        value = getattr(radios[number], what)
        value = value(*args) if callable(value) else value
    print(json.dumps(value), flush=True)
lab.stop()
"""


class PlutoAir:
    """Plutos ``server``, ``node-1``, ... on one air; ``uris`` is what follows ``pluto:``."""

    def __init__(self, count: int, preset: str, **changes: Any) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps([preset, count, changes])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._child.stdout is not None
        self.uris: list[str] = json.loads(self._child.stdout.readline())

    def ask(self, number: int, what: str, *args: Any) -> Any:
        """Read an attribute of a paced radio, or call it."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps([number, what, args]) + "\n")
        self._child.stdin.flush()
        return json.loads(self._child.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._child.communicate(timeout=20)
