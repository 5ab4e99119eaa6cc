"""Image formats for the maps of a sample, compared: `python -m benchmarks.formats`. Size, processor time of encoding
and decoding, and which readers give back every value, over the shared assets (else procedural ones).

Readers: Pillow and OpenCV as they open a file, and webdataset's "rgb8", through which "pil" goes as well.
"""

import argparse
import io
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, UInt8, UInt16
from PIL import Image
from webdataset.autodecode import imagehandler

from benchmarks.stages import assets
from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.executor.compile_kernels import warm_up
from pipeline.maintain.upgrade import row_differences
from schemas.images import (
    decode_image,
    decode_normals,
    decode_positions,
    encode_grey,
    encode_image,
    encode_normals,
    encode_png,
    encode_positions,
)
from schemas.sample import TextureSample
from tests.support.schema2 import arrays_of_version_2, dz

READERS = ("Pillow", "OpenCV", "rgb8")


@dataclass(frozen=True)
class Maps:
    """The maps of a kind of one sample: views as a strip, or in texture space."""

    rgb: UInt8[np.ndarray, "h w 3"]
    mask: Bool[np.ndarray, "h w"]
    position: np.ndarray
    normal: np.ndarray

    @property
    def planes(self) -> UInt16[np.ndarray, "rows w"]:
        """Positions as three planes on top of each other."""
        values = (np.rint(self.position * np.float64(32767)) + 32768).astype(np.uint16) * self.mask[..., None]
        return np.ascontiguousarray(values.transpose(2, 0, 1)).reshape(-1, self.mask.shape[1])

    @property
    def directions(self) -> UInt8[np.ndarray, "h w 3"]:
        length = np.maximum(np.linalg.norm(self.normal.astype(np.float64), axis=-1, keepdims=True), 1e-12)
        return ((np.rint(self.normal * (127 / length)) + 128) * self.mask[..., None]).astype(np.uint8)


def maps_of(sample: TextureSample) -> Iterator[tuple[str, Maps]]:
    views = sample.views
    strips = [array.reshape(-1, *array.shape[2:]) for array in (views.rgb, views.mask, views.position, views.normal)]
    yield "views", Maps(*strips)
    if sample.uv is not None:
        yield "UV", Maps(sample.uv.rgb, sample.uv.mask, sample.uv.position, sample.uv.normal)


def tiff(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "TIFF", compression="tiff_adobe_deflate", tiffinfo={317: 2})
    return out.getvalue()


def webp(image: np.ndarray, method: int, quality: int) -> bytes:
    return encode_image(image, "WEBP", lossless=True, method=method, quality=quality, exact=True)


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def opencv(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image if image.ndim == 2 else image[..., ::-1]


def candidates(maps: Maps) -> dict[str, tuple[np.ndarray, Callable[[], bytes], Callable[[bytes], Any]]]:
    """Return each format by name: the stored image, its encoder, and the decoder of our reader."""
    planes, directions = maps.planes, maps.directions
    high_low = np.concatenate([planes >> 8, planes & 255]).astype(np.uint8)

    def position(data: bytes) -> np.ndarray:
        return decode_positions({"x.png": data}, "x.png", maps.mask)

    def normal(data: bytes) -> np.ndarray:
        return decode_normals({"x.png": data}, "x.png", maps.mask)

    def color(data: bytes) -> np.ndarray:
        return decode_image({"x": data}, "x", "WEBP", "RGB")

    old_position, old_normal = arrays_of_version_2(maps.position, maps.normal, maps.mask)
    return {
        "position: .dz (version 2)": (planes, lambda: dz(old_position), partial(undz, maps.mask.shape, "<i2")),
        "position: PNG, up, libdeflate": (
            planes, lambda: encode_positions(maps.position, maps.mask, "x.png"), position
        ),
        "position: PNG, Pillow": (planes, lambda: encode_image(planes, "PNG"), pillow),
        "position: TIFF, predictor 2": (planes, lambda: tiff(planes), pillow),
        "position: WebP, high over low byte": (high_low, lambda: webp(high_low, 0, 0), pillow),
        "normal: .dz (version 2)": (directions, lambda: dz(old_normal), partial(undz, maps.mask.shape, "i1")),
        "normal: PNG, up, libdeflate": (directions, lambda: encode_normals(maps.normal, maps.mask, "x.png"), normal),
        "normal: WebP, method 0": (directions, lambda: webp(directions, 0, 0), pillow),
        "normal: WebP, method 1": (directions, lambda: webp(directions, 1, 0), pillow),
        "colour: WebP, method 2, quality 50 (version 2)": (maps.rgb, lambda: webp(maps.rgb, 2, 50), color),
        "colour: WebP, method 1": (maps.rgb, lambda: webp(maps.rgb, 1, 0), color),
        "colour: WebP, method 0": (maps.rgb, lambda: webp(maps.rgb, 0, 0), color),
        "colour: PNG, up, libdeflate": (
            maps.rgb,
            lambda: encode_png(maps.rgb.reshape(len(maps.rgb), -1), maps.rgb.shape[1], 8, rgb=True),
            pillow,
        ),
        "mask: PNG, 1 bit": (maps.mask, lambda: encode_grey(maps.mask), pillow),
    }  # fmt: skip


def exact(image: np.ndarray, data: bytes) -> dict[str, bool]:
    """Return, by reader, whether it gives back every value."""
    kind = "webp" if data[8:12] == b"WEBP" else "tif" if data[:2] == b"II" else "png"
    readers = {"Pillow": pillow, "OpenCV": opencv, "rgb8": lambda data: imagehandler("rgb8")(f".{kind}", data)}
    found = {}
    for name, read in readers.items():
        values = read(data)
        wanted = image * np.uint8(255) if image.dtype == bool and name != "Pillow" else image
        same_rank = values[..., 0] if values.ndim > wanted.ndim else values
        found[name] = values.dtype.itemsize >= image.itemsize and np.array_equal(same_rank, wanted)
    return found


def undz(size: tuple[int, ...], kind: str, data: bytes) -> np.ndarray:
    return row_differences({"x": data}, "x", size, np.dtype(kind))


def cpu_ms(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = function()
    return result, 1e3 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=3, help="take one of so many assets")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warm_up()
    figures = defaultdict[tuple[str, str], list[tuple[float, float, float]]](list)
    readers: dict[str, dict[str, bool]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for ref in assets(Path(directory))[:: options.every]:
            sample = process_asset(ref, BuildConfig()).result
            for kind, maps in maps_of(sample) if isinstance(sample, TextureSample) else ():
                for name, (image, encode, decode) in candidates(maps).items():
                    decode(data := encode())  # compiled, in the cache
                    data, encoding = cpu_ms(encode)
                    _, decoding = cpu_ms(partial(decode, data))
                    figures[name, kind].append((len(data) / 1024, encoding, decoding))
                    if ".dz" not in name:
                        seen = exact(image, data)
                        readers[name] = {r: readers.get(name, seen)[r] and seen[r] for r in READERS}
    print("| format | views kB, encode, decode ms | UV kB, encode, decode ms | " + " | ".join(READERS) + " |")
    print("|---|---:|---:|" + "---|" * len(READERS))
    for name in dict.fromkeys(name for name, _ in figures):
        cells = [" / ".join(f"{value:.1f}" for value in np.mean(figures[name, k], axis=0)) for k in ("views", "UV")]
        marks = ["exact" if readers.get(name, {}).get(reader) else "no" for reader in READERS]
        print(f"| {name} | " + " | ".join([*cells, *marks]) + " |")


if __name__ == "__main__":
    main()
