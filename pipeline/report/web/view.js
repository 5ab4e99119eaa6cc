"use strict";
/* The 3D view: one mesh, seen from around it, in several looks. WebGL alone, no library. */

const LOOKS = { texture: "Texture", checker: "UV checker", charts: "Charts", normals: "Normals", clay: "Clay", material: "Material" };
const WIRE = -1;
/* Parts of a material that can be switched off, and the maps that hold them. */
const PARTS = { color: "Colour", metallic: "Metallic", roughness: "Roughness", normal_tangent: "Normals", emissive: "Emission" };

/* Keys that turn the mesh, and the buttons that do the same: sign, name, azimuth, elevation, zoom. */
const MOVES = {
  ArrowLeft: ["←", "Turn left", -0.15, 0, 1], ArrowRight: ["→", "Turn right", 0.15, 0, 1],
  ArrowUp: ["↑", "See more from above", 0, 0.15, 1], ArrowDown: ["↓", "See more from below", 0, -0.15, 1],
  "+": ["+", "Closer", 0, 0, 0.9], "-": ["−", "Farther", 0, 0, 1.1], Home: ["Reset", "Reset the view"],
};

class NoWebGL extends Error {}

const VERTEX_SHADER = `#version 300 es
in vec3 position; in vec3 normal; in vec2 uv; in float chart;
uniform mat4 clip;
out vec3 place; out vec3 up; out vec2 at; flat out float number;
void main() {
  place = 2.0 * position - 1.0; up = 2.0 * normal - 1.0; at = uv; number = chart;
  gl_Position = clip * vec4(place, 1.0);
}`;
const PIXEL_SHADER = `#version 300 es
precision highp float;
in vec3 place; in vec3 up; in vec2 at; flat in float number;
uniform sampler2D map; uniform int look; uniform bool cut; uniform vec3 eye;
uniform sampler2D metallic, roughness, normal_tangent, emissive; uniform bool on[5]; uniform float strength;
out vec4 color;
vec3 linear(vec3 c) { return mix(c / 12.92, pow((c + 0.055) / 1.055, vec3(2.4)), step(0.04045, c)); }
vec3 srgb(vec3 c) { return mix(c * 12.92, 1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c)); }
/* The light of plain surroundings from a direction, blurred for rough surfaces. */
vec3 around(vec3 d, float rough) {
  float reach = 0.08 + 0.9 * rough;
  vec3 light = mix(vec3(0.10, 0.09, 0.08), vec3(0.80, 0.84, 0.90), smoothstep(-reach, reach, d.z));
  return light + (1.0 - rough) * 1.6 * smoothstep(0.86 - 0.4 * rough, 0.97, d.z);
}
/* glTF's metallic-roughness model (2.0, appendix B): GGX under one lamp, and the surroundings by Karis' approximation. */
vec3 lit(vec3 base, float metal, float rough, vec3 n, vec3 v, vec3 lamp) {
  vec3 f0 = mix(vec3(0.04), base, metal), h = normalize(v + lamp);
  float nv = max(dot(n, v), 1e-3), nl = max(dot(n, lamp), 0.0), nh = max(dot(n, h), 0.0), a = max(rough * rough, 2e-3), aa = a * a;
  float d = aa / (3.14159 * pow(nh * nh * (aa - 1.0) + 1.0, 2.0));
  float shade = 0.5 / max(nl * sqrt(nv * nv * (1.0 - aa) + aa) + nv * sqrt(nl * nl * (1.0 - aa) + aa), 1e-4);
  vec3 f = f0 + (1.0 - f0) * pow(1.0 - max(dot(v, h), 0.0), 5.0), matt = base * (1.0 - metal);
  vec4 r = rough * vec4(-1, -0.0275, -0.572, 0.022) + vec4(1, 0.0425, 1.04, -0.04);
  float k = min(r.x * r.x, exp2(-9.28 * nv)) * r.x + r.y;
  vec2 ab = vec2(-1.04, 1.04) * k + r.zw;
  return ((1.0 - f) * matt / 3.14159 + f * d * shade) * nl * 1.8 + matt * 0.75 * around(n, 1.0) + (f0 * ab.x + ab.y) * around(reflect(-v, n), rough);
}
/* A normal map's direction in the tangent frame that the layout has in this pixel. */
vec3 bent(vec3 n, vec3 mapped) {
  vec3 dx = dFdx(place), dy = dFdy(place);
  vec2 ux = dFdx(at), uy = dFdy(at);
  vec3 across = cross(dy, n), along = cross(n, dx);
  vec3 t = across * ux.x + along * uy.x, b = across * ux.y + along * uy.y;
  float size = max(dot(t, t), dot(b, b));
  return size > 0.0 ? normalize(mapped.x * t * inversesqrt(size) + mapped.y * b * inversesqrt(size) + mapped.z * n) : n;
}
vec3 material(vec2 uv, vec3 texel) {
  vec3 v = normalize(eye - place), n = normalize(up), side = normalize(cross(vec3(0, 0, 1), eye));
  if (dot(n, v) < 0.0) n = -n;
  if (on[3]) n = bent(n, 2.0 * texture(normal_tangent, uv).xyz - 1.0);
  vec3 base = on[0] ? linear(texel) : vec3(0.6);
  float metal = on[1] ? texture(metallic, uv).r : 0.0, rough = on[2] ? texture(roughness, uv).r : 0.6;
  vec3 light = lit(base, metal, rough, n, v, normalize(normalize(eye) + vec3(0, 0, 0.9) - 0.8 * side));
  return light + (on[4] ? strength * linear(texture(emissive, uv).rgb) : vec3(0));
}
vec3 hue(float h) { return clamp(abs(mod(6.0 * h + vec3(0, 4, 2), 6.0) - 3.0) - 1.0, 0.0, 1.0); }
void main() {
  if (look < 0) { color = vec4(0.05, 0.07, 0.1, 1); return; }
  vec4 texel = texture(map, vec2(at.x, 1.0 - at.y));
  if (cut && texel.a < 0.5) discard;
  float light = 0.4 + 0.6 * abs(dot(normalize(up), normalize(eye - place)));
  vec2 field = floor(16.0 * at);
  float dark = mod(field.x + field.y, 2.0);
  if (look == 0) color = vec4(texel.rgb, 1);
  else if (look == 1) color = vec4(mix(vec3(at, 0.55), vec3(1), 0.25 + 0.5 * dark) * light, 1);
  else if (look == 2) color = vec4(mix(hue(fract(0.618034 * number)), vec3(1), 0.35) * light, 1);
  else if (look == 3) color = vec4(0.5 + 0.5 * normalize(up), 1);
  else if (look == 5) color = vec4(srgb(clamp(material(vec2(at.x, 1.0 - at.y), texel.rgb), 0.0, 1.0)), 1);
  else color = vec4(vec3(0.82) * light, 1);
}`;

class MeshView {
  /* `front`: azimuth and elevation of the first camera, radians. `cut`: the texture's opacity makes holes. `maps`: images
     of a material by the names of PARTS; what is absent stays off. `strength`: of the light it emits. */
  constructor(mesh, texture, { front, cut, label, maps = {}, strength = 1 }) {
    this.canvas = element("canvas", { tabIndex: 0, className: "view", role: "application", ariaRoleDescription: "3D view", ariaLabel: label });
    const gl = (this.gl = this.canvas.getContext("webgl2", { antialias: true }));
    if (!gl) throw new NoWebGL("This browser has no WebGL, which the 3D view needs");
    this.mesh = mesh;
    this.cut = cut;
    this.start = front;
    [this.azimuth, this.elevation] = front;
    this.distance = 3.6;
    this.look = "texture";
    this.wire = false;
    this.strength = strength;
    this.on = Object.fromEntries(Object.keys(PARTS).map((part) => [part, part === "color" || part in maps]));
    this.program = this.compiled();
    gl.useProgram(this.program);
    this.attribute("position", mesh.positions, 3, gl.UNSIGNED_SHORT, true);
    this.attribute("normal", mesh.normals, 3, gl.UNSIGNED_BYTE, true);
    this.attribute("uv", mesh.uv, 2, gl.UNSIGNED_SHORT, true);
    this.attribute("chart", mesh.chart, 1, gl.UNSIGNED_SHORT, false);
    this.corners = this.buffer(gl.ELEMENT_ARRAY_BUFFER, mesh.corners);
    this.edges = this.buffer(gl.ELEMENT_ARRAY_BUFFER, mesh.edges);
    Object.entries({ map: texture, ...maps }).forEach(([name, image], unit) => this.wear(name, image, unit));
    gl.enable(gl.DEPTH_TEST);
    gl.polygonOffset(1, 1);
    this.listen();
    this.resizes = new ResizeObserver(() => this.draw());
    this.resizes.observe(this.canvas);
  }

  compiled() {
    const { gl } = this, program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX_SHADER], [gl.FRAGMENT_SHADER, PIXEL_SHADER]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(`3D view: ${gl.getProgramInfoLog(program)}`);
    return program;
  }

  buffer(kind, data) {
    const { gl } = this, buffer = gl.createBuffer();
    gl.bindBuffer(kind, buffer);
    gl.bufferData(kind, data, gl.STATIC_DRAW);
    return buffer;
  }

  attribute(name, data, parts, kind, normalised) {
    const { gl } = this, place = gl.getAttribLocation(this.program, name);
    // rows of four bytes, as every driver likes them
    const size = data.BYTES_PER_ELEMENT, stride = Math.ceil((parts * size) / 4) * 4, step = stride / size;
    const rows = new data.constructor((data.length / parts) * step);
    for (let i = 0; i < data.length / parts; i += 1) rows.set(data.subarray(i * parts, (i + 1) * parts), i * step);
    this.buffer(gl.ARRAY_BUFFER, rows);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, parts, kind, normalised, stride, 0);
  }

  wear(name, image, unit) {
    const { gl } = this;
    gl.uniform1i(gl.getUniformLocation(this.program, name), unit);
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, image);
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
  }

  draw() {
    const { gl, canvas, program, mesh } = this;
    const scale = Math.min(devicePixelRatio || 1, 2);
    const width = Math.round(canvas.clientWidth * scale), height = Math.round(canvas.clientHeight * scale);
    if (!width || !height || gl.isContextLost()) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const at = (name) => gl.getUniformLocation(program, name), eye = this.eye();
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniformMatrix4fv(at("clip"), false, clipMatrix(eye, width / height));
    gl.uniform3fv(at("eye"), eye);
    gl.uniform1i(at("cut"), this.cut);
    gl.uniform1i(at("look"), Object.keys(LOOKS).indexOf(this.look));
    gl.uniform1iv(at("on"), Object.values(this.on));
    gl.uniform1f(at("strength"), this.strength);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.corners);
    gl.enable(gl.POLYGON_OFFSET_FILL);
    gl.disable(gl.CULL_FACE);
    gl.drawElements(gl.TRIANGLES, 3 * mesh.doubleSided, gl.UNSIGNED_INT, 0);
    gl.enable(gl.CULL_FACE);
    gl.drawElements(gl.TRIANGLES, mesh.corners.length - 3 * mesh.doubleSided, gl.UNSIGNED_INT, 12 * mesh.doubleSided);
    if (!this.wire) return;
    gl.uniform1i(at("look"), WIRE);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.edges);
    gl.drawElements(gl.LINES, mesh.edges.length, gl.UNSIGNED_INT, 0);
  }

  eye() {
    const flat = this.distance * Math.cos(this.elevation);
    return [flat * Math.cos(this.azimuth), flat * Math.sin(this.azimuth), this.distance * Math.sin(this.elevation)];
  }

  turn(azimuth, elevation, zoom = 1) {
    this.azimuth += azimuth;
    this.elevation = Math.max(-1.55, Math.min(1.55, this.elevation + elevation));
    this.distance = Math.max(1.2, Math.min(12, this.distance * zoom));
    this.draw();
  }

  /* Do what a key of MOVES does. */
  move(key) {
    if (key === "Home") this.show({ azimuth: this.start[0], elevation: this.start[1], distance: 3.6 });
    else this.turn(...MOVES[key].slice(2));
  }

  show(settings) {
    Object.assign(this, settings);
    this.draw();
  }

  listen() {
    const { canvas } = this, fingers = new Map();
    const spread = () => {
      const [a, b] = [...fingers.values()];
      return b ? Math.hypot(a.x - b.x, a.y - b.y) : 0;
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = fingers.get(event.pointerId);
      if (!last) return;
      const before = spread();
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (before) this.turn(0, 0, before / Math.max(spread(), 1));
      else this.turn((last.x - event.clientX) / 150, (event.clientY - last.y) / 150);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.turn(0, 0, Math.exp(event.deltaY / 600));
    }, { passive: false });
    canvas.addEventListener("dblclick", () => this.move("Home"));
    canvas.addEventListener("keydown", (event) => {
      const key = event.key === "=" ? "+" : event.key;
      if (!Object.hasOwn(MOVES, key) || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      this.move(key);
    });
  }

  /* Browsers keep few of these at a time. */
  free() {
    this.resizes.disconnect();
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }
}

/* From the dataset's frame (Z up) to clip coordinates, looking at the origin; column by column. */
function clipMatrix(eye, aspect) {
  const unit = (v) => v.map((x) => x / Math.hypot(...v)), dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const back = unit(eye), right = unit(cross([0, 0, 1], back)), up = cross(back, right);
  const near = 0.05, far = 20, focal = 1 / Math.tan(0.35), x = focal / Math.max(aspect, 1e-6), depth = -(far + near) / (far - near);
  const wide = Math.min(1, aspect);  // a narrow view keeps the whole mesh
  const rows = [
    right.map((v) => v * x * wide).concat(-dot(right, eye) * x * wide),
    up.map((v) => v * focal * wide).concat(-dot(up, eye) * focal * wide),
    back.map((v) => v * depth).concat(-dot(back, eye) * depth - (2 * far * near) / (far - near)),
    back.map((v) => -v).concat(dot(back, eye)),
  ];
  return Float32Array.from({ length: 16 }, (_, i) => rows[i % 4][Math.floor(i / 4)]);
}
