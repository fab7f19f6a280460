"""Pictures of generated scenes, rendered without a display or GPU (panda3d on EGL and llvmpipe)."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lapdtr_ros.datasets import meshes
from lapdtr_ros.datasets.meshes import Mesh
from lapdtr_ros.datasets.roads import Surfaces
from lapdtr_ros.datasets.scene import (
    CAMERA_MOUNTS,
    FIELD_OF_VIEW_DEG,
    GeneratorError,
    Scene,
    mounted,
)
from lapdtr_ros.datasets.scenery import Colour, Daylight
from lapdtr_ros.datasets.traffic import VehicleKind
from lapdtr_ros.perception.poses import camera_intrinsic, pose_to_matrix

_PIP_REMEDY = "pip install panda3d panda3d-gltf 'smarts==2.0.1' (the last one with --no-deps)"
_APT_REMEDY = 'apt-get install libegl1 libgles2 libgl1-mesa-dri'

_NEAR_M, _FAR_M = 0.1, 700.0
_GROUND_M = 720.0
_MEADOW_M = 48.0
_SKY_M = 300.0
_DETAIL_M = 22.0  # beyond it wheels are boxes
_TILE_M = 60.0  # static things are grouped in squares, so that cameras skip what is behind them
_COLUMNS = 2  # the four cameras of a vehicle share one picture of 2 x 2
_FLAT = 0.005  # height of shadows, relative; culling loses its precision with less
_INSTANCE_STEP = 5  # apart, so that rounding in the frame buffer cannot mix two numbers

_ASPHALT: Colour = (0.36, 0.36, 0.38)
_SIDEWALK: Colour = (0.66, 0.65, 0.62)
_KERB: Colour = (0.80, 0.79, 0.76)
_WHITE: Colour = (0.92, 0.92, 0.90)
_YELLOW: Colour = (0.93, 0.74, 0.24)
_MATERIALS: dict[str, Colour] = {
    'windows': (0.13, 0.17, 0.21),
    'lights': (1.0, 0.99, 0.90),
    'metal': (0.66, 0.67, 0.69),
    'tires': (0.08, 0.08, 0.08),
    'lights.red': (0.78, 0.06, 0.05),
    'lights.orange': (0.94, 0.45, 0.06),
}


class Renderer:
    """Renders the four cameras of connected vehicles.

    One renderer keeps its frame buffer and vehicle models from scene to scene. It belongs to the
    thread that made it.
    """

    def __init__(self, width: int, height: int, *, instances: bool = False) -> None:
        """Open the frame buffer.

        Args:
            width: of a picture, pixels.
            height: of a picture, pixels.
            instances: render the numbers of vehicles instead of a picture, see `masks`.

        Raises:
            GeneratorError: If panda3d, the vehicle models or EGL are missing, with what to install.
        """
        self._width, self._height, self._instances = width, height, instances
        core = _panda()
        self._core = core
        self._engine = core.GraphicsEngine()
        self._texture = core.Texture('picture')
        self._buffer = self._open_buffer(0 if instances else 4)
        self._buffer.add_render_texture(self._texture, core.GraphicsOutput.RTM_copy_ram)
        self._lens = core.PerspectiveLens()
        focal = camera_intrinsic(width, height, FIELD_OF_VIEW_DEG)[0, 0]
        self._lens.set_film_size(width, height)
        self._lens.set_focal_length(focal)
        self._lens.set_near_far(_NEAR_M, _FAR_M)
        self._cameras = [self._open_region(number) for number in range(len(CAMERA_MOUNTS))]
        self._scene: Scene | None = None

    def close(self) -> None:
        """Free the frame buffer."""
        self._engine.remove_all_windows()

    def load(self, scene: Scene) -> None:
        """Build a scene; nothing happens when one of the same configuration is loaded already."""
        if self._scene is not None and scene.config == self._scene.config:
            return
        core = self._core
        self._scene = scene
        self._root = core.NodePath('scene')
        self._objects = self._root.attach_new_node('objects')
        if not self._instances:
            self._root.set_antialias(core.AntialiasAttrib.M_multisample)
            self._light(scene.scenery.daylight)
            self._paint_ground(scene)
            self._add_sky(scene)
            self._add_static(scene)
            self._shadows = self._add_shadows(scene)
        self._vehicles = [self._add_vehicle(scene, i) for i in range(len(scene.ids))]
        for camera in self._cameras:
            camera.reparent_to(self._root)

    def pictures(self, frame: int, vehicle: int) -> list[np.ndarray]:
        """Render the cameras of one vehicle, whose own body is not in the way.

        Args:
            frame: number of the frame in the loaded scene.
            vehicle: place in `Scene.ids`.

        Returns:
            Four uint8 RGB pictures of shape (height, width, 3).
        """
        assert self._scene is not None, 'load a scene first'
        own = self._scene.vehicle_pose(frame, vehicle)
        for camera, mount in zip(self._cameras, CAMERA_MOUNTS, strict=True):
            camera.set_mat(self._matrix(mounted(own, mount)))
        self._place_vehicles(frame, vehicle)
        if not self._instances:
            self._sky.set_pos(own[1], own[0], 0.0)
        self._engine.render_frame()
        return self._read()

    def masks(self, frame: int, vehicle: int) -> list[np.ndarray]:
        """Render which vehicle is seen where; buildings and trees hide nothing.

        Returns:
            Four int arrays of shape (height, width): place in `Scene.ids`, -1 without a vehicle.
        """
        assert self._instances, 'masks need Renderer(..., instances=True)'
        pictures = [picture.astype(np.int64) for picture in self.pictures(frame, vehicle)]
        return [
            np.round((p[..., 0] * 256 + p[..., 1]) / _INSTANCE_STEP).astype(int) - 1
            for p in pictures
        ]

    # Frame buffer

    def _open_buffer(self, samples: int) -> Any:
        core = self._core
        pipe = core.GraphicsPipeSelection.get_global_ptr().make_module_pipe('p3headlessgl')
        buffer = None
        if pipe is not None:
            wanted = core.FrameBufferProperties()
            wanted.set_rgba_bits(8, 8, 8, 8)
            wanted.set_depth_bits(24)
            wanted.set_stencil_bits(8)
            wanted.set_multisamples(samples)
            rows = math.ceil(len(CAMERA_MOUNTS) / _COLUMNS)
            size = core.WindowProperties.size(_COLUMNS * self._width, rows * self._height)
            flags = core.GraphicsPipe.BF_refuse_window
            buffer = self._engine.make_output(pipe, 'cameras', 0, wanted, size, flags)
        if buffer is None:
            raise GeneratorError(
                'panda3d cannot open a headless frame buffer: EGL or its software renderer is '
                f'missing; {_APT_REMEDY}'
            )
        return buffer

    def _open_region(self, number: int) -> Any:
        column, row = number % _COLUMNS, number // _COLUMNS
        share = 1.0 / _COLUMNS
        region = self._buffer.make_display_region(
            column * share, (column + 1) * share, 1.0 - (row + 1) * share, 1.0 - row * share
        )
        node = self._core.Camera(f'camera{number}', self._lens)
        camera = self._core.NodePath(node)
        region.set_camera(camera)
        region.set_clear_color_active(True)
        region.set_clear_color((0, 0, 0, 1))
        region.set_clear_depth_active(True)
        region.set_clear_stencil_active(True)
        return camera

    def _read(self) -> list[np.ndarray]:
        data = self._texture.get_ram_image_as('RGB')
        whole = np.frombuffer(data, dtype=np.uint8)
        whole = whole.reshape(-1, _COLUMNS * self._width, 3)[::-1]
        rows = (whole[i : i + self._height] for i in range(0, len(whole), self._height))
        return [
            np.ascontiguousarray(row[:, j : j + self._width])
            for row in rows
            for j in range(0, _COLUMNS * self._width, self._width)
        ]

    def _matrix(self, pose: Any) -> Any:
        """Pose in CARLA's world as a panda3d matrix, which multiplies rows from the left."""
        matrix = meshes.SWAP @ pose_to_matrix(pose) @ meshes.SWAP
        return self._core.LMatrix4f(*matrix.T.ravel().tolist())

    # Scene

    def _light(self, daylight: Daylight) -> None:
        core = self._core
        toward = _sun_direction(daylight)
        for name, colour, direction in (
            ('sun', daylight.sun, -toward),
            # A weak light against the sun keeps shaded sides from being one flat patch.
            ('bounce', tuple(0.16 * c for c in daylight.sun), np.array([*toward[:2], -0.3])),
        ):
            light = core.DirectionalLight(name)
            light.set_color((*colour, 1))
            light.set_direction((direction[1], direction[0], direction[2]))
            self._root.set_light(self._root.attach_new_node(light))
        ambient = core.AmbientLight('ambient')
        ambient.set_color((*daylight.ambient, 1))
        self._root.set_light(self._root.attach_new_node(ambient))
        fog = core.Fog('haze')
        fog.set_color(*daylight.horizon)
        fog.set_exp_density(math.log(2.0) / daylight.haze_m)
        self._root.set_fog(fog)

    def _paint_ground(self, scene: Scene) -> None:
        """Paint in layers without depth: nothing lies below the ground, so nothing flickers."""
        # Haze is computed at corners, so the meadow comes in squares.
        side = np.arange(-_GROUND_M, _GROUND_M + 1.0, _MEADOW_M)
        grid = np.stack(np.meshgrid(side, side, indexing='ij'), axis=-1) + scene.layout.focus
        layers = [(_grid_quads(grid), scene.scenery.grass, 'grass', 9.0)]
        surfaces = scene.layout.surfaces()
        styles = ((_SIDEWALK, 'paving', 1.6), (_KERB, '', 1.0), (_ASPHALT, 'asphalt', 5.0))
        lines = ((_WHITE, '', 1.0), (_YELLOW, '', 1.0))
        for surface, style in zip(dataclasses.fields(Surfaces), (*styles, *lines), strict=True):
            layers.append((getattr(surfaces, surface.name), *style))
        for order, (quads, colour, texture, metres) in enumerate(layers):
            mesh = Mesh()
            level = np.concatenate([quads, np.zeros((len(quads), 4, 1))], axis=2)
            # Normals point up whichever way round a strip was built.
            mesh.add_polygons(level, colour, quads / metres, normal=(0.0, 0.0, 1.0))
            node = self._root.attach_new_node(mesh.to_geom(f'ground{order}'))
            if texture:
                node.set_texture(self._surface_texture(texture))
            self._paint_without_depth(node, order + 1)

    def _paint_without_depth(self, node: Any, order: int) -> None:
        node.set_two_sided(True)
        node.set_bin('background', order)
        node.set_depth_test(False)
        node.set_depth_write(False)

    def _surface_texture(self, name: str) -> Any:
        if name == 'paving':
            slabs = np.full((64, 64), 232, dtype=np.uint8)
            slabs[::32] = slabs[:, ::32] = 200
            return self._to_texture(slabs, name)
        contrast, roughness = {'grass': (0.07, 0.7), 'asphalt': (0.035, 0.45)}[name]
        return self._to_texture(meshes.noise_texture(256, contrast, roughness, 3), name)

    def _to_texture(self, picture: np.ndarray, name: str) -> Any:
        """Upload grey (H, W) or RGB (H, W, 3), rows from the bottom up."""
        core = self._core
        texture = core.Texture(name)
        height, width = picture.shape[:2]
        if picture.ndim == 2:
            texture.setup_2d_texture(
                width, height, core.Texture.T_unsigned_byte, core.Texture.F_luminance
            )
            texture.set_ram_image(picture.tobytes())
        else:
            texture.setup_2d_texture(
                width, height, core.Texture.T_unsigned_byte, core.Texture.F_rgb
            )
            texture.set_ram_image_as(picture.tobytes(), 'RGB')
        texture.set_minfilter(core.SamplerState.FT_linear_mipmap_nearest)
        texture.set_magfilter(core.SamplerState.FT_linear)
        return texture

    def _add_sky(self, scene: Scene) -> None:
        daylight = scene.scenery.daylight
        mesh = Mesh()
        around, up = np.meshgrid(np.linspace(0, 1, 33), np.linspace(0, 1, 9), indexing='ij')
        azimuth, elevation = 2 * math.pi * around, math.radians(88) * up
        points = _SKY_M * np.stack(
            [
                np.cos(azimuth) * np.cos(elevation),
                np.sin(azimuth) * np.cos(elevation),
                np.sin(elevation),
            ],
            axis=-1,
        )
        uv = np.stack([around, up], axis=-1)
        mesh.add_polygons(_grid_quads(points), (1.0, 1.0, 1.0), _grid_quads(uv))
        self._sky = self._root.attach_new_node(mesh.to_geom('sky'))
        picture = meshes.sky_texture(
            daylight.zenith, daylight.horizon, daylight.clouds, scene.config.seed
        )
        texture = self._to_texture(picture, 'sky')
        texture.set_wrap_v(self._core.SamplerState.WM_clamp)
        self._sky.set_texture(texture)
        self._sky.set_light_off()
        self._sky.set_fog_off()
        self._paint_without_depth(self._sky, 0)

    def _add_static(self, scene: Scene) -> None:
        tiles = _Tiles()
        for block in scene.scenery.blocks:
            place = block.x, block.y
            meshes.add_block(tiles.at(*place, block.style), tiles.at(*place), block)
        for tree in scene.scenery.trees:
            meshes.add_tree(tiles.at(tree.x, tree.y), tree)
        for lamp in scene.scenery.lamps:
            meshes.add_lamp(tiles.at(lamp.x, lamp.y), lamp)
        facades = {
            style: self._to_texture(meshes.facade_texture(style), style)
            for style in ('offices', 'flats', 'house')
        }
        for style, mesh in tiles.filled():
            node = self._objects.attach_new_node(mesh.to_geom(f'static {style}'))
            if style in facades:
                node.set_texture(facades[style])

    def _add_shadows(self, scene: Scene) -> Any:
        """Draw shadows of everything; those of the vehicles move below the returned node."""
        core = self._core
        daylight = scene.scenery.daylight
        toward = _sun_direction(daylight)
        slope = -toward[:2] / toward[2]
        shadows = self._root.attach_new_node('shadows')
        strength = 0.9 * sum(daylight.sun) / (sum(daylight.sun) + sum(daylight.ambient))
        shadows.set_color((0.02, 0.03, 0.06, strength), 10)
        shadows.set_light_off(10)
        shadows.set_fog_off(10)
        shadows.set_transparency(core.TransparencyAttrib.M_alpha, 10)
        self._paint_without_depth(shadows, 20)
        # The stencil lets overlapping shadows darken a place only once.
        stencil = core.StencilAttrib
        attribute = stencil.make(
            True, stencil.SCF_equal, stencil.SO_keep, stencil.SO_keep, stencil.SO_increment, 0, 1, 1
        )
        shadows.set_attrib(attribute, 10)
        tiles = _Tiles()
        for block in scene.scenery.blocks:
            meshes.add_block_shadow(tiles.at(block.x, block.y), block, slope)
        for tree in scene.scenery.trees:
            meshes.add_tree_shadow(tiles.at(tree.x, tree.y), tree, slope)
        for lamp in scene.scenery.lamps:
            meshes.add_lamp_shadow(tiles.at(lamp.x, lamp.y), lamp, slope)
        for _, mesh in tiles.filled():
            shadows.attach_new_node(mesh.to_geom('shadow'))
        moving = shadows.attach_new_node('moving')
        flattened = core.LMatrix4f(core.LMatrix4f.ident_mat())
        flattened.set_row(2, (slope[1], slope[0], _FLAT, 0.0))
        moving.set_mat(flattened)
        return moving

    def _add_vehicle(self, scene: Scene, index: int) -> tuple[Any, ...]:
        """Add a vehicle and its shadow; returns the nodes that move with it."""
        kind = scene.traffic.kinds[index]
        near, far = vehicle_model(kind), far_model(kind)
        if self._instances:
            number = (index + 1) * _INSTANCE_STEP
            code = (number // 256 / 255, number % 256 / 255, 0.0)
            mesh = Mesh()
            mesh.add_faces(
                near.vertices, near.normals, np.tile(code, (len(near.parts), 1)), near.faces
            )
            return (self._objects.attach_new_node(mesh.to_geom(f'vehicle {index}')),)
        detail = self._core.LODNode(f'vehicle {index}')
        body = self._objects.attach_new_node(detail)
        for model, distances in ((near, (_DETAIL_M, 0.0)), (far, (_FAR_M, _DETAIL_M))):
            colours = np.array([_MATERIALS.get(part, scene.paints[index]) for part in model.parts])
            mesh = Mesh()
            mesh.add_faces(model.vertices, model.normals, colours, model.faces)
            body.attach_new_node(mesh.to_geom('model'))
            detail.add_switch(*distances)
        silhouette = Mesh()
        length, width, height = kind.size
        for share, low, high in ((1.0, 0.15, 0.6), (0.62, 0.5, 1.0)):
            middle = (0.0, 0.0, (low + high) / 2 * height)
            size = (share * length, 0.94 * width, (high - low) * height)
            meshes.add_box(silhouette, middle, size, 0.0, (0.0, 0.0, 0.0))
        return body, self._shadows.attach_new_node(silhouette.to_geom('shadow'))

    def _place_vehicles(self, frame: int, own: int) -> None:
        assert self._scene is not None
        present = self._scene.traffic.present[frame]
        for index, nodes in enumerate(self._vehicles):
            matrix = self._matrix(self._scene.vehicle_pose(frame, index))
            for node in nodes:
                if present[index] and index != own:
                    node.set_mat(matrix)
                    node.show()
                else:
                    node.hide()


class _Tiles:
    """Meshes of static things, grouped by texture and place."""

    def __init__(self) -> None:
        self._meshes: dict[tuple[str, int, int], Mesh] = defaultdict(Mesh)

    def at(self, x: float, y: float, texture: str = '') -> Mesh:
        """Return the mesh for things at a place."""
        return self._meshes[texture, math.floor(x / _TILE_M), math.floor(y / _TILE_M)]

    def filled(self) -> Iterator[tuple[str, Mesh]]:
        """Iterate over the textures and meshes that are not empty."""
        for (texture, _, _), mesh in self._meshes.items():
            if mesh.count:
                yield texture, mesh


@dataclass(frozen=True, eq=False)
class VehicleModel:
    """A vehicle in its own frame: x forward, y right, z up, origin on the ground below its middle.

    Attributes:
        vertices: (N, 3), metres.
        normals: (N, 3).
        parts: (N,) material of each vertex; `body` takes the paint of the vehicle.
        faces: (M, 3), triangles.
    """

    vertices: np.ndarray
    normals: np.ndarray
    parts: tuple[str, ...]
    faces: np.ndarray


@cache
def vehicle_model(kind: VehicleKind) -> VehicleModel:
    """Load the model of a kind, stretched so that its bounds are exactly the box of the kind."""
    model = _original_model(kind.model)
    low, high = model.vertices.min(axis=0), model.vertices.max(axis=0)
    scale = np.array(kind.size) / (high - low)
    origin = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    normals = model.normals / scale
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    vertices = (model.vertices - origin) * scale
    return dataclasses.replace(model, vertices=vertices, normals=normals)


@cache
def far_model(kind: VehicleKind) -> VehicleModel:
    """The model of a kind with boxes for wheels, which hold most of the vertices of the models."""
    model = vehicle_model(kind)
    parts = np.array(model.parts)
    body = ~np.isin(parts, ('tires', 'metal'))
    faces = model.faces[body[model.faces].all(axis=1)]
    tires = model.vertices[parts == 'tires']
    wheels = Mesh()
    for front in (False, True):
        for right in (False, True):
            wheel = tires[((tires[:, 0] > 0) == front) & ((tires[:, 1] > 0) == right)]
            low, high = wheel.min(axis=0), wheel.max(axis=0)
            meshes.add_box(wheels, (low + high) / 2, high - low, 0.0, (0.0, 0.0, 0.0))
    # Vertices that no face uses any more would still be transformed.
    used, renumbered = np.unique(faces, return_inverse=True)
    return VehicleModel(
        np.concatenate([model.vertices[used], *wheels.positions]),
        np.concatenate([model.normals[used], *wheels.normals]),
        (*parts[used].tolist(), *['tires'] * wheels.count),
        np.concatenate([renumbered.reshape(-1, 3), *(f + len(used) for f in wheels.faces)]),
    )


@cache
def _original_model(name: str) -> VehicleModel:
    core = _panda()
    import gltf

    root = core.NodePath(gltf.load_model(str(_model_directory() / f'{name}.glb')))
    vertices, normals, faces = [], [], []
    parts: list[str] = []
    for node in root.find_all_matches('**/+GeomNode'):
        matrix = node.get_mat(root)
        for geom, state in _geoms(node.node()):
            points, directions, indices = _read_geom(geom, matrix)
            faces.append(indices[:, ::-1] + len(parts))  # the swap of axes below mirrors them
            vertices.append(points)
            normals.append(directions)
            parts.extend([_material(state, core)] * len(points))
    # The models look along +y of panda3d: swap into CARLA's axes.
    return VehicleModel(
        np.concatenate(vertices)[:, [1, 0, 2]],
        np.concatenate(normals)[:, [1, 0, 2]],
        tuple(parts),
        np.concatenate(faces),
    )


def _geoms(node: Any) -> Iterator[tuple[Any, Any]]:
    for index in range(node.get_num_geoms()):
        yield node.get_geom(index).decompose(), node.get_geom_state(index)


def _material(state: Any, core: Any) -> str:
    attribute = state.get_attrib(core.MaterialAttrib)
    return attribute.get_material().name if attribute else 'body'


def _read_geom(geom: Any, matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices (N, 3), normals (N, 3) and triangles (M, 3) of a geom."""
    from panda3d.core import GeomVertexReader

    data = geom.get_vertex_data()
    position, normal = GeomVertexReader(data, 'vertex'), GeomVertexReader(data, 'normal')
    count = data.get_num_rows()
    vertices = np.array([matrix.xform_point(position.get_data3()) for _ in range(count)])
    normals = np.array([matrix.xform_vec(normal.get_data3()) for _ in range(count)])
    indices = [
        index
        for primitive in geom.get_primitives()
        for index in map(primitive.get_vertex, range(primitive.get_num_vertices()))
    ]
    return vertices, normals, np.array(indices).reshape(-1, 3)


def _model_directory() -> Path:
    spec = importlib.util.find_spec('smarts')
    for location in (spec.submodule_search_locations or []) if spec else []:
        directory = Path(location) / 'assets' / 'vehicles' / 'visual_model'
        if directory.is_dir():
            return directory
    raise GeneratorError(f'the vehicle models of the package smarts are missing; {_PIP_REMEDY}')


@cache
def _panda() -> Any:
    """Import panda3d, set up for rendering without a display."""
    try:
        import gltf  # noqa: F401
        from panda3d import core
    except ImportError as error:
        raise GeneratorError(f'{error.name} is missing; {_PIP_REMEDY}') from error
    # What panda3d prints about displays and input devices is noise without them; that no frame
    # buffer could be opened is told by `Renderer`.
    quiet = ('display', 'egldisplay', 'device')
    settings = '\n'.join(['audio-library-name null', *(f'notify-level-{c} fatal' for c in quiet)])
    core.load_prc_file_data('lapdtr_ros', settings)
    return core


def _sun_direction(daylight: Daylight) -> np.ndarray:
    """Unit vector towards the sun in CARLA's world."""
    flat = math.cos(daylight.elevation)
    return np.array(
        [
            flat * math.cos(daylight.azimuth),
            flat * math.sin(daylight.azimuth),
            math.sin(daylight.elevation),
        ]
    )


def _grid_quads(grid: np.ndarray) -> np.ndarray:
    """Quadrilaterals of a grid (A, B, K): ((A - 1) * (B - 1), 4, K)."""
    quads = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], axis=2)
    return quads.reshape(-1, 4, grid.shape[-1])
