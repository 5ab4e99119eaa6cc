"""A layout of our own, in time nearly linear in the faces: charts are grown, laid flat, sewn together where they fit,
cut where they are unwieldy, and packed."""

import numpy as np
from jaxtyping import Bool, Float64, Int64

from pipeline.unwrap.charts import chart_faces, grow_charts
from pipeline.unwrap.flatten import flatten_charts, index_charts, rest_shapes
from pipeline.unwrap.half_edges import Surface, make_surface
from pipeline.unwrap.kernels.chart import connected_pieces
from pipeline.unwrap.kernels.stretch import box_sides
from pipeline.unwrap.pack import pack
from pipeline.unwrap.stitch import stitch_charts

EXPECTED_FILL = 0.65
"""Share of the map that charts are expected to fill, to know the size of a texel before packing."""
MAX_CUTS = 12
"""Times that faulty charts are halved before each of their faces becomes a chart."""
LARGE_BOX = 0.01
"""Share of the map from which on a chart's bounding box has to be used well..."""
MIN_BOX_FILL = 0.3
"""...by at least this share of it..."""
MAX_SIDE = 0.8
"""...and be no longer than this, over the map's side; else the chart is halved."""
MAX_HALVINGS = 4


def grown_layout(
    points: Float64[np.ndarray, "w 3"], faces: Int64[np.ndarray, "f 3"], resolution: int, padding: int
) -> dict[str, np.ndarray]:
    """`uv` [n, 2] in the unit square, `faces` [f, 3] over it, `origin` [n] the point of each, `charts` [] their number:
    0 where there are too many to be packed. Points lie in a box of side 1 and every face has an area."""
    surface = make_surface(points, faces)
    rest, weights = rest_shapes(points, faces)
    texel = float(np.sqrt(surface.areas.sum() / EXPECTED_FILL)) / resolution
    labels, places = sound_layout(surface, rest, weights, texel)
    labels, places = stitch_charts(surface, labels, places, rest, weights, texel)
    for _ in range(MAX_HALVINGS):
        unwieldy = _unwieldy(labels, places, texel * resolution)
        if not unwieldy.any():
            break
        labels = halve(surface, labels, places, unwieldy)
    flat = index_charts(surface, np.arange(len(faces)), labels)
    uv = np.empty((len(flat.origin), 2))
    uv[flat.corners] = places
    packed = pack(flat.corners, flat.first_vertex, flat.order, flat.first_face, uv, resolution, padding)
    return {
        "uv": (uv * 0 if packed is None else packed).astype(np.float32),
        "faces": flat.corners,
        "origin": flat.origin,
        "charts": np.array(0 if packed is None else len(flat.first_face) - 1),
    }


def sound_layout(
    surface: Surface, rest: Float64[np.ndarray, "f 3"], weights: Float64[np.ndarray, "f 3"], texel: float
) -> tuple[Int64[np.ndarray, " f"], Float64[np.ndarray, "f 3 2"]]:
    """Charts and corner coordinates in which no face is turned over and no chart covers itself. Charts that do are
    halved until they do not."""
    labels = grow_charts(surface)
    places = np.empty((len(labels), 3, 2))
    chosen = np.arange(len(labels))
    for _ in range(MAX_CUTS):
        own = np.unique(labels[chosen], return_inverse=True)[1]
        places[chosen], faulty = flatten_charts(surface, chosen, own, rest, weights, texel)
        chosen = chosen[faulty[own]]
        if not len(chosen):
            return labels, places
        labels = halve(surface, labels, places, np.isin(np.arange(labels.max() + 1), labels[chosen]))
    labels[chosen] = labels.max() + 1 + np.arange(len(chosen))
    places[chosen] = 0.0
    places[chosen, 1, 0], places[chosen, 2] = rest[chosen, 0], rest[chosen, 1:]
    return np.unique(labels, return_inverse=True)[1], places


def halve(
    surface: Surface,
    labels: Int64[np.ndarray, " f"],
    places: Float64[np.ndarray, "f 3 2"],
    chosen: Bool[np.ndarray, " c"],
) -> Int64[np.ndarray, " f"]:
    """Charts after cutting the `chosen` ones across their longer side; each connected piece is a chart."""
    side = np.zeros(len(labels), np.int64)
    centres = places.mean(axis=1)
    for chart, faces in enumerate(chart_faces(labels)):
        if chosen[chart]:
            spread = centres[faces] - centres[faces].mean(axis=0)
            axis = np.linalg.eigh(spread.T @ spread)[1][:, -1]
            along = spread @ axis
            side[faces] = along > (along.min() + along.max()) / 2
            if len(faces) > 1 and len(np.unique(side[faces])) == 1:  # all centres in one place
                side[faces[::2]] += 1
    return np.unique(connected_pieces(labels * 3 + side, surface.mates.reshape(-1)), return_inverse=True)[1]


def _unwieldy(
    labels: Int64[np.ndarray, " f"], places: Float64[np.ndarray, "f 3 2"], side: float
) -> Bool[np.ndarray, " c"]:
    """Charts that waste a good part of a map of `side`, or are too long for it."""
    edges = places[:, 1:] - places[:, :1]
    areas = np.bincount(labels, np.abs(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]) / 2)
    boxes = np.array([box_sides(places[faces].reshape(-1, 2)) for faces in chart_faces(labels)])
    wasteful = (areas < MIN_BOX_FILL * boxes.prod(axis=1)) & (boxes.prod(axis=1) > LARGE_BOX * side**2)
    return wasteful | (boxes.max(axis=1) > MAX_SIDE * side)
