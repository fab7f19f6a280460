"""Which of several planners of a fleet decides, as each of them finds out by itself."""

from __future__ import annotations


class Leadership:
    """Steps back before another planner and comes forward when that one is gone.

    Of two planners the one with the higher epoch leads, because devices follow it already; of
    equal ones the one that planned first.

    Args:
        identity: name of this planner, different for every process.
    """

    def __init__(self, identity: str) -> None:
        self._own = (0, 0, identity)
        self._leader = ''
        self._rival = ''

    @property
    def leads(self) -> bool:
        """Whether this planner decides."""
        return not self._leader

    @property
    def problem(self) -> str:
        """What is wrong, empty if this planner is alone."""
        if self._leader:
            return (
                f'{self._leader} leads this fleet: this planner only listens; stop one of the two'
            )
        if self._rival:
            return f'{self._rival} plans for this fleet, too, and is ignored: stop one of the two'
        return ''

    def published(self, epoch: int, stamp_ns: int) -> None:
        """This planner has published a plan."""
        self._own = (epoch, -stamp_ns, self._own[2])

    def heard(self, planner: str, epoch: int, stamp_ns: int) -> bool:
        """Another planner has published a plan; whether that one leads."""
        if self._leader or (epoch, -stamp_ns, planner) > self._own:
            self._leader, self._rival = planner, ''
            return True
        self._rival = planner
        return False

    def others_alive(self, count: int) -> bool:
        """Other planners came or went; whether this one has to take over now."""
        if count:
            return False
        took_over = bool(self._leader)
        self._leader = self._rival = ''
        return took_over
