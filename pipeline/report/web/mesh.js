"use strict";
/* Meshes as `pipeline/report/packed_mesh.py` packs them, and what follows from their faces: charts, edges, seams. */

async function unpackMesh(packed) {
  const zipped = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
  const stream = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const { vertices, faces } = packed;
  let offset = 0;
  const next = (Kind, count) => {
    const values = unplaned(bytes, offset, new Kind(count));
    offset += values.byteLength;
    return values;
  };
  const streams = (Kind, count) => interleaved(Kind, Array.from({ length: count }, () => next(Kind, vertices)));
  const mesh = {
    positions: streams(Uint16Array, 3), uv: streams(Uint16Array, 2), normals: streams(Uint8Array, 3),
    corners: next(Uint32Array, 3 * faces), doubleSided: packed.double_sided,
  };
  return { ...mesh, ...topology(mesh) };
}

/* Numbers from planes of bytes that code their differences. */
function unplaned(bytes, offset, values) {
  const size = values.BYTES_PER_ELEMENT, count = values.length;
  let total = 0;
  for (let i = 0; i < count; i += 1) {
    let coded = 0;
    for (let plane = 0; plane < size; plane += 1) coded |= bytes[offset + plane * count + i] << (8 * plane);
    total = (total + ((coded >>> 1) ^ -(coded & 1))) | 0;
    values[i] = total;
  }
  return values;
}

function interleaved(Kind, streams) {
  const values = new Kind(streams.length * streams[0].length);
  streams.forEach((stream, part) => stream.forEach((value, i) => (values[streams.length * i + part] = value)));
  return values;
}

/* The chart of every vertex, every edge once, and the seams: edges of one face alone in the layout. Vertices with one
   place and one texture coordinate count as one, however their normals differ. */
function topology({ positions, uv, corners }) {
  const count = uv.length / 2, same = new Map(), first = new Uint32Array(count), parent = new Uint32Array(count);
  for (let i = 0; i < count; i += 1) {
    const key = `${positions[3 * i]},${positions[3 * i + 1]},${positions[3 * i + 2]},${uv[2 * i]},${uv[2 * i + 1]}`;
    if (!same.has(key)) same.set(key, i);
    first[i] = parent[i] = same.get(key);
  }
  const root = (i) => {
    while (parent[i] !== i) i = parent[i] = parent[parent[i]];
    return i;
  };
  const edges = new Map();
  for (let i = 0; i < corners.length; i += 3) {
    for (let k = 0; k < 3; k += 1) {
      const a = first[corners[i + k]], b = first[corners[i + ((k + 1) % 3)]];
      const low = Math.min(a, b), high = Math.max(a, b), key = low * count + high;
      edges.set(key, (edges.get(key) || 0) + 1);
      parent[root(high)] = root(low);
    }
  }
  const all = new Uint32Array(2 * edges.size), seams = [], charts = new Map(), chart = new Uint16Array(count);
  let place = 0;
  for (const [key, faces] of edges) {
    const high = key % count, low = (key - high) / count;
    all[place] = low;
    all[place + 1] = high;
    place += 2;
    if (faces === 1) seams.push(low, high);
  }
  for (let i = 0; i < count; i += 1) {
    const top = root(first[i]);
    if (!charts.has(top)) charts.set(top, charts.size);
    chart[i] = charts.get(top) % 65536;
  }
  return { edges: all, seams: Uint32Array.from(seams), chart, charts: charts.size };
}

/* Draw edges of the layout into a square canvas over a map. */
function drawLayout(canvas, mesh, edges, color, width) {
  const pen = canvas.getContext("2d"), side = canvas.width;
  pen.strokeStyle = color;
  pen.lineWidth = width;
  pen.beginPath();
  for (let i = 0; i < edges.length; i += 2) {
    for (const [vertex, to] of [[edges[i], "moveTo"], [edges[i + 1], "lineTo"]]) {
      pen[to]((mesh.uv[2 * vertex] / 65535) * side, (1 - mesh.uv[2 * vertex + 1] / 65535) * side);
    }
  }
  pen.stroke();
}
