// Makes meshopt.json and the .ktx2 files of this folder with other programs than those that read them in the tests:
//   npm install meshoptimizer@1.3.0 ktx2-encoder@0.6.0 && node make_compressed.mjs
import fs from 'fs';
import { MeshoptDecoder as Decoder } from 'meshoptimizer/decoder';
import { MeshoptEncoder as Encoder } from 'meshoptimizer/encoder';
import { encodeToKTX2 } from 'ktx2-encoder';

await Encoder.ready;
await Decoder.ready;
let state = 12345;
const random = () => (state = (state * 1103515245 + 12345) % 2147483648) / 2147483648;
const base64 = (bytes) => Buffer.from(bytes).toString('base64');

const cases = [];
function add(name, mode, filter, count, size, encoded) {
  const decoded = new Uint8Array(count * size);
  Decoder.decodeGltfBuffer(decoded, count, size, encoded, mode, filter);
  cases.push({ name, mode, filter, count, byteStride: size, encoded: base64(encoded), decoded: base64(decoded) });
}

const count = 20;
for (const size of [4, 12, 20]) {
  for (const version of [0, 1]) {
    const rows = new Uint8Array(count * size).map((_, i) => Math.floor(i / size) * 3 + (random() < 0.3 ? random() * 256 : 0));
    add(`plain ${size} v${version}`, 'ATTRIBUTES', 'NONE', count, size, Encoder.encodeVertexBufferLevel(rows, count, size, 2, version));
  }
}
const turns = new Float32Array(count * 4).map(() => random() * 2 - 1);
for (let i = 0; i < count; i++) {
  const row = turns.subarray(4 * i, 4 * i + 4);
  row.set(row.map((x) => x / Math.hypot(...row)));
}
const normals = new Float32Array(turns);
for (let i = 0; i < count; i++) {
  const row = normals.subarray(4 * i, 4 * i + 4);
  row.set([...row.subarray(0, 3).map((x) => x / Math.hypot(row[0], row[1], row[2])), 1]);
}
const points = new Float32Array(count * 3).map(() => (random() - 0.5) * 100);
const colors = new Float32Array(count * 4).map(random);
const attributes = (name, filter, size, rows) => add(name, 'ATTRIBUTES', filter, count, size, Encoder.encodeVertexBuffer(rows, count, size));
for (const [size, bits] of [[4, 8], [8, 12]]) {
  attributes(`normals ${size}`, 'OCTAHEDRAL', size, Encoder.encodeFilterOct(normals, count, size, bits));
  attributes(`colours ${size}`, 'COLOR', size, Encoder.encodeFilterColor(colors, count, size, bits));
}
attributes('turns', 'QUATERNION', 8, Encoder.encodeFilterQuat(turns, count, 8, 16));
attributes('points', 'EXPONENTIAL', 12, Encoder.encodeFilterExp(points, count, 12, 15));
const indices = new Uint32Array(3 * count).map((_, i) => Math.floor(i / 3) + Math.floor(random() * 5));
for (const size of [2, 4]) {
  const bytes = new Uint8Array(indices.buffer);
  add(`triangles ${size}`, 'TRIANGLES', 'NONE', indices.length, size, Encoder.encodeIndexBuffer(bytes, indices.length, 4));
  add(`indices ${size}`, 'INDICES', 'NONE', indices.length, size, Encoder.encodeIndexSequence(bytes, indices.length, 4));
}
fs.writeFileSync('meshopt.json', JSON.stringify(cases, null, 1) + '\n');

// 16 x 8: top left red (alpha 255), top right green (alpha 64), bottom left blue (255), bottom right white (64)
const pixels = new Uint8Array(16 * 8 * 4);
for (let y = 0; y < 8; y++) {
  for (let x = 0; x < 16; x++) {
    const left = x < 8;
    const color = y < 4 ? (left ? [255, 0, 0] : [0, 255, 0]) : left ? [0, 0, 255] : [255, 255, 255];
    pixels.set([...color, left ? 255 : 64], 4 * (16 * y + x));
  }
}
const kinds = {
  etc1s: { isUASTC: false, qualityLevel: 255 },
  uastc: { isUASTC: true, needSupercompression: false },
  uastc_zstd: { isUASTC: true, needSupercompression: true },
};
for (const [name, options] of Object.entries(kinds)) {
  const imageDecoder = async () => ({ width: 16, height: 8, data: pixels });
  const file = await encodeToKTX2(new Uint8Array([1]), { imageDecoder, isKTX2File: true, generateMipmap: true, ...options });
  fs.writeFileSync(`${name}.ktx2`, file);
}
