"""Meshes and textures of generated scenes as numpy arrays; only `to_geom` knows panda3d.

Positions and normals are in CARLA's world (x forward, y right, z up). Swapping x and y turns that
left-handed frame into panda3d's right-handed one (x right, y forward, z up).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lapdtr_ros.datasets.scenery import Block, Colour, Lamp, Tree

SWAP = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float64)

_VERTEX = np.dtype([('v', '<f4', 3), ('n', '<f4', 3), ('c', 'u1', 4), ('t', '<f4', 2)])
_ROOF: Colour = (0.42, 0.42, 0.43)
_TILES: tuple[Colour, ...] = ((0.55, 0.27, 0.20), (0.40, 0.36, 0.36), (0.48, 0.32, 0.24))
_TRUNK: Colour = (0.34, 0.25, 0.18)
_POLE: Colour = (0.38, 0.40, 0.42)
_UP = np.array([0.0, 0.0, 1.0])
_BLACK: Colour = (0.0, 0.0, 0.0)
_WINDOW_M = 3.2  # one window of a facade texture, and one floor
_WINDOWS = 4  # of a facade texture, in both directions


@dataclass
class Mesh:
    """Triangles over shared vertices, ready to be filled."""

    positions: list[np.ndarray] = field(default_factory=list)
    normals: list[np.ndarray] = field(default_factory=list)
    colours: list[np.ndarray] = field(default_factory=list)
    uvs: list[np.ndarray] = field(default_factory=list)
    faces: list[np.ndarray] = field(default_factory=list)
    count: int = 0

    def add_polygons(
        self,
        polygons: np.ndarray,
        colour: Colour | np.ndarray,
        uvs: np.ndarray | None = None,
        normal: Sequence[float] | None = None,
    ) -> None:
        """Add flat convex polygons.

        Args:
            polygons: (N, K, 3), corners in order around each.
            colour: of all.
            uvs: (N, K, 2) texture coordinates.
            normal: of all; (b - a) x (c - a) of the first corners when None.
        """
        number, corners = polygons.shape[:2]
        if normal is None:
            edges = polygons[:, 1] - polygons[:, 0], polygons[:, 2] - polygons[:, 0]
            flat = np.cross(*edges)
            flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
        else:
            flat = np.broadcast_to(np.asarray(normal, dtype=np.float64), (number, 3))
        fan = np.array([[0, i, i + 1] for i in range(1, corners - 1)])
        first = np.arange(number)[:, None, None] * corners
        self.add_faces(
            polygons.reshape(-1, 3),
            np.repeat(flat, corners, axis=0),
            np.broadcast_to(colour, (number * corners, 3)),
            (first + fan).reshape(-1, 3),
            None if uvs is None else uvs.reshape(-1, 2),
        )

    def add_faces(
        self,
        positions: np.ndarray,
        normals: np.ndarray,
        colours: np.ndarray,
        faces: np.ndarray,
        uvs: np.ndarray | None = None,
    ) -> None:
        """Add triangles (M, 3) that count the given vertices: (N, 3) each, `uvs` (N, 2)."""
        self.positions.append(positions)
        self.normals.append(normals)
        self.colours.append(colours)
        self.uvs.append(np.zeros((len(positions), 2)) if uvs is None else uvs)
        self.faces.append(faces + self.count)
        self.count += len(positions)

    def to_geom(self, name: str) -> Any:
        """Return a panda3d `GeomNode`.

        Seen from outside a face is clockwise here, since y points right; the swap mirrors it into
        what panda3d takes for a front.
        """
        from panda3d import core

        table = np.zeros(self.count, dtype=_VERTEX)
        table['v'] = np.concatenate(self.positions)[:, [1, 0, 2]]
        table['n'] = np.concatenate(self.normals)[:, [1, 0, 2]]
        table['c'][:, :3] = np.clip(np.concatenate(self.colours) * 255.0 + 0.5, 0, 255)
        table['c'][:, 3] = 255
        table['t'] = np.concatenate(self.uvs)
        data = core.GeomVertexData(name, core.GeomVertexFormat.get_v3n3c4t2(), core.Geom.UH_static)
        data.unclean_set_num_rows(self.count)
        memoryview(data.modify_array(0)).cast('B')[:] = table.tobytes()
        triangles = core.GeomTriangles(core.Geom.UH_static)
        triangles.set_index_type(core.Geom.NT_uint32)
        indices = np.concatenate(self.faces)[:, ::-1].astype('<u4')
        rows = triangles.modify_vertices()
        rows.unclean_set_num_rows(indices.size)
        memoryview(rows).cast('B')[:] = indices.tobytes()
        geom = core.Geom(data)
        geom.add_primitive(triangles)
        node = core.GeomNode(name)
        node.add_geom(geom)
        return node


def add_box(
    mesh: Mesh, centre: Sequence[float], size: Sequence[float], yaw: float, colour: Colour
) -> None:
    """Add the five visible sides of a box; `centre` is the middle of the box."""
    corners = _corners(centre, size, yaw)
    mesh.add_polygons(corners[_SIDES], colour)
    mesh.add_polygons(corners[_TOP], colour)


# Corner order: bottom 0-3 around, top 4-7 above them; faces turn outwards.
_SIDES = np.array([[0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])
_TOP = np.array([[4, 5, 6, 7]])


def _corners(centre: Sequence[float], size: Sequence[float], yaw: float) -> np.ndarray:
    x, y = np.array([-1, 1, 1, -1]) * size[0] / 2, np.array([-1, -1, 1, 1]) * size[1] / 2
    cos, sin = math.cos(yaw), math.sin(yaw)
    plan = np.column_stack([cos * x - sin * y, sin * x + cos * y]) + np.asarray(centre[:2])
    low, high = centre[2] - size[2] / 2, centre[2] + size[2] / 2
    return np.vstack([np.column_stack([plan, np.full(4, z)]) for z in (low, high)])


def add_block(mesh: Mesh, plain: Mesh, block: Block) -> None:
    """Add a block: walls with windows to `mesh`, whatever has none to `plain`."""
    length, depth, height = block.size
    corners = _corners((block.x, block.y, height / 2), block.size, block.yaw)
    if block.style in ('hedge', 'container'):
        plain.add_polygons(np.concatenate([corners[_SIDES], corners[_TOP]]), block.colour)
        return
    floors = max(1.0, round(height / _WINDOW_M))
    bays = [max(1.0, round(side / _WINDOW_M)) for side in (length, depth, length, depth)]
    uvs = np.array([[[0, 0], [n, 0], [n, floors], [0, floors]] for n in bays]) / _WINDOWS
    mesh.add_polygons(corners[_SIDES], block.colour, uvs)
    if block.style == 'house':
        _add_gable_roof(plain, corners, block)
    else:
        plain.add_polygons(corners[_TOP], _ROOF)
        top = height + 0.25
        parapet = (length + 0.3, depth + 0.3, 0.5)
        add_box(plain, (block.x, block.y, top), parapet, block.yaw, _ROOF)


def _add_gable_roof(mesh: Mesh, corners: np.ndarray, block: Block) -> None:
    """Two slopes with overhang above the longer axis, and the gables below them."""
    a, b, c, d = corners[4:]
    rise = np.array([0.0, 0.0, 0.42 * block.size[1]])
    ridge = (a + d) / 2 + rise, (b + c) / 2 + rise
    along = 0.05 * (ridge[1] - ridge[0])
    eaves = [p + 0.12 * (p - (p + q) / 2) * 2 - 0.12 * rise for p, q in ((a, d), (b, c))]
    other = [q + 0.12 * (q - (p + q) / 2) * 2 - 0.12 * rise for p, q in ((a, d), (b, c))]
    first, last = ridge[0] - along, ridge[1] + along
    slopes = np.array(
        [
            [eaves[0] - along, eaves[1] + along, last, first],
            [other[1] + along, other[0] - along, first, last],
        ]
    )
    tiles = _TILES[int(1000 * block.colour[0]) % len(_TILES)]
    mesh.add_polygons(slopes, tiles)
    gables = np.array([[d, a, ridge[0]], [b, c, ridge[1]]])
    mesh.add_polygons(gables, block.colour)


def add_tree(mesh: Mesh, tree: Tree) -> None:
    """Add a tree; its shape follows from its place, so equal scenes have equal trees."""
    rng = np.random.default_rng(abs(int(tree.x * 1000)) * 65537 + abs(int(tree.y * 1000)))
    trunk = 0.35 * tree.height
    thickness = 0.035 * tree.height
    add_box(mesh, (tree.x, tree.y, trunk / 2), (thickness, thickness, trunk), 0.3, _TRUNK)
    if tree.conifer:
        for low, high, radius in ((0.15, 0.6, 1.0), (0.38, 0.8, 0.75), (0.6, 1.0, 0.5)):
            _add_cone(mesh, tree, low * tree.height, high * tree.height, radius * tree.radius)
        return
    crown = np.array([tree.x, tree.y, tree.height - tree.radius])
    for _ in range(3):
        shift = rng.uniform(-0.4, 0.4, 3) * tree.radius
        size = tree.radius * rng.uniform(0.7, 0.95)
        _add_ball(mesh, crown + shift, size, np.array(tree.colour) * rng.uniform(0.88, 1.1))


def _add_cone(mesh: Mesh, tree: Tree, low: float, high: float, radius: float) -> None:
    angle = np.linspace(0.0, 2.0 * math.pi, 9)
    ring = np.column_stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros(9)])
    ring += (tree.x, tree.y, low)
    apex = np.broadcast_to((tree.x, tree.y, high), (8, 3))
    mesh.add_polygons(np.stack([ring[:-1], ring[1:], apex], axis=1), tree.colour)


def _ball() -> tuple[np.ndarray, np.ndarray]:
    """Vertices (42, 3) and triangles (80, 3) of an icosahedron with every face cut in four."""
    golden = (1 + math.sqrt(5)) / 2
    points = np.array(
        [p for a in (-1, 1) for b in (-golden, golden) for p in ((0, a, b), (a, b, 0), (b, 0, a))]
    )
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2)
    joined = (gaps > 0.0) & (gaps < 1.01 * gaps[gaps > 0.0].min())
    corners = [
        (i, j, k)
        for i, j, k in itertools.combinations(range(12), 3)
        if joined[i, j] and joined[j, k] and joined[i, k]
    ]
    vertices = list(points)
    middle: dict[tuple[int, int], int] = {}
    for i, j in itertools.combinations(range(12), 2):
        if joined[i, j]:
            middle[i, j] = len(vertices)
            vertices.append((points[i] + points[j]) / np.linalg.norm(points[i] + points[j]))
    faces = []
    for i, j, k in corners:
        ij, jk, ik = middle[i, j], middle[j, k], middle[i, k]
        faces += [(i, ij, ik), (j, ij, jk), (k, ik, jk), (ij, jk, ik)]
    return np.array(vertices), _outwards(np.array(vertices), np.array(faces))


def _outwards(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Turn the faces of a solid around the origin so that (b - a) x (c - a) points outwards."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    inwards = (np.cross(b - a, c - a) * a).sum(axis=1) < 0.0
    return np.where(inwards[:, None], faces[:, ::-1], faces)


_BALL, _BALL_FACES = _ball()


def _add_ball(mesh: Mesh, centre: np.ndarray, radius: float, colour: np.ndarray) -> None:
    # Darker below: light from the sky does not reach there.
    shade = 0.8 + 0.2 * _BALL[:, 2:]
    colours = np.clip(colour * shade, 0.0, 1.0)
    mesh.add_faces(centre + radius * _BALL, _BALL, colours, _BALL_FACES)


def add_lamp(mesh: Mesh, lamp: Lamp) -> None:
    """Add a street lamp."""
    cos, sin = math.cos(lamp.yaw), math.sin(lamp.yaw)
    add_box(mesh, (lamp.x, lamp.y, 3.5), (0.14, 0.14, 7.0), lamp.yaw, _POLE)
    arm = lamp.x + 1.0 * cos, lamp.y + 1.0 * sin, 6.95
    add_box(mesh, arm, (2.0, 0.1, 0.1), lamp.yaw, _POLE)
    head = lamp.x + 2.0 * cos, lamp.y + 2.0 * sin, 6.9
    add_box(mesh, head, (0.7, 0.28, 0.14), lamp.yaw, (0.85, 0.85, 0.8))


# Shadows, on the ground; `slope` (2,) is how far a point moves for each metre of height


def add_block_shadow(mesh: Mesh, block: Block, slope: np.ndarray) -> None:
    """Add the shadow of a block: its sides and top along the sun's rays."""
    corners = _corners((block.x, block.y, block.size[2] / 2), block.size, block.yaw)
    flat = _flatten(corners, slope)
    mesh.add_polygons(np.concatenate([flat[_SIDES], flat[_TOP]]), _BLACK)


def add_tree_shadow(mesh: Mesh, tree: Tree, slope: np.ndarray) -> None:
    """Add the shadow of a tree: a strip for the trunk and a disc or triangle for the crown."""
    place = np.array([tree.x, tree.y, 0.0])
    across = np.array([-slope[1], slope[0], 0.0]) / max(float(np.hypot(*slope)), 1e-9)
    half = 0.018 * tree.height * across
    crown = place + _UP * (tree.height - tree.radius)
    trunk = np.array([place - half, place + half, crown + half, crown - half])
    mesh.add_polygons(_flatten(trunk, slope)[None], _BLACK)
    if tree.conifer:
        low = place + _UP * 0.15 * tree.height
        side = tree.radius * across
        apex = place + _UP * tree.height
        mesh.add_polygons(_flatten(np.array([low - side, low + side, apex]), slope)[None], _BLACK)
        return
    angle = np.linspace(0.0, 2.0 * math.pi, 12, endpoint=False)
    ring = 1.15 * tree.radius * np.column_stack([np.cos(angle), np.sin(angle), np.zeros(12)])
    mesh.add_polygons(_flatten(crown + ring, slope)[None], _BLACK)


def add_lamp_shadow(mesh: Mesh, lamp: Lamp, slope: np.ndarray) -> None:
    """Add the shadow of a street lamp: its pole and its arm."""
    along = np.array([math.cos(lamp.yaw), math.sin(lamp.yaw), 0.0])
    across = np.array([-along[1], along[0], 0.0])
    foot = np.array([lamp.x, lamp.y, 0.0])
    top = foot + _UP * 6.95
    width = 0.07 * np.array([-slope[1], slope[0], 0.0]) / max(float(np.hypot(*slope)), 1e-9)
    pole = np.array([foot - width, foot + width, top + width, top - width])
    arm = np.array([p + s * 0.1 * across for p, s in ((top, -1), (top, 1))])
    arm = np.concatenate([arm, arm[::-1] + 2.2 * along])
    mesh.add_polygons(_flatten(np.array([pole, arm]), slope), _BLACK)


def _flatten(points: np.ndarray, slope: np.ndarray) -> np.ndarray:
    flat = points.copy()
    flat[..., :2] += points[..., 2:] * slope
    flat[..., 2] = 0.0
    return flat


# Textures, uint8


def noise_texture(size: int, contrast: float, roughness: float, seed: int) -> np.ndarray:
    """Grey texture (size, size) that tiles without a seam.

    Args:
        size: pixels.
        contrast: spread around 235 of 255, share of the whole range.
        roughness: exponent of the spectrum; 0 is white noise, 1 has soft patches.
        seed: of the pattern.
    """
    values = np.random.default_rng(seed).normal(size=(size, size))
    frequency = np.fft.fftfreq(size)
    radius = np.hypot(frequency[:, None], frequency[None])
    radius[0, 0] = 1.0
    values = np.real(np.fft.ifft2(np.fft.fft2(values) / radius**roughness))
    values = (values - values.mean()) / values.std()
    return np.clip(225 + 255 * contrast * values, 0, 255).astype(np.uint8)


def facade_texture(style: str) -> np.ndarray:
    """RGB texture of 4 x 4 windows, white where the wall is."""
    rng = np.random.default_rng(len(style))
    cell = 32
    picture = np.full((_WINDOWS * cell, _WINDOWS * cell, 3), 250, dtype=np.uint8)
    left, right, low, high = {
        'offices': (2, 30, 9, 29),
        'flats': (9, 23, 8, 26),
        'house': (10, 22, 9, 23),
    }[style]
    for row in range(_WINDOWS):
        for column in range(_WINDOWS):
            glass = np.array([78, 100, 120]) * rng.uniform(0.6, 1.25)
            y, x = row * cell, column * cell
            picture[y + low - 1 : y + high + 1, x + left - 1 : x + right + 1] = 190
            picture[y + low : y + high, x + left : x + right] = np.clip(glass, 0, 255)
            picture[y : y + 2, x : x + cell] = 225  # the edge of the floor
    return picture


def sky_texture(zenith: Colour, horizon: Colour, clouds: float, seed: int) -> np.ndarray:
    """RGB texture (128, 512) of half a sphere: rows from the horizon up, columns around."""
    height = np.linspace(0.0, 1.0, 128)[:, None, None]
    blend = height**0.55
    sky = np.array(horizon) * (1 - blend) + np.array(zenith) * blend
    noise = noise_texture(512, 0.18, 1.25, seed)[:128].astype(float) / 255
    fade = np.minimum(1.0, np.linspace(0, 128, 128) / 20) * np.minimum(1.0, np.linspace(4, 0, 128))
    threshold = np.quantile(noise, 1.0 - clouds)
    cover = np.clip((noise - threshold) * 5.0, 0.0, 0.85) * fade[:, None]
    white = np.array([0.96, 0.96, 0.97])
    sky = sky * (1 - cover[..., None]) + white * cover[..., None]
    return (np.clip(sky, 0.0, 1.0) * 255).astype(np.uint8)
