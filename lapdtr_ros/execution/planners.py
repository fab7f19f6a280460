"""Whose plans count when more than one planner is there, free of ROS."""

from __future__ import annotations

from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.planning.plan import FleetPlan


class SecondPlannerError(LapdtrError):
    """A plan of another planner than the one that leads the fleet."""


class PlannerWatch:
    """Follows one planner until it may be gone.

    The first planner heard leads. Plans of another one are refused while as many planners are alive
    as ever since. When one of them has gone, nobody can tell which; then the leader is whose plan
    comes next, and at once the one whose plan was refused before.
    """

    def __init__(self) -> None:
        self.alive = 0
        self._leader = ''
        self._vacant = True
        self._rival: FleetPlan | None = None

    @property
    def problem(self) -> str:
        """What is wrong, empty if nothing is."""
        if self._rival is None:
            return ''
        return (
            f'two planners are alive: {self._leader} leads, {self._rival.planner} is refused; '
            f'stop one of the two'
        )

    def admit(self, plan: FleetPlan) -> None:
        """Let a plan of the leader pass.

        Raises:
            SecondPlannerError: another planner leads and is alive.
        """
        if plan.planner != self._leader and not self._vacant and self.alive > 1:
            self._rival = plan
            raise SecondPlannerError(
                f'plan {plan.epoch} of {plan.planner[:200]} refused: {self._leader} leads this '
                f'fleet and is alive; stop one of the two'
            )
        if plan.planner != self._leader or self._vacant:
            self._rival = None
        self._leader, self._vacant = plan.planner, False

    def set_alive(self, count: int, lost: int = 0) -> FleetPlan | None:
        """The number of live planners changed; returns a plan that counts now but did not.

        Args:
            count: planners that are alive now.
            lost: how many have died since the last call; one may have come in the same moment.
        """
        gone, self.alive = count < self.alive or lost > 0, count
        if not gone:
            return None
        self._vacant = True
        plan, self._rival = self._rival, None
        if plan is not None:
            self._leader, self._vacant = plan.planner, False
        return plan
