"""What a frame costs its source and its sink beside the stages.

A device that runs a stage is charged for its sending and receiving with that stage. The camera's
device and the one that needs the result may run none, and still use their radios.
"""

from __future__ import annotations

from dataclasses import dataclass

from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.planning.cost import codec_seconds, marginal_watts
from lapdtr_ros.planning.fleet import Fleet, Link
from lapdtr_ros.planning.profile import ModelProfile


@dataclass(frozen=True)
class Journey:
    """Where one frame went.

    Attributes:
        source: device whose camera took the picture.
        sink: device that needs the result.
        devices: devices that ran stages, in order.
        picture_bytes: payload that left the source.
        result_bytes: payload of the result.
    """

    source: str
    sink: str
    devices: tuple[str, ...]
    picture_bytes: int
    result_bytes: int


@dataclass(frozen=True)
class Spent:
    """Joules above idle for picture coding and for radio."""

    compute_j: float = 0.0
    radio_j: float = 0.0

    @property
    def total_j(self) -> float:
        """Both together."""
        return self.compute_j + self.radio_j


def ends_energy(journey: Journey, fleet: Fleet, profile: ModelProfile) -> dict[str, Spent]:
    """Modelled energy of source and sink, where they ran no stage; empty for a frame without trace.

    A picture that is smaller than its pixels was coded as JPEG, which the source paid for.

    Raises:
        UnknownNameError: the frame took a link that the fleet does not have.
    """
    if not journey.devices:
        return {}
    spent: dict[str, Spent] = {}
    first, last = journey.devices[0], journey.devices[-1]
    if journey.source not in journey.devices:
        coded = journey.picture_bytes < profile.picture_bytes
        device = fleet.devices[journey.source]
        codec_j = codec_seconds(device, profile) * marginal_watts(device) if coded else 0.0
        link = _link(fleet, journey.source, first)
        spent[journey.source] = Spent(codec_j, journey.picture_bytes * link.tx_j_per_byte)
    if journey.sink not in journey.devices:
        link = _link(fleet, last, journey.sink)
        so_far = spent.get(journey.sink, Spent())
        received_j = journey.result_bytes * link.rx_j_per_byte
        spent[journey.sink] = Spent(so_far.compute_j, so_far.radio_j + received_j)
    return spent


def _link(fleet: Fleet, source: str, target: str) -> Link:
    try:
        return fleet.links[source, target]
    except KeyError:
        names = (' > '.join(ends) for ends in fleet.links)
        raise UnknownNameError('link', f'{source} > {target}', names) from None
