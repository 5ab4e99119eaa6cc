"""Things made of several parts: furniture, plants, buildings.

Builders draw proportions and return patches, Z up, in any scale.
"""

import numpy as np

from pipeline.sources.procedural.patches import (
    Detail,
    Patch,
    Rng,
    curve,
    lathe,
    prism,
    rotation_z,
    superellipsoid,
    tube,
)


def mushroom(rng: Rng, detail: Detail) -> list[Patch]:
    stem, height, tall = rng.uniform((0.25, 0.7, 0.6), (0.4, 1.1, 0.9))
    trunk = curve([[0, 0], [stem * 1.2, 0], [stem, 0.3], [stem * 0.8, height + 0.1]], detail(12))
    gills = curve([[0, height + 0.08], [0.5, height], [1.0, height - 0.08]], detail(8))
    hat = curve(
        [[1.0, height - 0.08], [0.92, height + 0.3 * tall], [0.55, height + 0.8 * tall], [0, height + tall]], detail(14)
    )
    return [lathe([gills, hat], detail(36)), lathe([trunk], detail(24))]


def table(rng: Rng, detail: Detail) -> list[Patch]:
    width, depth, height = rng.uniform((0.8, 0.6, 0.9), (1.1, 0.9, 1.4))
    top = superellipsoid((width, depth, 0.16), 0.3, 0.4, detail(36), detail(12)).moved((0, 0, height))
    leg = curve([[0, 0], [0.09, 0], [0.17, height]], detail(10))
    places = [(x * 0.78 * width, y * 0.72 * depth, 0.0) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    return [top] + [lathe([leg], detail(12)).moved(place) for place in places]


def stool(rng: Rng, detail: Detail) -> list[Patch]:
    height, radius = rng.uniform(1.0, 1.5), rng.uniform(0.6, 0.8)
    seat = superellipsoid((radius, radius, 0.24), 1.0, 0.5, detail(32), detail(12)).moved((0, 0, height))
    spread = rng.uniform(0.9, 1.2) * radius
    legs = [
        tube(
            [[0.5 * radius * np.cos(a), 0.5 * radius * np.sin(a), height], [spread * np.cos(a), spread * np.sin(a), 0]],
            0.13,
            0.09,
            detail(10),
            detail(10),
        )
        for a in np.arange(3) * 2 * np.pi / 3
    ]
    return [seat, *legs]


def chair(rng: Rng, detail: Detail) -> list[Patch]:
    width, height, back = rng.uniform((0.55, 0.8, 0.9), (0.75, 1.1, 1.3))
    seat = superellipsoid((width, width, 0.15), 0.3, 0.4, detail(32), detail(10)).moved((0, 0, height))
    rest = superellipsoid((width, 0.12, back / 2), 0.35, 0.35, detail(28), detail(18)).moved(
        (0, 0.85 * width, height + back / 2)
    )
    leg = curve([[0, 0], [0.08, 0], [0.13, height]], detail(8))
    places = [(x * 0.75 * width, y * 0.75 * width, 0.0) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    return [seat, rest] + [lathe([leg], detail(10)).moved(place) for place in places]


def rocket(rng: Rng, detail: Detail) -> list[Patch]:
    radius, height = rng.uniform(0.35, 0.5), rng.uniform(1.6, 2.2)
    tail = np.array([[0.0, 0.1], [radius * 0.4, 0.05], [radius * 0.7, 0.0]])
    hull = curve(
        [[radius * 0.7, 0], [radius, 0.35 * height], [radius * 0.9, 0.65 * height], [0, 1.15 * height]], detail(26)
    )
    count = int(rng.integers(3, 5))
    fin = superellipsoid((0.3, 0.06, 0.4), 0.6, 0.7, detail(18), detail(12)).moved((radius + 0.1, 0, 0.15))
    shear = np.array([[1.0, 0, 0], [0, 1, 0], [-0.6, 0, 1]])
    fin = Patch(positions=fin.positions @ shear.T, normals=fin.normals)
    fin = fin.moved((0, 0, 0.3))
    return [lathe([tail, hull], detail(32))] + [fin.turned(rotation_z(2 * np.pi * k / count)) for k in range(count)]


def house(rng: Rng, detail: Detail) -> list[Patch]:
    width, depth, height, rise = rng.uniform((0.6, 0.7, 0.4, 0.5), (0.9, 1.1, 0.6, 0.9))
    square = np.array([[1.0, -1], [1, 1], [-1, 1], [-1, -1]]) * (width, depth)
    walls = [p.moved((0, 0, height)) for p in prism(square, height, per_edge=detail(6), rows=detail(6))]
    gable = np.array([[-1.25, -0.35 * rise], [1.25, -0.35 * rise], [0.0, 0.65 * rise]]) * (width, 1.0)
    to_y = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    roof = prism(gable, 1.15 * depth, per_edge=detail(4), rows=detail(10))
    roof = [p.turned(to_y).moved((0, 0, 2 * height + 0.35 * rise)) for p in roof]
    stack = superellipsoid((0.14, 0.14, 0.4), 0.25, 0.25, detail(16), detail(10))
    return [walls[0], *roof, stack.moved((0.5 * width, 0.4 * depth, 2 * height + 0.7 * rise))]


def tree(rng: Rng, detail: Detail) -> list[Patch]:
    trunk = curve([[0, 0], [0.26, 0], [0.18, 0.3], [0.15, 1.0]], detail(10))
    height, lean = rng.uniform(1.3, 1.6), rng.uniform(0.2, 0.4)
    crown = superellipsoid(rng.uniform(0.65, 0.85, 3), 1.0, 1.0, detail(30), detail(18)).moved((0, 0, height))
    sides = [
        superellipsoid([rng.uniform(0.4, 0.55)] * 3, 1.0, 1.0, detail(22), detail(12)).moved(
            (s * 0.6, s * lean, height - 0.25)
        )
        for s in (-1, 1)
    ]
    return [crown, *sides, lathe([trunk], detail(16))]


def pine(rng: Rng, detail: Detail) -> list[Patch]:
    trunk = curve([[0, 0], [0.22, 0], [0.16, 0.7]], detail(8))
    tiers = []
    for level in range(int(rng.integers(2, 4))):
        radius, z = 0.95 - 0.24 * level, 0.5 + 0.6 * level
        under = np.linspace((0.0, z + 0.1), (radius, z), detail(5))
        cone = np.linspace((radius, z), (0.0, z + 1.0 + rng.uniform(0.0, 0.2)), detail(10))
        tiers.append(lathe([under, cone], detail(28)))
    return [*tiers, lathe([trunk], detail(14))]


def snowman(rng: Rng, detail: Detail) -> list[Patch]:
    low, middle, head = rng.uniform((0.65, 0.45, 0.3), (0.8, 0.58, 0.4))
    z = np.cumsum([low, 0.8 * (low + middle), 0.8 * (middle + head)])
    balls = [
        superellipsoid([r] * 3, 1.0, 1.0, detail(28), detail(16)).moved((0, 0, h))
        for r, h in zip((low, middle, head), z, strict=True)
    ]
    brim = z[2] + 0.6 * head
    hat = [
        np.linspace((0.0, brim), (head * 1.3, brim), detail(4)),
        np.array([[head * 1.3, brim], [head * 1.3, brim + 0.06]]),
        curve([[head * 1.3, brim + 0.06], [head * 0.8, brim + 0.08], [head * 0.75, brim + 0.5]], detail(8)),
        np.array([[head * 0.75, brim + 0.5], [0.0, brim + 0.5]]),
    ]
    return [*balls, lathe(hat, detail(24))]


def cactus(rng: Rng, detail: Detail) -> list[Patch]:
    tall, thick = rng.uniform(1.6, 2.1), rng.uniform(0.26, 0.36)
    trunk = tube([[0, 0, 0], [0, 0, tall]], thick, 0.85 * thick, detail(24), detail(20))
    arms = []
    for side, z in ((-1, rng.uniform(0.5, 0.8)), (1, rng.uniform(0.7, 1.1))):
        reach = rng.uniform(0.6, 0.75)
        path = [[0, 0, z], [side * 0.8 * reach, 0, z + 0.05], [side * reach, 0, z + 0.3], [side * reach, 0, z + 0.8]]
        arms.append(tube(path, 0.19, 0.17, detail(16), detail(20)))
    return [trunk, *arms]


def planet(rng: Rng, detail: Detail) -> list[Patch]:
    radius = rng.uniform(0.6, 0.75)
    angle = np.linspace(0.0, 2 * np.pi, detail(12) + 1)
    angle[-1] = 0.0
    band = lathe([np.column_stack([1.1 - 0.22 * np.cos(angle), -0.07 * np.sin(angle)])], detail(44), closed=True)
    tilt = rng.uniform(0.2, 0.5)
    c, s = np.cos(tilt), np.sin(tilt)
    ring = band.turned(np.array([[c, 0, -s], [0.0, 1, 0], [s, 0, c]]))
    return [superellipsoid([radius] * 3, 1.0, 1.0, detail(32), detail(18)), ring]
