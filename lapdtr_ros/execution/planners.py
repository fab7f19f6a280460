"""Whose plans count when more than one planner is there, free of ROS."""

from __future__ import annotations

from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.planning.plan import FleetPlan


class SecondPlannerError(LapdtrError):
    """A plan of another planner than the one that leads the fleet."""


class PlannerWatch:
    """Follows one planner until it is gone.

    The first planner heard leads. Plans of another one are refused while both are alive; when only
    one is left, its newest plan counts.
    """

    def __init__(self) -> None:
        self.alive = 0
        self._leader = ''
        self._rival: FleetPlan | None = None

    @property
    def problem(self) -> str:
        """What is wrong, empty if nothing is."""
        if self.alive < 2:
            return ''
        rival = f' and {self._rival.planner}' if self._rival is not None else ''
        return (
            f'{self.alive} planners are alive: {self._leader or "none with a plan yet"}{rival}; '
            f'stop all but one'
        )

    def admit(self, plan: FleetPlan) -> None:
        """Let a plan of the leader pass.

        Raises:
            SecondPlannerError: another planner leads and both are alive.
        """
        if self._leader and plan.planner != self._leader and self.alive > 1:
            self._rival = plan
            raise SecondPlannerError(
                f'plan {plan.epoch} of {plan.planner} refused: {self._leader} leads this fleet '
                f'and is alive; stop one of the two'
            )
        self._leader, self._rival = plan.planner, None

    def set_alive(self, count: int) -> FleetPlan | None:
        """The number of live planners changed; returns a plan that counts now but did not."""
        self.alive = count
        if count > 1 or self._rival is None:
            return None
        plan, self._rival = self._rival, None
        self._leader = plan.planner
        return plan
