"""A fleet and a profile as arrays: what the label search works on.

Devices that no cost can tell apart (same times, power, memory, price and links) form one *kind*.
Ten devices of three kinds then have a few hundred sets of used devices instead of a thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .choices import Choices, list_choices
from .cost import battery_price, codec_seconds, marginal_watts, packing_seconds
from .fleet import Fleet, Requirements
from .profile import ModelProfile

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tables:
    """Costs of K kinds of devices and L units at V levels on T sets of tokens (see `Choices`).

    Attributes:
        members: names of the devices of each kind, in the order of the fleet.
        source: kind of the source; it has one member.
        sink: kind of the sink; it has one member.
        counts: (K,) devices of each kind.
        choices: levels, cut settings and what they change.
        elapsed: (K, V, T, L + 1) seconds of the units before each cut.
        overhead: (K,) seconds per stage.
        codec: (K,) seconds to code or decode the picture.
        watts: (K,) power that computing adds.
        price: (K,) battery price.
        memory: (K,) bytes for weights.
        packing: (K,) seconds for packing that takes a second on the accuracy table's machine.
        weight_bytes: (V, L + 1) bytes of the weights before each cut.
        cut_bytes: (L + 1,) bytes that cross each cut as they are; the raw picture at cut 0.
        delay: (K, K) seconds of delay from kind to kind, infinite without a link.
        byte_seconds: (K, K) seconds per byte, 0 without a link.
        byte_joules: (K, K) joules per byte at both ends.
        byte_priced: (K, K) the same with the battery prices of both ends.
    """

    members: tuple[tuple[str, ...], ...]
    source: int
    sink: int
    counts: NDArray[np.int16]
    choices: Choices
    elapsed: Floats
    overhead: Floats
    codec: Floats
    watts: Floats
    price: Floats
    memory: Floats
    packing: Floats
    weight_bytes: Floats
    cut_bytes: Floats
    delay: Floats
    byte_seconds: Floats
    byte_joules: Floats
    byte_priced: Floats

    @property
    def kinds(self) -> int:
        """Number of kinds of devices, K."""
        return len(self.members)

    @property
    def units(self) -> int:
        """Number of units, L."""
        return len(self.cut_bytes) - 1

    @property
    def token_sets(self) -> int:
        """Number of sets of tokens, T."""
        return len(self.choices.ends)


def build_tables(
    profile: ModelProfile, fleet: Fleet, requirements: Requirements, source: str, sink: str
) -> Tables:
    """Arrays for a search; inputs must have passed `validation.validate`."""
    choices = list_choices(profile, requirements)
    names = list(fleet.devices)
    devices = [fleet.devices[name] for name in names]
    place = {name: i for i, name in enumerate(names)}
    price = np.array([battery_price(d, requirements.battery_weight) for d in devices])
    times = np.array([d.unit_times(profile) for d in devices])
    columns = np.array(
        [
            (
                d.overhead_s,
                codec_seconds(d, profile),
                marginal_watts(d),
                d.memory_bytes,
                packing_seconds(d, profile, 1.0) if choices.packs else 0.0,
            )
            for d in devices
        ]
    )
    links = _link_matrices(fleet, place)
    own = np.concatenate([columns, price[:, None], times], axis=1)
    groups = _kinds(own, links, (place[source], place[sink]))
    first = [group[0] for group in groups]
    # A hop inside a kind goes from one member to another.
    other = [group[min(1, len(group) - 1)] for group in groups]
    between = links[:, first][:, :, first]
    inside = links[:, first, other]
    diagonal = np.arange(len(groups))
    between[:, diagonal, diagonal] = inside
    delay, byte_seconds, tx, rx = between
    kind_price = price[first]
    unit_seconds = times[first, None, None, :] * choices.time_factors
    kind_of = {i: k for k, group in enumerate(groups) for i in group}
    return Tables(
        members=tuple(tuple(names[i] for i in group) for group in groups),
        source=kind_of[place[source]],
        sink=kind_of[place[sink]],
        counts=np.array([len(group) for group in groups], dtype=np.int16),
        choices=choices,
        elapsed=_running(unit_seconds),
        overhead=columns[first, 0],
        codec=columns[first, 1],
        watts=columns[first, 2],
        memory=columns[first, 3],
        packing=columns[first, 4],
        price=kind_price,
        weight_bytes=_running(
            np.array([unit.parameter_bytes for unit in profile.units]) * choices.weight_factors
        ),
        cut_bytes=np.array([profile.cut_bytes(cut) for cut in range(len(profile) + 1)], float),
        delay=delay,
        byte_seconds=byte_seconds,
        byte_joules=tx + rx,
        byte_priced=tx * kind_price[:, None] + rx * kind_price[None, :],
    )


def _running(values: Floats) -> Floats:
    """Running sums over the last axis, from 0."""
    return np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)


def _link_matrices(fleet: Fleet, place: dict[str, int]) -> Floats:
    """(4, N, N): delay (infinite without a link), s/byte, tx J/byte, rx J/byte."""
    matrices = np.zeros((4, len(place), len(place)))
    matrices[0] = np.inf
    if fleet.links:
        links = list(fleet.links.values())
        rows = [place[link.source] for link in links]
        cols = [place[link.target] for link in links]
        values = [
            (link.latency_s, 1.0 / link.bytes_per_s, link.tx_j_per_byte, link.rx_j_per_byte)
            for link in links
        ]
        matrices[:, rows, cols] = np.array(values).T
    return matrices


def _kinds(own: Floats, links: Floats, alone: Sequence[int]) -> list[list[int]]:
    """Group devices that may be exchanged; the indices in ``alone`` stay by themselves."""
    incident = np.concatenate([links, links.transpose(0, 2, 1)])
    looks = np.sort(incident, axis=2).transpose(1, 0, 2)
    groups: list[list[int]] = []
    candidates: dict[bytes, list[int]] = {}
    for i in range(len(own)):
        # Exchangeable devices have equal rows and equal *sorted* link rows.
        look = own[i].tobytes() + looks[i].tobytes()
        if i not in alone:
            for g in candidates.get(look, ()):
                if _exchangeable(links, groups[g][0], i):
                    groups[g].append(i)
                    break
            else:
                candidates.setdefault(look, []).append(len(groups))
                groups.append([i])
        else:
            groups.append([i])
    return groups


def _exchangeable(links: Floats, i: int, j: int) -> bool:
    """Whether swapping devices ``i`` and ``j`` leaves every link as it is."""
    swapped = np.arange(links.shape[1])
    swapped[[i, j]] = j, i
    return bool(
        np.array_equal(links[:, i, :], links[:, j, swapped])
        and np.array_equal(links[:, :, i], links[:, swapped, j])
    )
