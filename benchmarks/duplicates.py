"""Distances between signatures of one asset and of different assets: `python -m benchmarks.duplicates --assets DIR`.

Of every asset of the folder and of `--made-up` procedural ones: against its re-exports (faces and vertices in another
order, turned, scaled and moved, JPEG; textures of half size), against its own mesh with another texture (quarters in
another order; mirrored; two printed words), and against all other assets. Distances in thousandths; `by shape and
amounts` is what the signature says without the layout of colours.
"""

import argparse
import itertools
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.filter.duplicates import DuplicatesConfig
from pipeline.filter.signature import GENERAL
from pipeline.mesh_io.load import load_mesh
from pipeline.sources.folder import folder
from pipeline.sources.procedural import procedural
from schemas.ledger import Rejected
from schemas.mesh import MeshRef, TexturedMesh
from tests.support.re_exports import (
    as_jpeg,
    distance,
    half_size,
    moved,
    numbers,
    printed,
    quartered,
    reordered,
    repainted,
)

MAX_FACES, MIN_SIDE = 300_000, 32


def pairs(mesh: TexturedMesh, seed: int) -> Iterator[tuple[str, TexturedMesh, TexturedMesh]]:
    """Kind of a pair, and its two meshes."""
    yield "re-export: other order, JPEG 75", mesh, as_jpeg(reordered(mesh, seed), 75)
    yield "re-export: turned, scaled, JPEG 80", mesh, as_jpeg(moved(reordered(mesh, seed), seed), 80)
    yield "re-export: textures of half size", mesh, half_size(mesh)
    sides = [min(texture.image.shape[:2]) for texture in mesh.textures]
    if any(material.texture is not None for material in mesh.materials) and min(sides) >= MIN_SIDE:
        yield "one mesh: quarters in another order", mesh, quartered(mesh)
        yield "one mesh: mirrored texture", mesh, repainted(mesh, lambda image: image[:, ::-1])
        yield "one mesh: MILKY and SALT! printed", printed(mesh, "MILKY"), printed(mesh, "SALT!")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--made-up", type=int, default=60)
    args = parser.parse_args()
    limit = DuplicatesConfig().max_distance
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    known = []
    with tempfile.TemporaryDirectory() as name:
        refs: list[MeshRef] = [*folder(args.assets), *procedural(args.made_up, Path(name))]
        for seed, ref in enumerate(refs):
            mesh = load_mesh(Path(ref.uri))
            if isinstance(mesh, Rejected) or len(mesh.faces) > MAX_FACES:
                continue
            known.append(numbers(mesh))
            for kind, one, other in pairs(mesh, seed):
                first = known[-1] if one is mesh else numbers(one)
                found[kind].append(apart(first, numbers(other)))
    found["different assets"] = list(itertools.starmap(apart, itertools.combinations(known, 2)))
    print("| pairs | number | least | 10 % | median | 90 % | most | duplicates | by shape and amounts |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind, rows in found.items():
        whole, general = np.array(rows).T
        shown = " | ".join(f"{1000 * x:.1f}" for x in np.quantile(whole, [0, 0.1, 0.5, 0.9, 1]))
        print(f"| {kind} | {len(rows):,} | {shown} | {(whole <= limit).sum()} | {(general <= limit).sum()} |")


def apart(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Distance of two signatures, and that of their general numbers."""
    return distance(one, other), float(np.abs(one - other)[:GENERAL].max())


if __name__ == "__main__":
    main()
