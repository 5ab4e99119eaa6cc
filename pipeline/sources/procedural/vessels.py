"""Things turned on a lathe, some with handle and spout.

Builders draw proportions and return patches, Z up, in any scale.
"""

import numpy as np

from pipeline.sources.procedural.patches import Detail, Patch, Rng, curve, lathe, sweep, tube


def vase(rng: Rng, detail: Detail) -> list[Patch]:
    foot, belly, neck, lip = rng.uniform((0.35, 0.7, 0.2, 0.35), (0.55, 1.0, 0.4, 0.65))
    height, low = rng.uniform(2.0, 2.8), rng.uniform(0.3, 0.5)
    base = np.array([[0.0, 0.0], [foot / 2, 0.0], [foot, 0.0]])
    wall = curve([[foot, 0], [belly, low * height], [neck, 0.8 * height], [lip, height]], detail(20))
    inside = curve([[lip, height], [lip - 0.07, height], [neck - 0.06, 0.8 * height], [0.0, 0.7 * height]], detail(8))
    return [lathe([base, wall, inside], detail(32))]


def bottle(rng: Rng, detail: Detail) -> list[Patch]:
    body, neck = rng.uniform(0.45, 0.75), rng.uniform(0.16, 0.26)
    height, shoulder = rng.uniform(2.2, 2.8), rng.uniform(0.5, 0.65)
    wall = curve(
        [
            [0, 0],
            [0.9 * body, 0],
            [body, 0.1],
            [body, shoulder * height],
            [neck, (shoulder + 0.22) * height],
            [neck, height],
        ],
        detail(26),
    )
    cork = curve(
        [[neck, height], [neck * 1.3, height + 0.02], [neck * 1.3, height + 0.2], [0, height + 0.24]], detail(6)
    )
    return [lathe([wall, cork], detail(32))]


def bowl(rng: Rng, detail: Detail) -> list[Patch]:
    foot, depth = rng.uniform(0.3, 0.5), rng.uniform(0.7, 1.1)
    outside = curve([[0, 0], [foot, 0], [0.8, 0.35 * depth], [1.0, depth]], detail(14))
    inside = curve([[1.0, depth], [0.92, depth], [0.7, 0.42 * depth], [0, 0.12 * depth]], detail(12))
    return [lathe([outside, inside], detail(36))]


def goblet(rng: Rng, detail: Detail) -> list[Patch]:
    foot, stem, cup = rng.uniform((0.5, 0.1, 0.6), (0.7, 0.18, 0.85))
    knee = rng.uniform(0.9, 1.2)
    wall = curve(
        [[0, 0], [foot, 0], [foot, 0.08], [stem, 0.3], [stem, knee], [cup, knee + 0.5], [cup * 0.9, knee + 1.2]],
        detail(30),
    )
    inside = curve(
        [[cup * 0.9, knee + 1.2], [cup * 0.85, knee + 1.2], [cup * 0.8, knee + 0.5], [0, knee + 0.15]], detail(10)
    )
    return [lathe([wall, inside], detail(30))]


def pawn(rng: Rng, detail: Detail) -> list[Patch]:
    foot, waist, head = rng.uniform((0.6, 0.22, 0.36), (0.8, 0.32, 0.46))
    top = rng.uniform(1.5, 1.9)
    base = curve(
        [
            [0, 0],
            [foot, 0],
            [foot, 0.2],
            [0.75 * foot, 0.4],
            [waist, top * 0.8],
            [0.42, top * 0.88],
            [0.25, top * 0.95],
        ],
        detail(22),
    )
    angle = np.linspace(-1.0, np.pi / 2, detail(12))
    ball = np.column_stack([head * np.cos(angle), top + head * 0.75 + head * np.sin(angle)])
    ball[-1, 0] = 0.0
    return [lathe([base, np.concatenate([base[-1:], ball])], detail(28))]


def mug(rng: Rng, detail: Detail) -> list[Patch]:
    foot, lip = rng.uniform(0.5, 0.65), rng.uniform(0.55, 0.75)
    height = rng.uniform(1.2, 1.7)
    base = np.array([[0.0, 0.0], [foot / 2, 0.0], [foot, 0.0]])
    wall = curve([[foot, 0], [(foot + lip) / 2, height / 2], [lip, height]], detail(12))
    rim = np.array([[lip, height], [lip - 0.08, height]])
    inside = curve([[lip - 0.08, height], [foot - 0.08, 0.15 * height], [0, 0.12 * height]], detail(12))
    reach = rng.uniform(0.45, 0.6)
    angle = np.linspace(-np.pi / 2, np.pi / 2, detail(18))
    x = (foot + lip) / 2 - 0.04
    handle = np.column_stack([x + reach * np.cos(angle), 0 * angle, height * (0.5 + 0.3 * np.sin(angle))])
    return [lathe([base, wall, rim, inside], detail(32)), sweep(handle, np.full(len(handle), 0.1), detail(10))]


def teapot(rng: Rng, detail: Detail) -> list[Patch]:
    tall = rng.uniform(0.6, 0.9)
    body = curve(
        [
            [0, -tall],
            [0.5, -tall],
            [1.0, -0.1 * tall],
            [0.55, 0.85 * tall],
            [0.14, tall],
            [0.2, tall + 0.15],
            [0, tall + 0.28],
        ],
        detail(28),
    )
    spout = tube([[0.75, 0, -0.3 * tall], [1.25, 0, 0.0], [1.5, 0, 0.7 * tall]], 0.24, 0.1, detail(14), detail(12))
    angle = np.linspace(-np.pi / 2, np.pi / 2, detail(18))
    handle = np.column_stack([-0.75 - 0.7 * np.cos(angle), 0 * angle, tall * (0.1 + 0.5 * np.sin(angle))])
    return [lathe([body], detail(34)), spout, sweep(handle, np.full(len(handle), 0.11), detail(10))]


def lamp(rng: Rng, detail: Detail) -> list[Patch]:
    foot, height, wide, narrow = rng.uniform((0.4, 1.1, 0.7, 0.3), (0.65, 1.5, 1.0, 0.5))
    base = curve(
        [
            [0, 0],
            [foot, 0],
            [foot, 0.12],
            [0.1, 0.25],
            [0.3, 0.45 * height],
            [0.08, 0.8 * height],
            [0.07, height + 0.3],
        ],
        detail(24),
    )
    shade = [
        np.array([[wide - 0.04, height], [wide, height]]),
        np.linspace((wide, height), (narrow, height + 0.9), detail(12)),
    ]
    inner = np.linspace((narrow, height + 0.9), (wide - 0.04, height), detail(8))
    return [lathe([*shade, inner], detail(36)), lathe([base], detail(22))]


def lighthouse(rng: Rng, detail: Detail) -> list[Patch]:
    foot, top, height = rng.uniform((0.5, 0.28, 1.8), (0.65, 0.38, 2.3))
    wall = curve([[0, 0], [foot, 0], [0.7 * foot + 0.1, 0.4 * height], [top, height]], detail(18))
    deck = [
        np.array([[top, height], [top * 1.5, height]]),
        np.array([[top * 1.5, height], [top * 1.5, height + 0.1]]),
        np.array([[top * 1.5, height + 0.1], [top * 0.8, height + 0.1]]),
        np.linspace((top * 0.8, height + 0.1), (top * 0.8, height + 0.5), detail(5)),
        np.array([[top * 0.8, height + 0.5], [top * 1.2, height + 0.5]]),
        np.linspace((top * 1.2, height + 0.5), (0.0, height + 0.9), detail(6)),
    ]
    return [lathe([wall, *deck], detail(30))]
