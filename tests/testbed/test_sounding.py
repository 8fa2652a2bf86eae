"""What becomes of nodes whose soundings are not heard."""

from types import SimpleNamespace

from testbed.sounding import FLOOR_DB, _audible


class Server:
    """Notes what it is asked to do."""

    def __init__(self, *names: str) -> None:
        self.warned: list[str] = []
        self.sought: list[str] = []
        self.uplink = SimpleNamespace(peers=dict.fromkeys(names))

    def warn(self, code: str, text: str) -> None:
        self.warned.append(f"{code}: {text}")

    def unlock(self, reason: str, *names: str) -> None:
        self.sought += names


def soundings(*snr_db: float) -> list[SimpleNamespace]:
    return [SimpleNamespace(snr_db=each) for each in snr_db]


def test_a_node_whose_soundings_went_unheard_is_sought_anew_and_not_called_weak():
    server = Server("a", "b")
    heard = {"a": soundings(20.0, FLOOR_DB - 9, 21.0), "b": soundings(FLOOR_DB - 8, FLOOR_DB - 9, 20.0)}
    assert list(_audible(server, heard)) == ["a"], "one spoilt sounding of three is no lost link"
    assert server.warned == ["not-heard: node b: sounding at -13.0 dB"]
    assert server.sought == ["b"] and list(server.uplink.peers) == ["a"]
