from __future__ import annotations

import json
import socket
import subprocess
from typing import TYPE_CHECKING

from collector.interfaces import net_interfaces
from schemas.events import NetInterface

if TYPE_CHECKING:
    from pathlib import Path


def test_this_machines_interfaces_are_those_of_ip_link() -> None:
    found = net_interfaces()
    listed = json.loads(subprocess.check_output(["ip", "-json", "link"]))
    wanted = [NetInterface(each["ifindex"], each["ifname"], each["mtu"]) for each in listed]
    assert set(wanted) & set(found)
    assert ("lo", socket.if_nametoindex("lo")) in [(each.name, each.index) for each in found]


def test_what_is_no_interface_is_left_out(tmp_path: Path) -> None:
    for name, index in (("eth1", 3), ("eth0", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ifindex").write_text(f"{index}\n")
        (tmp_path / name / "mtu").write_text("1500\n")
    (tmp_path / "bonding_masters").write_text("")
    (tmp_path / "going").mkdir()
    assert net_interfaces(tmp_path) == (
        NetInterface(2, "eth0", 1500),
        NetInterface(3, "eth1", 1500),
    )
    assert net_interfaces(tmp_path / "none") == ()
