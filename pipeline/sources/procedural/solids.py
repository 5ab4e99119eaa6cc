"""Simple bodies of one to three patches.

Builders draw proportions and return patches, Z up, in any scale.
"""

import numpy as np

from pipeline.sources.procedural.patches import Detail, Patch, Rng, cap, curve, lathe, prism, superellipsoid, tube


def _disc(radius: float, z: float, detail: Detail, *, up: bool) -> Patch:
    angle = np.arange(4 * detail(6)) * (2 * np.pi / (4 * detail(6))) * (1 if up else -1)
    return cap(np.column_stack([radius * np.cos(angle), radius * np.sin(angle), np.full(len(angle), z)]))


def block(rng: Rng, detail: Detail) -> list[Patch]:
    sizes = rng.uniform(0.55, 1.0, 3)
    return [superellipsoid(sizes, rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.5), detail(40), detail(24))]


def ball(rng: Rng, detail: Detail) -> list[Patch]:
    sizes = rng.uniform(0.65, 1.0, 3)
    return [superellipsoid(sizes, rng.uniform(0.75, 1.1), rng.uniform(0.75, 1.1), detail(36), detail(22))]


def ring(rng: Rng, detail: Detail) -> list[Patch]:
    angle = np.linspace(0.0, 2 * np.pi, detail(20) + 1)
    angle[-1] = 0.0
    thick, tall = rng.uniform(0.25, 0.45), rng.uniform(0.25, 0.65)
    profile = np.column_stack([1.0 + thick * np.cos(angle - np.pi), tall * np.sin(angle - np.pi)])
    return [lathe([profile], detail(40), closed=True)]


def column(rng: Rng, detail: Detail) -> list[Patch]:
    sides = int(rng.integers(3, 7))
    angle = np.arange(sides) * 2 * np.pi / sides
    corners = np.column_stack([np.cos(angle), np.sin(angle)]) * rng.uniform(0.5, 0.8)
    twist, taper = rng.uniform(-1.6, 1.6), rng.uniform(0.5, 1.1)
    return prism(corners, rng.uniform(0.8, 1.2), per_edge=detail(8), rows=detail(18), twist=twist, taper=taper)


def star(rng: Rng, detail: Detail) -> list[Patch]:
    points = int(rng.integers(4, 7))
    angle = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, rng.uniform(0.5, 0.65))
    corners = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])
    twist, taper = rng.uniform(-0.7, 0.7), rng.uniform(0.6, 1.0)
    return prism(corners, rng.uniform(0.5, 1.0), per_edge=detail(4), rows=detail(12), twist=twist, taper=taper)


def horn(rng: Rng, detail: Detail) -> list[Patch]:
    bend = rng.uniform(0.5, 1.0)
    path = np.array([[0, 0, 0], [0.1, 0.1, 0.7], [bend * 0.5, -0.1, 1.3], [bend, 0.1, 1.8]])
    return [tube(path, rng.uniform(0.35, 0.5), rng.uniform(0.1, 0.2), detail(24), detail(26))]


def arch(rng: Rng, detail: Detail) -> list[Patch]:
    angle = np.linspace(0.0, np.pi, 9)
    height = rng.uniform(0.8, 1.3)
    path = np.column_stack([np.cos(angle), rng.uniform(-0.3, 0.3) * np.sin(2 * angle), height * np.sin(angle)])
    return [tube(path, rng.uniform(0.2, 0.35), rng.uniform(0.2, 0.35), detail(20), detail(36))]


def spring(rng: Rng, detail: Detail) -> list[Patch]:
    turns, height = rng.uniform(1.5, 2.2), rng.uniform(1.5, 2.0)
    angle = np.linspace(0.0, 2 * np.pi * turns, 40)
    path = np.column_stack([0.7 * np.cos(angle), 0.7 * np.sin(angle), height * angle / angle[-1]])
    radius = rng.uniform(0.18, 0.24)
    return [tube(path, radius, radius, detail(14), detail(72))]


def drum(rng: Rng, detail: Detail) -> list[Patch]:
    radius, half, waist = rng.uniform((0.6, 0.5, 0.75), (0.9, 0.9, 1.15))
    side = curve([[radius, -half], [radius * waist, 0], [radius, half]], detail(20))
    discs = [_disc(radius, -half, detail, up=False), _disc(radius, half, detail, up=True)]
    return [lathe([side], 4 * detail(6)), *discs]
