"use strict";
// The viewer of a page to send: surface discs by WebGL 2, no library, no network.
// `about` and the points come from page.py; axes +Y up, a camera is right, down, ahead and eye.

const $ = (id) => document.getElementById(id);
const about = JSON.parse($("about").textContent);
const points = about.points;
const { size, reach } = points; // of the place, and of everything that was ever seen of it
const near = size * 1e-3;
const far = 4 * Math.max(reach, 2 * size);
const canvas = $("gl");
const gl = canvas.getContext("webgl2", { antialias: false, powerPreference: "high-performance" });
if (!gl) {
  $("say").textContent = "This page needs WebGL 2, which this browser does not offer.";
  throw new Error("no WebGL 2");
}

// ---- vectors

const add = (a, b) => a.map((x, i) => x + b[i]);
const sub = (a, b) => a.map((x, i) => x - b[i]);
const mul = (a, s) => a.map((x) => x * s);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [
  a[1] * b[2] - a[2] * b[1],
  a[2] * b[0] - a[0] * b[2],
  a[0] * b[1] - a[1] * b[0],
];
const unit = (a) => mul(a, 1 / Math.max(Math.hypot(...a), 1e-12));

function turned(v, axis, angle) {
  const c = Math.cos(angle);
  const along = mul(axis, dot(axis, v) * (1 - c));
  return add(add(mul(v, c), mul(cross(axis, v), Math.sin(angle))), along);
}

// ---- shaders

const PROJECT = `
uniform vec3 right, down, ahead, eye; uniform vec2 lens, range;
vec3 seen(vec3 place) {
  vec3 d = place - eye;
  return vec3(dot(d, right), dot(d, down), dot(d, ahead));
}
vec4 clip(vec3 p) {
  float n = range.x, f = range.y;
  return vec4(p.x * lens.x, -p.y * lens.y, (p.z * (f + n) - 2. * f * n) / (f - n), p.z);
}`;

// each point is a disc of its radius, turned by its normal
const discs = program(
  `
layout(location=0) in vec3 place; layout(location=1) in vec4 color; layout(location=2) in vec4 shape;
${PROJECT}
uniform float top, high, grow; uniform int made;
out vec3 tint; out vec3 normal;
void main() {
  vec3 p = seen(place);
  float radius = grow * top * shape.w * shape.w;
  if (grow > 1.) p *= 1. + 2. * radius / max(p.z, range.x);  // behind what the true discs show
  bool invented = color.a > .5;
  tint = invented && made == 1 ? mix(color.rgb, vec3(.95, .25, .95), .55) : color.rgb;
  normal = vec3(dot(shape.xyz, right), dot(shape.xyz, down), dot(shape.xyz, ahead));
  gl_Position = invented && made == 2 ? vec4(2, 2, 2, 1) : clip(p);
  gl_PointSize = clamp(1.5 * radius * lens.y * high / max(p.z, range.x) + 1., 1.5, 96.);
}`,
  `
in vec3 tint; in vec3 normal; out vec4 pixel;
void main() {
  vec2 q = 2. * gl_PointCoord - 1.;
  float z = abs(normal.z) > .15 ? -(normal.x * q.x + normal.y * q.y) / normal.z : 0.;
  if (dot(normal, normal) < .2) z = 0.;
  if (dot(q, q) + min(z * z, 24.) > 1.) discard;
  pixel = vec4(tint, 1);
}`,
);

const wires = program(
  `
layout(location=0) in vec3 place;
${PROJECT}
void main() { gl_Position = clip(seen(place)); }`,
  `
uniform vec3 tint; out vec4 pixel;
void main() { pixel = vec4(tint, 1); }`,
);

function program(vertex, fragment) {
  const made = gl.createProgram();
  for (const [type, text] of [
    [gl.VERTEX_SHADER, vertex],
    [gl.FRAGMENT_SHADER, fragment],
  ]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, "#version 300 es\nprecision highp float;\n" + text);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) {
      throw new Error(gl.getShaderInfoLog(shader));
    }
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  return made;
}

// ---- what the page carries

function carried(id) {
  const text = atob($(id).textContent.trim());
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  $(id).textContent = ""; // given back
  return bytes;
}

async function unpacked(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/** Positions (float32), and colour with mark and normal with radius (bytes), one row a point. */
function rows(buffer) {
  const { count, blocks } = points;
  const heads = new Float32Array(buffer, 0, 5 * blocks); // corner, step, number of points
  const steps = new Uint16Array(buffer, 20 * blocks, 3 * count);
  const columns = new Uint8Array(buffer, 20 * blocks + 6 * count, 8 * count);
  const places = new Float32Array(3 * count);
  const rest = new Uint8Array(8 * count);
  for (let head = 0, i = 0; head < heads.length; head += 5) {
    for (const end = i + heads[head + 4]; i < end; i++) {
      for (let k = 0; k < 3; k++) {
        places[3 * i + k] = heads[head + k] + heads[head + 3] * steps[k * count + i];
      }
      for (let k = 0; k < 8; k++) rest[8 * i + k] = columns[k * count + i];
    }
  }
  return [places, rest];
}

const COARSEST = 4;
let discArrays, wireArray, viewVertices, wireVertices;

function upload(places, rest) {
  const buffers = [places, rest].map((data) => {
    const buffer = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    return buffer;
  });
  discArrays = Array.from({ length: COARSEST }, (_, i) => {
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    attribute(buffers[0], 0, 3, gl.FLOAT, false, 12 * (i + 1), 0);
    attribute(buffers[1], 1, 4, gl.UNSIGNED_BYTE, true, 8 * (i + 1), 0);
    attribute(buffers[1], 2, 4, gl.BYTE, true, 8 * (i + 1), 4);
    return array;
  });
  const lines = [...about.views.flatMap(frustum)];
  viewVertices = lines.length / 3;
  const stops = about.path ? about.path.poses.map((pose) => pose.slice(9)) : [];
  for (let i = 1; i < stops.length; i++) lines.push(...stops[i - 1], ...stops[i]);
  wireVertices = lines.length / 3;
  wireArray = gl.createVertexArray();
  gl.bindVertexArray(wireArray);
  const buffer = gl.createBuffer();
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(lines), gl.STATIC_DRAW);
  attribute(buffer, 0, 3, gl.FLOAT, false, 0, 0);
}

function attribute(buffer, place, count, type, normalised, stride, offset) {
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.enableVertexAttribArray(place);
  gl.vertexAttribPointer(place, count, type, normalised, stride, offset);
}

function frustum(view) {
  const pose = poseOf(view.pose);
  const deep = 0.04 * size;
  const high = Math.tan(view.fov / 2) * deep;
  const corner = (x, y) =>
    [mul(pose.right, x * high * view.aspect), mul(pose.down, y * high), mul(pose.ahead, deep)].reduce(
      add,
      pose.eye,
    );
  const corners = [corner(-1, -1), corner(1, -1), corner(1, 1), corner(-1, 1)];
  return corners.flatMap((c, i) => [...pose.eye, ...c, ...c, ...corners[(i + 1) % 4]]);
}

// ---- the camera

let camera, fov, distance; // distance: of what the camera turns about
let flying = null; // frames along the path
let dirty = true;

const poseOf = (row) => ({
  right: row.slice(0, 3),
  down: row.slice(3, 6),
  ahead: row.slice(6, 9),
  eye: row.slice(9, 12),
});

function look(pose, angle) {
  camera = { ...pose };
  fov = angle || 1;
  const middle = dot(sub(points.middle, pose.eye), pose.ahead);
  distance = Math.min(Math.max(middle, 0.1 * size), size);
  dirty = true;
}

function home() {
  flying = null;
  const given = about.views.filter((view) => !view.generated);
  const view = (given.length ? given : about.views)[given.length >> 1];
  if (view) return look(poseOf(view.pose), view.fov);
  const ahead = unit([0, -0.35, -1]);
  const right = unit(cross(ahead, [0, 1, 0]));
  const eye = sub(points.middle, mul(ahead, 1.4 * size));
  look({ right, down: cross(ahead, right), ahead, eye }, 0.9);
}

function rotate(yaw, pitch, away) {
  const pivot = add(camera.eye, mul(camera.ahead, away));
  for (const [axis, angle] of [
    [[0, 1, 0], yaw],
    [camera.right, pitch],
  ]) {
    for (const key of ["right", "down", "ahead"]) {
      camera[key] = unit(turned(camera[key], axis, angle));
    }
  }
  camera.eye = sub(pivot, mul(camera.ahead, away));
  dirty = true;
}

function move(right, down, ahead) {
  camera.eye = [mul(camera.right, right), mul(camera.down, down), mul(camera.ahead, ahead)].reduce(
    add,
    camera.eye,
  );
  dirty = true;
}

// ---- mouse, touch and keys

const touches = new Map();
let spread = 0; // between two fingers

canvas.addEventListener("pointerdown", (event) => {
  flying = null;
  canvas.setPointerCapture(event.pointerId);
  touches.set(event.pointerId, [event.clientX, event.clientY]);
  spread = 0;
  canvas.focus();
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, (event) => {
    touches.delete(event.pointerId);
    spread = 0;
  });
}
canvas.addEventListener("pointermove", (event) => {
  const before = touches.get(event.pointerId);
  if (!before) return;
  touches.set(event.pointerId, [event.clientX, event.clientY]);
  const dx = (event.clientX - before[0]) / canvas.clientHeight;
  const dy = (event.clientY - before[1]) / canvas.clientHeight;
  if (touches.size > 1) {
    const [a, b] = touches.values();
    const now = Math.hypot(a[0] - b[0], a[1] - b[1]);
    if (spread) move(0, 0, ((now - spread) / canvas.clientHeight) * 2 * distance);
    spread = now;
    move((-dx * distance) / 2, (-dy * distance) / 2, 0);
  } else if (event.buttons & 2 || event.shiftKey) {
    move(-dx * distance, -dy * distance, 0);
  } else {
    rotate(-dx * 3, dy * 3, event.ctrlKey ? 0 : distance);
  }
});
canvas.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    flying = null;
    const nearer = -Math.sign(event.deltaY) * 0.12 * distance;
    move(0, 0, nearer);
    distance = Math.max(distance - nearer * 0.8, 0.02 * size);
  },
  { passive: false },
);
canvas.addEventListener("contextmenu", (event) => event.preventDefault());

const MOVES = { w: [0, 0, 1], s: [0, 0, -1], a: [-1, 0, 0], d: [1, 0, 0], q: [0, 1, 0], e: [0, -1, 0] };
const TURNS = { arrowleft: [1, 0], arrowright: [-1, 0], arrowup: [0, -1], arrowdown: [0, 1] };
const keys = new Set();
addEventListener("keydown", (event) => {
  if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey) return;
  keys.add(event.key.toLowerCase());
  if (event.key.startsWith("Arrow")) event.preventDefault();
});
addEventListener("keyup", (event) => keys.delete(event.key.toLowerCase()));
addEventListener("blur", () => keys.clear());

function steer(seconds) {
  for (const key of keys) {
    if (MOVES[key]) move(...mul(MOVES[key], 0.25 * size * seconds));
    else if (TURNS[key]) rotate(TURNS[key][0] * seconds, -TURNS[key][1] * seconds, 0);
    else continue;
    flying = null;
  }
}

// ---- drawing

let made = 0; // invented parts: 0 shown, 1 marked, 2 hidden
let showLines = false;
let frames = 0;
let coarse = 1; // while moving: fewer pixels and every `coarse`-th point
let drawn = 1;

function use(program) {
  const place = (name) => gl.getUniformLocation(program, name);
  const deep = 1 / Math.tan(fov / 2);
  gl.useProgram(program);
  for (const key of ["right", "down", "ahead", "eye"]) gl.uniform3fv(place(key), camera[key]);
  gl.uniform2f(place("lens"), (deep * canvas.height) / canvas.width, deep);
  gl.uniform2f(place("range"), near, far);
  return place;
}

function draw(every) {
  drawn = every;
  const ratio = Math.min(devicePixelRatio || 1, 2) / every;
  const width = Math.round(canvas.clientWidth * ratio);
  const height = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  gl.viewport(0, 0, width, height);
  gl.clearColor(0.08, 0.09, 0.1, 1);
  gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  gl.enable(gl.DEPTH_TEST);
  let place = use(discs);
  gl.uniform1f(place("top"), points.radius * Math.sqrt(every));
  gl.uniform1f(place("high"), height);
  gl.uniform1i(place("made"), made);
  gl.bindVertexArray(discArrays[every - 1]);
  // at rest, larger discs a little behind close what lies between the discs of one surface
  for (const grow of every === 1 ? [2.5, 1] : [1]) {
    gl.uniform1f(place("grow"), grow);
    gl.drawArrays(gl.POINTS, 0, Math.floor(points.count / every));
  }
  if (showLines) {
    place = use(wires);
    gl.bindVertexArray(wireArray);
    gl.uniform3f(place("tint"), 0.48, 0.72, 1);
    gl.drawArrays(gl.LINES, 0, viewVertices);
    gl.uniform3f(place("tint"), 1, 0.75, 0.3);
    gl.drawArrays(gl.LINES, viewVertices, wireVertices - viewVertices);
  }
  frames++;
}

function fly(seconds) {
  const { poses, fps } = about.path;
  flying += seconds * fps;
  const i = Math.floor(flying);
  if (i >= poses.length - 1) {
    flying = null;
    return;
  }
  const part = flying - i;
  const pose = poseOf(poses[i].map((x, k) => x * (1 - part) + poses[i + 1][k] * part));
  for (const key of ["right", "down", "ahead"]) pose[key] = unit(pose[key]);
  look(pose, about.path.fov);
}

let last = 0; // time of the last tick
let moving = 0; // time of the last picture, while every tick draws one
let moved = 0;
let quick = 0; // pictures in a row that were drawn with time to spare

function tick(now) {
  const seconds = Math.min((now - last) / 1000, 0.1);
  last = now;
  steer(seconds);
  if (flying !== null) fly(seconds);
  if (dirty) {
    const took = moving ? now - moving : 0;
    if (took > 70 && coarse < COARSEST) coarse++;
    else if (took && took < 25 && coarse > 1 && ++quick > 30) {
      coarse--;
      quick = 0;
    }
    moving = moved = now;
    dirty = false;
    draw(coarse);
  } else {
    moving = 0;
    if (drawn > 1 && now - moved > 200) draw(1); // at rest: all of it
  }
  requestAnimationFrame(tick);
}

// ---- buttons

$("made").onchange = (event) => {
  made = Number(event.target.value);
  dirty = true;
};
$("home").onclick = home;
$("lines").onclick = () => {
  showLines = !showLines;
  dirty = true;
};
if (about.path && about.path.poses.length > 1) {
  $("fly").hidden = false;
  $("fly").onclick = () => {
    flying = 0;
  };
}
const movie = carried("movie");
if (movie.length) {
  const video = $("video");
  $("film").hidden = false;
  $("film").onclick = () => {
    if (!video.src) video.src = URL.createObjectURL(new Blob([movie], { type: "video/mp4" }));
    video.hidden = !video.hidden;
    if (video.hidden) video.pause();
    else video.play();
  };
}
for (const view of about.views) {
  if (!view.image) continue;
  const button = document.createElement("button");
  const image = new Image();
  image.src = "data:image/jpeg;base64," + view.image;
  button.title = image.alt = view.generated ? "generated view" : "input view";
  if (view.generated) button.className = "made";
  button.append(image);
  button.onclick = () => {
    flying = null;
    look(poseOf(view.pose), view.fov);
  };
  $("views").append(button);
}
addEventListener("resize", () => (dirty = true));

// ---- and begin

unpacked(carried("points")).then((buffer) => {
  upload(...rows(buffer));
  home();
  $("say").textContent = [
    `${points.count.toLocaleString("en")} points`,
    "drag to orbit, Shift-drag to pan, wheel to zoom, W A S D Q E and arrows to move",
  ].join(" · ");
  requestAnimationFrame((now) => {
    last = now;
    tick(now);
    document.body.dataset.ready = String(Math.round(performance.now()));
  });
});

// for programs that drive the page
window.worldstereo = { frames: () => frames, settled: () => !dirty && drawn === 1, coarse: () => coarse };
