"""How good and how fast the planner's solvers are.

1. Quality: every solver against brute force on small random fleets. Brute force lists all
   compositions of the units times all permutations of devices times both picture codings, and
   uses nothing of the solvers but the cost model.
2. Time: all solvers on fleets of 10 and 200 devices and a model of 48 units (ViT-Base, four
   places to cut per block).
3. The same with an accuracy table: levels and cut settings chosen together with the stages, against
   brute force on fleets of 2 or 3, and the time on 10 different devices with 4 levels and 12
   settings per cut, for ViT-Base in 12 and 48 units.

Prints tables and one JSON object on the last line::

    python benchmarks/planner.py [--fleets 200] [--joint-fleets 40] [--timed-fleets 7] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations, product

from lapdtr_ros.planning.accuracy import AccuracyTable, AccuracyTableError, CutEffect, LevelEffect
from lapdtr_ros.planning.cost import (
    InfeasiblePlanError,
    PlanCost,
    evaluate,
    reference,
    score,
    violations,
)
from lapdtr_ros.planning.fleet import Device, Fleet, Link, Requirements, Weights
from lapdtr_ros.planning.plan import JPEG, LOSSLESS, RAW, CutSetting, Plan, Stage
from lapdtr_ros.planning.profile import CONV, MATMUL, ModelProfile, UnitProfile
from lapdtr_ros.planning.solvers import Solution, solve

PICTURE = (224, 224, 3)
JPEG_BYTES = 25_000
BATTERY_WEIGHT = 0.3

# (bytes/s, latency s, tx J/byte, rx J/byte) like Wi-Fi 5, Wi-Fi 6, 5G and Ethernet.
RADIOS = (
    (9.6e6, 2e-3, 1.2e-7, 6.4e-8),
    (50e6, 2e-3, 1.2e-7, 6.4e-8),
    (6.2e6, 12e-3, 2.3e-7, 0.0),
    (117e6, 2e-4, 8e-9, 8e-9),
)


def vit_base() -> ModelProfile:
    """ViT-Base in 48 units: attention, projection, and both layers of the FFN of each block."""
    tokens, width = 197, 768
    plane = tokens * width
    parts = (
        ('attention', 6 * plane * width + 4 * tokens * plane, 3 * width * width, 2 * plane),
        ('projection', 2 * plane * width, width * width, plane),
        ('expand', 8 * plane * width, 4 * width * width, 5 * plane),
        ('contract', 8 * plane * width, 4 * width * width, plane),
    )
    return ModelProfile(
        'vit_base',
        PICTURE,
        tuple(
            UnitProfile(f'blocks.{block}.{name}', flops, 4 * weights, (tokens, width), 4 * sent)
            for block in range(12)
            for name, flops, weights, sent in parts
        ),
    )


def random_profile(rng: random.Random, units: int) -> ModelProfile:
    """A small model of uneven units."""
    return ModelProfile(
        'random',
        PICTURE,
        tuple(
            UnitProfile(
                f'unit{i}',
                flops=rng.uniform(1e8, 3e9),
                parameter_bytes=int(rng.uniform(1e5, 2e7)),
                output_shape=(1,),
                output_bytes=int(10 ** rng.uniform(3.5, 6.5)),
                kind=rng.choice((MATMUL, MATMUL, CONV)),
            )
            for i in range(units)
        ),
    )


def random_fleet(
    rng: random.Random, devices: int, kinds: int, memory: tuple[float, ...], missing: float
) -> Fleet:
    """A fleet of ``kinds`` different devices; equal devices also have equal links."""
    models = [
        {
            'flops_per_s': 10 ** rng.uniform(10, 12),
            'memory_bytes': rng.choice(memory),
            'idle_w': 3.0,
            'active_w': 3.0 + rng.uniform(2.0, 20.0),
            'overhead_s': rng.uniform(1e-4, 2e-2),
            'conv_factor': rng.uniform(0.15, 0.4),
            'codec_bytes_per_s': 10 ** rng.uniform(7, 8.5),
            'battery_j': rng.choice((math.inf, 1e5)),
            'soc': rng.uniform(0.1, 1.0),
        }
        for _ in range(kinds)
    ]
    kind_of = {f'device_{i}': i % kinds for i in range(devices)}
    radio = {
        (a, b): (rng.choice(RADIOS), rng.uniform(0.5, 1.5), rng.random() >= missing)
        for a in range(kinds)
        for b in range(kinds)
    }
    links = {}
    for a, b in permutations(kind_of, 2):
        (rate, delay, tx, rx), scale, present = radio[kind_of[a], kind_of[b]]
        if present:
            links[a, b] = Link(a, b, rate * scale, delay, tx, rx)
    fleet = {name: Device(name, f'class_{kind}', **models[kind]) for name, kind in kind_of.items()}
    return Fleet(fleet, links)


def all_plans(profile: ModelProfile, fleet: Fleet, source: str, sink: str) -> Iterator[Plan]:
    """Every plan there is, with every level and cut setting of the accuracy table."""
    units, table = len(profile), profile.accuracy
    levels = (0, *table.level_effects) if table else (0,)
    settings: dict[int, list[CutSetting]] = {cut: [LOSSLESS] for cut in range(1, units)}
    for effect in table.cuts if table else ():
        settings[effect.cut].append(effect.setting)
    for count in range(1, min(units, len(fleet.devices)) + 1):
        for cuts in combinations(range(1, units), count - 1):
            edges = (0, *cuts, units)
            choices = product(
                permutations(fleet.devices, count),
                product(levels, repeat=count),
                product(*(settings[cut] for cut in cuts)),
            )
            for names, widths, packed in choices:
                parts = map(Stage, names, edges, edges[1:], widths, (*packed, LOSSLESS))
                stages = tuple(parts)
                for picture in (RAW,) if names[0] == source else (RAW, JPEG):
                    yield Plan('stream', profile.model, source, sink, stages, picture)


def legal_plans(
    profile: ModelProfile, fleet: Fleet, requirements: Requirements, source: str, sink: str
) -> list[tuple[Plan, PlanCost]]:
    """All plans that meet the constraints, with their costs."""
    plans = []
    for plan in all_plans(profile, fleet, source, sink):
        try:
            cost = evaluate(plan, profile, fleet, requirements)
        except (InfeasiblePlanError, AccuracyTableError):
            continue  # no link, or kept tokens passed on with bits nobody measured
        if not violations(plan, cost, fleet, requirements):
            plans.append((plan, cost))
    return plans


def objectives(base: Requirements, fastest: float, thriftiest: float) -> dict[str, Requirements]:
    """The objectives by name; the limit lies between the fastest plan and the thriftiest."""
    limit = fastest + 0.3 * max(thriftiest - fastest, 0.0)
    return {
        'energy': replace(base, weights=Weights(1, 0, 0)),
        'latency': replace(base, weights=Weights(0, 1, 0)),
        'period': replace(base, weights=Weights(0, 0, 1)),
        'weighted': replace(base, weights=Weights(1, 1, 1)),
        'energy, latency limit': replace(base, weights=Weights(1, 0, 0), max_latency_s=limit),
    }


def try_solve(
    profile: ModelProfile,
    fleet: Fleet,
    requirements: Requirements,
    source: str,
    sink: str,
    solver: str,
) -> Solution | None:
    """The solver's solution, None when it finds none."""
    try:
        return solve(
            profile,
            fleet,
            requirements,
            stream='stream',
            source=source,
            sink=sink,
            solver=solver,
        )
    except InfeasiblePlanError:
        return None


def quality(fleets: int, seed: int) -> dict[str, object]:
    """Worst score / optimum per solver on ``fleets`` feasible random fleets."""
    ratios: dict[str, list[float]] = {
        solver: [] for solver in ('exact', 'beam', 'corrected', 'literal')
    }
    on_energy = dict.fromkeys(ratios, 1.0)
    missed = dict.fromkeys(ratios, 0)
    rng = random.Random(seed)
    done = 0
    while done < fleets:
        profile = random_profile(rng, rng.randint(3, 8))
        count = rng.randint(2, 4)
        fleet = random_fleet(
            rng,
            count,
            rng.randint(1, count),
            (math.inf, 2e7, 4e7, 8e7),
            rng.choice((0.0, 0.0, 0.2)),
        )
        source, sink = rng.choice(list(fleet.devices)), rng.choice(list(fleet.devices))
        base = Requirements(
            pictures_stay=rng.random() < 0.2,
            battery_weight=BATTERY_WEIGHT,
            jpeg_bytes=rng.choice((None, JPEG_BYTES)),
        )
        legal = legal_plans(profile, fleet, base, source, sink)
        if not legal:
            continue
        done += 1
        fastest = min(cost.latency_s for _, cost in legal)
        thriftiest = min((cost.priced_energy, cost.latency_s) for _, cost in legal)[1]
        for name, requirements in objectives(base, fastest, thriftiest).items():
            yardstick = reference(profile, fleet, requirements, source)
            optimum = min(
                score(cost, requirements, yardstick)
                for plan, cost in legal
                if not violations(plan, cost, fleet, requirements)
            )
            for solver, found in ratios.items():
                solution = try_solve(profile, fleet, requirements, source, sink, solver)
                if solution is None:
                    missed[solver] += 1
                else:
                    found.append(solution.score / optimum)
                    if name == 'energy':
                        on_energy[solver] = max(on_energy[solver], found[-1])
    print(f'quality on {fleets} fleets, 5 objectives each')
    print(
        f'{"solver":<12}{"solved":>8}{"no plan":>9}{"mean ratio":>12}{"worst ratio":>13}'
        f'{"on energy":>11}'
    )
    for solver, found in ratios.items():
        print(
            f'{solver:<12}{len(found):>8}{missed[solver]:>9}'
            f'{statistics.fmean(found):>12.4f}{max(found):>13.4f}'
            f'{on_energy[solver]:>11.4f}'
        )
    return {
        'fleets': fleets,
        'worst_ratio': round(max(ratios['exact']), 9),
        'exact_missed': missed['exact'],
        'beam_worst_ratio': max(ratios['beam']),
        'beam_missed': missed['beam'],
        'literal_worst_ratio': max(ratios['literal']),
        'literal_energy_worst_ratio': on_energy['literal'],
        'literal_missed': missed['literal'],
        'corrected_greedy_worst_ratio': max(ratios['corrected']),
        'corrected_greedy_energy_worst_ratio': on_energy['corrected'],
        'corrected_greedy_missed': missed['corrected'],
    }


def with_table(
    rng: random.Random, profile: ModelProfile, levels: int, packings: list[tuple[int, int]]
) -> ModelProfile:
    """The profile with token-global units and a made-up accuracy table.

    Args:
        rng: source of errors.
        profile: the model.
        levels: number of levels besides full width.
        packings: (kept percent of the tokens, bits) to draw from at every cut.
    """
    patches, units = 196, len(profile)
    global_units = tuple(
        replace(
            unit,
            tokens=patches + 1,
            token_global=0 < i < units - 1,
            attention_flops=0.1 * unit.flops,
        )
        for i, unit in enumerate(profile.units)
    )
    narrow = [
        LevelEffect(
            level=number,
            flops=(1 - 0.08 * number,) * units,
            seconds=(1 - 0.08 * number,) * units,
            parameter_bytes=(1 - 0.08 * number,) * units,
            error=tuple(rng.uniform(0.5, 2.0) * 0.05 * number**1.5 / units for _ in range(units)),
        )
        for number in range(1, levels + 1)
    ]
    cuts = []
    for cut in range(1, units):
        for share, bits in packings:
            keep = 0 if share == 100 else patches * share // 100
            tokens = (1 - share / 100) ** 2 * 0.2 * (1.8 - cut / units)
            size = profile.units[cut - 1].output_bytes * share / 100 * bits / 32
            cuts.append(
                CutEffect(
                    cut=cut,
                    keep=keep,
                    form='cluster' if keep else '',
                    bits=bits,
                    bytes=max(1, round(size)),
                    error=(tokens + 0.12 / 2**bits) * rng.uniform(0.8, 1.2),
                    pack_s=0.002 if keep else 0.001,
                    unpack_s=0.001,
                )
            )
    table = AccuracyTable(
        model=profile.model,
        weights='none',
        units=units,
        metric='made up',
        dataset='made up',
        frames=1,
        command='made up',
        accuracy=0.5,
        flops_per_s=3e10,
        levels=tuple(narrow),
        cuts=tuple(cuts),
        joint={'alpha': 0.1, 'gamma': 1.05},
        curve={
            'error': (0, 0.005, 0.02, 0.05, 0.1, 0.5),
            'accuracy': (0.5, 0.499, 0.49, 0.47, 0.44, 0.2),
        },
        margin=0.005,
    )
    return replace(profile, units=global_units, prefix_tokens=1, accuracy=table)


def joint_quality(fleets: int, seed: int) -> dict[str, object]:
    """Worst score / optimum of joint planning on ``fleets`` feasible small fleets."""
    packings = [(share, bits) for share in (100, 50, 25) for bits in (8, 4, 2)]
    worst = {'exact': 1.0, 'beam': 1.0}
    rng = random.Random(seed)
    done = 0
    while done < fleets:
        profile = random_profile(rng, rng.randint(3, 4))
        profile = with_table(rng, profile, rng.randint(0, 1), rng.sample(packings, 2))
        fleet = random_fleet(rng, rng.randint(2, 3), 3, (math.inf, 4e7), 0.1)
        source, sink = rng.choice(list(fleet.devices)), rng.choice(list(fleet.devices))
        base = Requirements(
            pictures_stay=rng.random() < 0.5,
            battery_weight=BATTERY_WEIGHT,
            jpeg_bytes=rng.choice((None, JPEG_BYTES)),
            jpeg_error=0.01,
            min_accuracy=rng.choice((0.3, 0.45, 0.48)),
        )
        legal = legal_plans(profile, fleet, base, source, sink)
        if not legal:
            continue
        done += 1
        fastest = min(cost.latency_s for _, cost in legal)
        thriftiest = min((cost.priced_energy, cost.latency_s) for _, cost in legal)[1]
        cases = objectives(base, fastest, thriftiest)
        cases['energy and accuracy'] = replace(base, weights=Weights(1, 0, 0, 5))
        for requirements in cases.values():
            yardstick = reference(profile, fleet, requirements, source)
            optimum = min(
                score(cost, requirements, yardstick)
                for plan, cost in legal
                if not violations(plan, cost, fleet, requirements)
            )
            for solver in (*worst,):
                solution = try_solve(profile, fleet, requirements, source, sink, solver)
                if solution is not None:
                    worst[solver] = max(worst[solver], solution.score / optimum)
                elif solver == 'exact':
                    worst[solver] = math.inf
    print(f'\njoint planning on {fleets} fleets, 6 objectives each, worst ratio: {worst}')
    return {
        'joint_fleets': fleets,
        'joint_worst_ratio': round(worst['exact'], 9),
        'joint_beam_worst_ratio': worst['beam'],
    }


def timed_joint(units: int, fleets: int, seed: int) -> dict[str, list[float]]:
    """Seconds of `solve` on 10 different devices with 4 levels and 12 settings per cut."""
    whole = vit_base()
    merged = len(whole) // units
    blocks = [whole.units[i : i + merged] for i in range(0, len(whole), merged)]
    profile = replace(
        whole,
        units=tuple(
            replace(
                block[-1],
                flops=sum(unit.flops for unit in block),
                parameter_bytes=sum(unit.parameter_bytes for unit in block),
            )
            for block in blocks
        ),
    )
    packings = [(share, bits) for share in (100, 75, 50, 25) for bits in (8, 4, 2)]
    seconds: dict[str, list[float]] = {}
    for number in range(fleets):
        rng = random.Random(seed + number)
        joint = with_table(rng, profile, 3, packings)
        fleet = random_fleet(rng, 10, 10, (1e8, 2e8, 4e8, 1e9), 0.0)
        source = next(iter(fleet.devices))
        base = Requirements(
            battery_weight=BATTERY_WEIGHT,
            jpeg_bytes=JPEG_BYTES,
            jpeg_error=0.01,
            min_accuracy=0.47,
        )
        cases = {
            'energy': Weights(1, 0, 0),
            'latency': Weights(0, 1, 0),
            'period': Weights(0, 0, 1),
            'weighted': Weights(1, 1, 1),
            'energy and accuracy': Weights(1, 0, 0, 2),
        }
        for name, weights in cases.items():
            begin = time.perf_counter()
            try_solve(joint, fleet, replace(base, weights=weights), source, source, 'exact')
            seconds.setdefault(name, []).append(time.perf_counter() - begin)
    print(f'\njoint exact, 10 different devices, {units} units: seconds of solve()')
    print(f'{"objective":<24}{"fleets":>8}{"median":>10}{"worst":>10}')
    for name, values in seconds.items():
        print(f'{name:<24}{len(values):>8}{statistics.median(values):>10.4f}{max(values):>10.4f}')
    return seconds


def timed(devices: int, kinds: int, fleets: int, seed: int, solver: str) -> dict[str, list[float]]:
    """Seconds of whole `solve` calls per objective on random fleets with the 48-unit model."""
    profile = vit_base()
    seconds: dict[str, list[float]] = {}
    for number in range(fleets):
        rng = random.Random(seed + number)
        memory = (1e8, 2e8, 4e8, 1e9) if number % 2 else (4e8, 1e9)
        fleet = random_fleet(rng, devices, kinds, memory, 0.0)
        source = sink = next(iter(fleet.devices))
        base = Requirements(battery_weight=BATTERY_WEIGHT, jpeg_bytes=JPEG_BYTES)
        ends = [
            try_solve(profile, fleet, replace(base, weights=w), source, sink, solver)
            for w in (Weights(0, 1, 0), Weights(1, 0, 0))
        ]
        if ends[0] is None or ends[1] is None:
            continue
        limits = ends[0].cost.latency_s, ends[1].cost.latency_s
        for name, requirements in objectives(base, *limits).items():
            begin = time.perf_counter()
            try_solve(profile, fleet, requirements, source, sink, solver)
            seconds.setdefault(name, []).append(time.perf_counter() - begin)
    print(f'\n{solver}, {devices} devices of {kinds} kinds, 48 units: seconds of solve()')
    print(f'{"objective":<24}{"fleets":>8}{"median":>10}{"worst":>10}')
    for name, values in seconds.items():
        print(f'{name:<24}{len(values):>8}{statistics.median(values):>10.4f}{max(values):>10.4f}')
    return seconds


def worst_median(seconds: dict[str, list[float]]) -> float:
    """The largest of the objectives' medians."""
    return round(max(statistics.median(values) for values in seconds.values()), 4)


def beam_on_large(fleets: int, seed: int) -> float:
    """Worst beam score / exact score with 10 different devices and 48 units."""
    profile = vit_base()
    worst = 1.0
    for number in range(fleets):
        fleet = random_fleet(random.Random(seed + number), 10, 10, (2e8, 4e8, 1e9), 0.0)
        source = next(iter(fleet.devices))
        for weights in (Weights(1, 0, 0), Weights(0, 1, 0), Weights(0, 0, 1), Weights(1, 1, 1)):
            requirements = Requirements(weights, battery_weight=BATTERY_WEIGHT)
            scores = [
                try_solve(profile, fleet, requirements, source, source, solver)
                for solver in ('beam', 'exact')
            ]
            if scores[0] is not None and scores[1] is not None:
                worst = max(worst, scores[0].score / scores[1].score)
    print(f'\nbeam / exact with 10 different devices, worst of {fleets} fleets: {worst:.4f}')
    return worst


def main() -> None:
    """Run all parts and print the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--fleets', type=int, default=200, help='fleets against brute force')
    parser.add_argument('--joint-fleets', type=int, default=40, help='of joint planning')
    parser.add_argument('--timed-fleets', type=int, default=7, help='fleets of each timing')
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    count, seed = options.timed_fleets, options.seed
    result = quality(options.fleets, seed)
    different = timed(10, 10, count, seed, 'exact')
    result['objectives'] = list(different)
    result['seconds_10_devices_48_units'] = worst_median(different)
    result['seconds_10_devices_3_kinds'] = worst_median(timed(10, 3, count, seed, 'exact'))
    result['seconds_beam_200_devices'] = worst_median(timed(200, 200, 3, seed, 'beam'))
    large = beam_on_large(count, seed)
    result['beam_worst_ratio'] = max(float(str(result['beam_worst_ratio'])), large)
    result |= joint_quality(options.joint_fleets, seed)
    for units in (12, 48):
        joint = timed_joint(units, min(count, 3), seed)
        alone = joint.pop('period')
        result[f'seconds_joint_{units}_units'] = worst_median(joint)
        result[f'seconds_joint_{units}_units_period_alone'] = round(statistics.median(alone), 4)
    for key, value in result.items():
        if key.endswith('worst_ratio') and isinstance(value, float):
            result[key] = round(value, 6)
    print(json.dumps(result))


if __name__ == '__main__':
    main()
