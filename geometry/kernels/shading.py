"""Compiled loops of `geometry.shading`."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

from geometry.kernels.texture import reduce_coordinate, wrap_index

MIN_LAMP_ALPHA = 0.02
"""The lamp has a width: its reflection in a smooth surface is no smaller than this lobe."""
MIN_COSINE = 1e-3
DIELECTRIC_F0 = 0.04
"""Reflectance of non-metals at normal incidence (glTF 2.0, B.2.1: index of refraction 1.5)."""


@njit(nogil=True, cache=True)
def halve(fine: np.ndarray, decode: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Half the size, rounded down: [h, w, 3] bytes -> bytes, the mean of 2 x 2 taken of what they stand for. (The last
    row or column of an odd size is left out: shading needs no more.)"""
    height, width = fine.shape[0] // 2, fine.shape[1] // 2
    coarse = np.empty((height, width, 3), np.uint8)
    for row in range(height):
        for column in range(width):
            y, x = 2 * row, 2 * column
            for channel in range(3):
                mean = np.float32(0.25) * (
                    decode[fine[y, x, channel]] + decode[fine[y, x + 1, channel]]
                    + decode[fine[y + 1, x, channel]] + decode[fine[y + 1, x + 1, channel]]
                )  # fmt: skip
                coarse[row, column, channel] = np.searchsorted(steps, mean, side="right")
    return coarse


@njit(nogil=True, cache=True)
def look_up_level(
    u: float, v: float, level: float, maps_table: np.ndarray, levels: np.ndarray, texels: np.ndarray, row: int,
    decode: np.ndarray,
) -> tuple[float, float, float]:  # fmt: skip
    """RGB of a texture at (u, v), v up, bilinear in the nearest level; `level`: log2 of texture widths per sample."""
    height, width = levels[maps_table[row, 0], 1], levels[maps_table[row, 0], 2]
    wanted = np.rint(level + 0.5 * np.log2(np.float64(height * width)))
    entry = maps_table[row, 0] + np.int64(min(max(wanted, 0.0), maps_table[row, 1] - 1.0))
    first, height, width = levels[entry, 0], levels[entry, 1], levels[entry, 2]
    wrap_u, wrap_v = maps_table[row, 2], maps_table[row, 3]
    x = reduce_coordinate(u, wrap_u) * width - 0.5
    y = reduce_coordinate(1.0 - v, wrap_v) * height - 0.5
    left, top = np.floor(x), np.floor(y)
    column0, column1 = wrap_index(np.int64(left), width, wrap_u), wrap_index(np.int64(left) + 1, width, wrap_u)
    row0, row1 = wrap_index(np.int64(top), height, wrap_v), wrap_index(np.int64(top) + 1, height, wrap_v)
    fx, fy = x - left, y - top
    red, green, blue = 0.0, 0.0, 0.0
    for corner in range(4):
        weight = (fx if corner & 1 else 1.0 - fx) * (fy if corner & 2 else 1.0 - fy)
        texel = first + (row1 if corner & 2 else row0) * width + (column1 if corner & 1 else column0)
        red += weight * decode[texels[texel, 0]]
        green += weight * decode[texels[texel, 1]]
        blue += weight * decode[texels[texel, 2]]
    return red, green, blue


@njit(nogil=True, cache=True)
def unit(x: float, y: float, z: float) -> tuple[float, float, float]:
    """Unit length; 0 stays 0."""
    length = np.sqrt(x * x + y * y + z * z)
    scale = 1.0 / length if length > 0.0 else 0.0
    return x * scale, y * scale, z * scale


@njit(nogil=True, cache=True)
def face_normal(vertices: np.ndarray, i: int, j: int, k: int) -> tuple[float, float, float]:
    """Unit geometric normal of a face; 0 for one without area."""
    x0, y0, z0 = np.float64(vertices[i, 0]), np.float64(vertices[i, 1]), np.float64(vertices[i, 2])
    ax, ay, az = vertices[j, 0] - x0, vertices[j, 1] - y0, vertices[j, 2] - z0
    bx, by, bz = vertices[k, 0] - x0, vertices[k, 1] - y0, vertices[k, 2] - z0
    return unit(ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)


@njit(nogil=True, cache=True)
def perturb(
    nx: float, ny: float, nz: float, tangents: np.ndarray, face: int, mx: float, my: float, mz: float
) -> tuple[float, float, float]:
    """A normal-map direction (x along u, y along v) in the frame of a face, made orthogonal to its unit normal."""
    tx, ty, tz = tangents[face, 0], tangents[face, 1], tangents[face, 2]
    along = nx * tx + ny * ty + nz * tz
    tx, ty, tz = unit(tx - along * nx, ty - along * ny, tz - along * nz)
    bx, by, bz = ny * tz - nz * ty, nz * tx - nx * tz, nx * ty - ny * tx
    if bx * tangents[face, 3] + by * tangents[face, 4] + bz * tangents[face, 5] < 0.0:
        bx, by, bz = -bx, -by, -bz
    if tx == 0.0 and ty == 0.0 and tz == 0.0:
        return nx, ny, nz
    px, py, pz = unit(mx * tx + my * bx + mz * nx, mx * ty + my * by + mz * ny, mx * tz + my * bz + mz * nz)
    if px == 0.0 and py == 0.0 and pz == 0.0:
        return nx, ny, nz
    return px, py, pz


@njit(nogil=True, cache=True)
def reflectances(n_dot_v: float, roughness: float, table: np.ndarray, spread: np.ndarray) -> tuple[float, float, float]:
    """Scale and bias of F0 in what a surface reflects in all directions, and how far its lobe weakens the sky."""
    last = table.shape[0] - 1
    x, y = n_dot_v * last, roughness * last
    i, j = min(np.int64(x), last - 1), min(np.int64(y), last - 1)
    fx, fy = x - i, y - j
    w00, w01, w10, w11 = (1.0 - fx) * (1.0 - fy), (1.0 - fx) * fy, fx * (1.0 - fy), fx * fy
    scale = w00 * table[i, j, 0] + w01 * table[i, j + 1, 0] + w10 * table[i + 1, j, 0] + w11 * table[i + 1, j + 1, 0]
    bias = w00 * table[i, j, 1] + w01 * table[i, j + 1, 1] + w10 * table[i + 1, j, 1] + w11 * table[i + 1, j + 1, 1]
    return scale, bias, spread[j] + (spread[j + 1] - spread[j]) * fy


@njit(nogil=True, cache=True)
def brdf(
    n_dot_l: float, n_dot_v: float, n_dot_h: float, v_dot_h: float, f0: float, diffuse: float, alpha: float,
    scale: float, bias: float,
) -> float:  # fmt: skip
    """One channel of glTF 2.0's metallic-roughness BRDF (appendix B.2 and B.3), per steradian, with one change: the
    diffuse part has what the specular part leaves *in all*, not (1 - Fresnel) of the half vector, which at grazing
    angles adds up to 1.13 times the incoming light."""
    fresnel = f0 + (1.0 - f0) * (1.0 - v_dot_h) ** 5
    square = alpha * alpha
    spread = n_dot_h * n_dot_h * (square - 1.0) + 1.0
    density = square / (np.pi * spread * spread)
    smith = n_dot_l * np.sqrt(n_dot_v * n_dot_v * (1.0 - square) + square)
    smith += n_dot_v * np.sqrt(n_dot_l * n_dot_l * (1.0 - square) + square)
    return (1.0 - f0 * scale - bias) * diffuse / np.pi + fresnel * density * 0.5 / max(smith, 1e-9)


@njit(nogil=True, cache=True)
def surroundings(
    n_z: float, r_z: float, f0: float, diffuse: float, mean: float, slope: float, scale: float, bias: float, lobe: float
) -> float:
    """One channel of the light of sky and ground, reflected: mean and slope over the height of a direction, n_z and r_z
    those of the normal and of the reflected view. Light that the facets hand on among themselves is added
    (Fdez-Aguera 2019, "A Multiple-Scattering Microfacet Model for Real-Time Image-based Lighting"): without it rough
    metals lose up to two thirds."""
    irradiance = mean + slope * (2.0 / 3.0) * n_z
    radiance = mean + slope * lobe * r_z
    single = f0 * scale + bias
    lost = max(1.0 - scale - bias, 0.0)
    average = f0 + (1.0 - f0) / 21.0
    multiple = single * average / (1.0 - lost * average) * lost
    return single * radiance + (multiple + diffuse * (1.0 - single - multiple)) * irradiance


@njit(nogil=True, cache=True)
def shade_rows(
    face: np.ndarray, bary: np.ndarray, base: np.ndarray, faces: np.ndarray, vertices: np.ndarray, normals: np.ndarray,
    uv: np.ndarray, face_material: np.ndarray, face_has_uv: np.ndarray, parameters: np.ndarray, maps: np.ndarray,
    maps_table: np.ndarray, levels: np.ndarray, texels: np.ndarray, srgb: np.ndarray, linear: np.ndarray,
    tangents: np.ndarray, texel_level: np.ndarray, eye: np.ndarray, light: np.ndarray, table: np.ndarray,
    spread: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Radiance of fragments: face [h, w], bary [h, w, 2], base [h, w, 4] -> out [h, w, 3]."""
    lx, ly, lz = light[3, 0], light[3, 1], light[3, 2]
    for row in range(face.shape[0]):
        for column in range(face.shape[1]):
            out[row, column, 0] = out[row, column, 1] = out[row, column, 2] = 0.0
            f = face[row, column]
            if f < 0:
                continue
            i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
            b0, b1 = np.float64(bary[row, column, 0]), np.float64(bary[row, column, 1])
            b2 = 1.0 - b0 - b1
            px = b0 * vertices[i, 0] + b1 * vertices[j, 0] + b2 * vertices[k, 0]
            py = b0 * vertices[i, 1] + b1 * vertices[j, 1] + b2 * vertices[k, 1]
            pz = b0 * vertices[i, 2] + b1 * vertices[j, 2] + b2 * vertices[k, 2]
            vx, vy, vz = unit(eye[0] - eye[3] * px, eye[1] - eye[3] * py, eye[2] - eye[3] * pz)
            nx, ny, nz = unit(
                b0 * normals[i, 0] + b1 * normals[j, 0] + b2 * normals[k, 0],
                b0 * normals[i, 1] + b1 * normals[j, 1] + b2 * normals[k, 1],
                b0 * normals[i, 2] + b1 * normals[j, 2] + b2 * normals[k, 2],
            )
            # The side that is seen, by the face itself: interpolated normals lean over at silhouettes.
            gx, gy, gz = face_normal(vertices, i, j, k)
            if gx * vx + gy * vy + gz * vz < 0.0:
                gx, gy, gz = -gx, -gy, -gz
            if nx == 0.0 and ny == 0.0 and nz == 0.0:
                nx, ny, nz = gx, gy, gz
            side = -1.0 if nx * gx + ny * gy + nz * gz < 0.0 else 1.0
            m = face_material[f]
            metallic, roughness = np.float64(parameters[m, 0]), np.float64(parameters[m, 1])
            glow0, glow1, glow2 = parameters[m, 2], parameters[m, 3], parameters[m, 4]
            if face_has_uv[f]:
                u = b0 * uv[i, 0] + b1 * uv[j, 0] + b2 * uv[k, 0]
                v = b0 * uv[i, 1] + b1 * uv[j, 1] + b2 * uv[k, 1]
                level = texel_level[f]
                if maps[m, 0] >= 0:
                    _, green, blue = look_up_level(u, v, level, maps_table, levels, texels, maps[m, 0], linear)
                    metallic, roughness = metallic * blue, roughness * green
                if maps[m, 1] >= 0:
                    red, green, blue = look_up_level(u, v, level, maps_table, levels, texels, maps[m, 1], srgb)
                    glow0, glow1, glow2 = glow0 * red, glow1 * green, glow2 * blue
                if maps[m, 2] >= 0:
                    red, green, blue = look_up_level(u, v, level, maps_table, levels, texels, maps[m, 2], linear)
                    bump = parameters[m, 5]
                    mx, my, mz = (2.0 * red - 1.0) * bump, (2.0 * green - 1.0) * bump, 2.0 * blue - 1.0
                    nx, ny, nz = perturb(nx, ny, nz, tangents, f, mx, my, mz)
            nx, ny, nz = nx * side, ny * side, nz * side
            n_dot_v = nx * vx + ny * vy + nz * vz
            r_z = 2.0 * n_dot_v * nz - vz
            n_dot_v = min(max(n_dot_v, MIN_COSINE), 1.0)
            metallic, roughness = min(max(metallic, 0.0), 1.0), min(max(roughness, 0.0), 1.0)
            n_dot_l = nx * lx + ny * ly + nz * lz
            hx, hy, hz = unit(lx + vx, ly + vy, lz + vz)
            n_dot_h = min(max(nx * hx + ny * hy + nz * hz, 0.0), 1.0)
            v_dot_h = min(max(vx * hx + vy * hy + vz * hz, 0.0), 1.0)
            alpha = max(roughness * roughness, MIN_LAMP_ALPHA)
            scale, bias, lobe = reflectances(n_dot_v, roughness, table, spread)
            for channel in range(3):
                color = np.float64(base[row, column, channel])
                f0, diffuse = DIELECTRIC_F0 + (color - DIELECTRIC_F0) * metallic, color * (1.0 - metallic)
                radiance = surroundings(nz, r_z, f0, diffuse, light[0, channel], light[1, channel], scale, bias, lobe)
                if n_dot_l > 0.0:
                    answer = brdf(n_dot_l, n_dot_v, n_dot_h, v_dot_h, f0, diffuse, alpha, scale, bias)
                    radiance += np.pi * light[2, channel] * n_dot_l * answer
                out[row, column, channel] = radiance
            out[row, column, 0] += glow0
            out[row, column, 1] += glow1
            out[row, column, 2] += glow2
