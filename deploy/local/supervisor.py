"""Keeps the parts alive, and ends them in the order that loses nothing.

Start: broker, topics, then everybody else. End: collector first (its last batch says that it is
the last), then wait until workers and sink have read everything, then workers, sink, kube, broker.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deploy.local.part import Part

__all__ = ["STOP_ORDER", "Supervisor"]

STOP_ORDER: Final[tuple[str, ...]] = ("collector", "streams", "sink", "kube", "broker")
"""Sources before what they feed; whoever is not named ends before the broker."""

SURVIVOR: Final = "collector"
"""Outlives the broker: what it has not delivered yet it keeps, and delivers to the next one."""

log = logging.getLogger(__name__)


class Supervisor:
    """The parts of one machine.

    Args:
        parts: In the order in which they start.
        reset: Called when the broker came back empty, before the other parts start anew; only
            for a broker whose records die with it.
    """

    def __init__(self, parts: Sequence[Part], reset: Callable[[], None] | None = None) -> None:
        self.parts = {part.spec.name: part for part in parts}
        self._reset = reset

    def start(self) -> None:
        """Start every part that does not run yet."""
        for part in self.parts.values():
            if part.state == "waiting":
                part.start()

    def check(self) -> list[str]:
        """Look after every part once.

        Returns:
            Names of the parts that were found dead now; they start again after their pause.

        Raises:
            PartFailed: If a part cannot be kept alive.
        """
        broker = self.parts.get("broker")
        was_down = broker is not None and broker.state == "restarting"
        dead = [name for name, part in self.parts.items() if part.check()]
        for name in dead:
            log.warning(
                "%s died, starting it again (log: %s)", name, self.parts[name].spec.log_file
            )
        if self._reset is not None and broker is not None:
            if "broker" in dead:
                # Their positions and groups died with it. They must be gone before it is back:
                # a member that joins and is killed then keeps the next one waiting.
                for part in self._dependents():
                    part.suspend()
            elif was_down and broker.state == "running":
                self._reset()
                for part in self._dependents():
                    part.resume()
        return dead

    def _dependents(self) -> list[Part]:
        alive = ("running", "restarting", "waiting")
        return [
            part
            for name, part in self.parts.items()
            if name not in ("broker", SURVIVOR) and part.state in alive
        ]

    @property
    def restarts(self) -> int:
        """How often any part was started again."""
        return sum(part.restarts for part in self.parts.values())

    def stop(self, drain: Callable[[], bool] | None = None) -> list[str]:
        """End all parts in order.

        Args:
            drain: Called after the collector has ended; returns whether everything that it sent
                is stored.

        Returns:
            What did not go well, one short sentence each; empty if all did.
        """
        order = [name for name in STOP_ORDER if name in self.parts and name != "broker"]
        order += [name for name in self.parts if name not in STOP_ORDER]
        order += [name for name in ("broker",) if name in self.parts]
        problems: list[str] = []
        for name in order:
            part = self.parts[name]
            part.terminate()
            if not part.join():
                problems.append(f"{name} did not end in order (log: {part.spec.log_file})")
            if name == "collector" and drain is not None and not drain():
                problems.append("not everything was stored in time")
        return problems

    def kill(self) -> None:
        """End everything at once."""
        for part in reversed(self.parts.values()):
            part.kill()
