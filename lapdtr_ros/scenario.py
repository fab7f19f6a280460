"""Scenario files: one YAML that describes a fleet, its streams and what is asked of them.

Every node reads the same file, so vehicles, planner and command agree on names and figures.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .errors import LapdtrError, UnknownNameError
from .planning.accuracy import AccuracyTable, AccuracyTableError, load_table
from .planning.classes import (
    config_directory,
    device_from_class,
    link_from_class,
    load_device_class,
    load_link_class,
    of_other_class,
)
from .planning.fleet import Device, Fleet, Link, Requirements, Weights
from .planning.profile import ModelProfile

_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)*')


class ScenarioError(LapdtrError):
    """A scenario file that cannot be used; the text names the file and the key."""


def _ros_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            'is not a ROS name: start every part with a letter, then letters, digits and _'
        )
    return value


Name = Annotated[str, AfterValidator(_ros_name)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True)


class ModelSection(_Section):
    """Which model runs, where its weights come from and what it loses by running for less.

    ``profile`` is the model's accuracy table: the name of one in ``config/models`` or the path of a
    YAML file, from the scenario's directory.
    """

    name: str
    weights: str
    profile: str | None = None


class DeviceSection(_Section):
    """One device; what is not given comes from the device class."""

    device_class: str = Field(alias='class')
    soc: Share = 1.0
    reserve_soc: Share = 0.0
    battery_wh: Positive | None = None
    memory_mb: Positive | None = None
    load: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class LinkSection(_Section):
    """A link in both directions between two devices."""

    between: tuple[Name, Name]
    link_class: str = Field(alias='class')
    bytes_per_s: Positive | None = None
    latency_s: NonNegative | None = None


class StreamSection(_Section):
    """One camera: pictures come from an OPV2V directory or from an image topic."""

    source: Name
    sink: Name | None = None
    dataset: str | None = None
    agent: int | None = None
    camera: Annotated[int, Field(ge=0, le=3)] = 0
    image_topic: str | None = None
    frames: Annotated[int, Field(ge=0)] = 0
    rate_hz: NonNegative = 0.0


class WeightsSection(_Section):
    """Weights of the objectives; only their ratio matters."""

    energy: NonNegative = 1.0
    latency: NonNegative = 0.0
    period: NonNegative = 0.0
    accuracy: NonNegative = 0.0


class RequirementsSection(_Section):
    """What every stream asks of its plan."""

    weights: WeightsSection = WeightsSection()
    max_latency_s: Positive = math.inf
    max_period_s: Positive = math.inf
    max_energy_j: Positive = math.inf
    pictures_stay: bool = False
    battery_weight: NonNegative = 0.0
    allow_jpeg: bool = False
    min_accuracy: Share | None = None


class ExecutionSection(_Section):
    """How stages run.

    With ``emulate`` computing and links take as long as on the devices' classes, and a second of
    this machine counts as ``time_scale`` seconds of the fleet (below 1: slow motion).
    """

    backend: Literal['torch', 'onnx'] = 'torch'
    threads: Annotated[int, Field(ge=1)] = 1
    max_in_flight: Annotated[int, Field(ge=1, le=64)] = 4
    frame_timeout_s: Positive = 30.0
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 90
    emulate: bool = False
    time_scale: Positive = 1.0

    @property
    def device_seconds(self) -> float:
        """Seconds of the fleet per second of this machine: `time_scale` when emulating, else 1."""
        return self.time_scale if self.emulate else 1.0


class FusionSection(_Section):
    """How the detections of all streams become one list; the model needs the detection head."""

    ego: Name
    deadline_s: NonNegative = 0.5
    method: Literal['nms', 'wbf'] = 'wbf'
    score_rule: Literal['max', 'mean', 'noisy_or'] = 'noisy_or'
    iou_threshold: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    score_threshold: Share = 0.05
    communication_range_m: Positive = 70.0
    position_noise_m: NonNegative = 0.0
    yaw_noise_deg: NonNegative = 0.0
    noise_seed: int = 0
    capacity: Annotated[int, Field(ge=1)] = 32


class ScenarioFile(_Section):
    """The YAML file as a whole."""

    name: str
    description: str = ''
    model: ModelSection
    devices: Annotated[dict[Name, DeviceSection], Field(min_length=1)]
    links: list[LinkSection] = []
    streams: Annotated[dict[Name, StreamSection], Field(min_length=1)]
    requirements: RequirementsSection = RequirementsSection()
    solver: str = 'exact'
    execution: ExecutionSection = ExecutionSection()
    fusion: FusionSection | None = None


@dataclass(frozen=True)
class Scenario:
    """A checked scenario.

    Attributes:
        path: the file it came from.
        file: its content.
        fleet: devices and links with the figures of their classes.
        requirements: limits and weights for every stream.
        table: accuracy table of the model, None when ``model.profile`` is not set.
    """

    path: Path
    file: ScenarioFile
    fleet: Fleet
    requirements: Requirements
    table: AccuracyTable | None = None

    def with_accuracy(self, profile: ModelProfile) -> ModelProfile:
        """The model's profile with the scenario's accuracy table, which planners need.

        Raises:
            AccuracyTableError: the table is of another model.
        """
        return dataclasses.replace(profile, accuracy=self.table)

    def with_device_class(self, name: str, class_name: str) -> Scenario:
        """The scenario with other hardware for one device.

        Raises:
            UnknownNameError: no such device or class.
        """
        if name not in self.fleet.devices:
            raise UnknownNameError('device', name, self.fleet.devices)
        device = of_other_class(self.fleet.devices[name], class_name)
        fleet = dataclasses.replace(self.fleet, devices={**self.fleet.devices, name: device})
        return dataclasses.replace(self, fleet=fleet)

    def stream(self, name: str) -> StreamSection:
        """The section of one stream."""
        try:
            return self.file.streams[name]
        except KeyError:
            raise UnknownNameError('stream', name, self.file.streams) from None

    def sink(self, stream: str) -> str:
        """Device that needs the stream's result: its source unless said otherwise."""
        section = self.stream(stream)
        return section.sink or section.source

    def dataset(self, stream: str) -> Path | None:
        """Directory of the stream's pictures; relative paths start at the scenario file."""
        section = self.stream(stream)
        return self.path.parent / section.dataset if section.dataset else None


def load_scenario(path: Path | str) -> Scenario:
    """Read and check a scenario file.

    Raises:
        ScenarioError: the file is missing, is not YAML, or has a wrong, missing or misspelt key.
        UnknownNameError: a device class, link class or device that nobody defined.
    """
    path = Path(path).expanduser().resolve()
    content = _read_yaml(path)
    try:
        file = ScenarioFile.model_validate(content)
    except ValidationError as error:
        raise ScenarioError(_explain(path, error)) from None
    _check_fusion(path, file)
    table = _table(path, file)
    requirements = _requirements(path, file, table)
    return Scenario(path, file, _fleet(path, file), requirements, table)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise ScenarioError(f'{path}: {error.strerror}; give the path of a scenario YAML') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScenarioError(f'{path}: not a YAML file: {error}') from None


def _fleet(path: Path, file: ScenarioFile) -> Fleet:
    devices = {name: _device(name, section) for name, section in file.devices.items()}
    links: dict[tuple[str, str], Link] = {}
    for position, section in enumerate(file.links):
        first, second = section.between
        for end in section.between:
            if end not in devices:
                error = UnknownNameError('device', end, devices)
                raise ScenarioError(f'{path}: links[{position}].between: {error}')
        if first == second:
            raise ScenarioError(f'{path}: links[{position}].between: {first!r} links to itself')
        for source, target in ((first, second), (second, first)):
            if (source, target) in links:
                raise ScenarioError(
                    f'{path}: links[{position}]: {first} and {second} are linked twice; keep one'
                )
            links[source, target] = _link(section, source, target)
    for name, stream in file.streams.items():
        for role, end in (('source', stream.source), ('sink', stream.sink or stream.source)):
            if end not in devices:
                error = UnknownNameError('device', end, devices)
                raise ScenarioError(f'{path}: streams.{name}.{role}: {error}')
        if stream.dataset and stream.image_topic:
            raise ScenarioError(
                f'{path}: streams.{name}: has both dataset and image_topic; keep one'
            )
    return Fleet(devices, links)


def _check_fusion(path: Path, file: ScenarioFile) -> None:
    """The ego of the fusion must be a vehicle that some stream comes from."""
    if file.fusion is None:
        return
    vehicles = {stream.source for stream in file.streams.values()}
    if file.fusion.ego not in vehicles:
        error = UnknownNameError('source of a stream', file.fusion.ego, vehicles)
        raise ScenarioError(f'{path}: fusion.ego: {error}')


def _device(name: str, section: DeviceSection) -> Device:
    device_class = load_device_class(section.device_class)
    overrides: dict[str, Any] = {
        'soc': section.soc,
        'reserve_soc': section.reserve_soc,
        'load': section.load,
    }
    if section.battery_wh is not None:
        overrides['battery_j'] = section.battery_wh * 3600.0
    if section.memory_mb is not None:
        overrides['memory_bytes'] = section.memory_mb * 1e6
    return device_from_class(device_class, name, **overrides)


def _link(section: LinkSection, source: str, target: str) -> Link:
    link_class = load_link_class(section.link_class)
    overrides = {
        key: value
        for key in ('bytes_per_s', 'latency_s')
        if (value := getattr(section, key)) is not None
    }
    return dataclasses.replace(link_from_class(link_class, source, target), **overrides)


def _table(path: Path, file: ScenarioFile) -> AccuracyTable | None:
    """The accuracy table that the scenario names."""
    name = file.model.profile
    if name is None:
        return None
    is_path = name.endswith(('.yaml', '.yml'))
    place = path.parent / name if is_path else config_directory() / 'models' / f'{name}.yaml'
    try:
        table = load_table(place)
    except AccuracyTableError as error:
        raise ScenarioError(f'{path}: model.profile: {error}') from None
    # Weights may lie elsewhere than where they were calibrated, under the same file name.
    found = table.model, Path(table.weights).name
    if found != (file.model.name, Path(file.model.weights).name):
        raise ScenarioError(
            f'{path}: model.profile: {place.name} is of {table.model} with {table.weights}, the '
            f'scenario runs {file.model.name} with {file.model.weights}: name a table of those'
        )
    return table


def _requirements(path: Path, file: ScenarioFile, table: AccuracyTable | None) -> Requirements:
    section = file.requirements
    weights = Weights(**section.weights.model_dump())
    if table is None:
        _refuse_without_table(path, section)
    jpeg = None
    if table is not None and section.allow_jpeg:
        try:
            jpeg = table.picture(file.execution.jpeg_quality)
        except AccuracyTableError as error:
            raise ScenarioError(f'{path}: execution.jpeg_quality: {error}') from None
    return Requirements(
        weights=weights,
        max_latency_s=section.max_latency_s,
        max_period_s=section.max_period_s,
        max_energy_j=section.max_energy_j,
        pictures_stay=section.pictures_stay,
        battery_weight=section.battery_weight,
        jpeg_bytes=jpeg.bytes if jpeg else None,
        jpeg_error=jpeg.error if jpeg else 0.0,
        min_accuracy=section.min_accuracy,
    )


def _refuse_without_table(path: Path, section: RequirementsSection) -> None:
    """Nothing that may cost accuracy is possible while nobody knows how much."""
    asked = {
        'allow_jpeg': section.allow_jpeg,
        'min_accuracy': section.min_accuracy is not None,
        'weights.accuracy': section.weights.accuracy > 0.0,
    }
    for key, is_set in asked.items():
        if is_set:
            raise ScenarioError(
                f'{path}: requirements.{key}: needs to know the accuracy; set model.profile to a '
                f"table of the model (made by 'lapdtr calibrate') or remove {key}"
            )


def _explain(path: Path, error: ValidationError) -> str:
    lines = [f'{path}: the scenario cannot be used:']
    for problem in error.errors():
        key = '.'.join(str(part) for part in problem['loc']) or 'file'
        lines.append(f'  {key}: {_problem_text(problem)}')
    return '\n'.join(lines)


def _problem_text(problem: Any) -> str:
    kind = problem['type']
    if kind == 'missing':
        return 'is missing'
    if kind == 'extra_forbidden':
        known = _known_keys(problem['loc'][:-1])
        close = difflib.get_close_matches(str(problem['loc'][-1]), known, n=1)
        return (
            f'unknown key; did you mean {close[0]!r}?'
            if close
            else (f'unknown key; known: {", ".join(known)}')
        )
    text = problem['msg'].removeprefix('Value error, ')
    return f'{text} (got {problem["input"]!r})'


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Keys that are legal at a place of the file, by walking the section classes."""
    section: type[BaseModel] = ScenarioFile
    for part in location:
        field = section.model_fields.get(str(part))
        nested = _section_of(field.annotation) if field else None
        if nested is not None:
            section = nested
    return sorted(info.alias or name for name, info in section.model_fields.items())


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, '__args__', ()):
        found = _section_of(inner)
        if found is not None:
            return found
    return None
