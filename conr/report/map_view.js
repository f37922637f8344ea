// The canvas of the map: which part of the plane it shows, points, thumbnails, names, and an overlay for the pointer.
const stage = $("stage"), base = $("map"), overlay = $("map-overlay");
const context = base.getContext("2d", { alpha: false });
const above = overlay.getContext("2d");
const WORLD = 65535, MOST_ZOOM = 80;
const CELL = 20; // the least size of a thumbnail on the map, in CSS pixels; the largest is twice that

const view = { x: WORLD / 2, y: WORLD / 2, scale: 1, fit: 1, width: 1, height: 1, ratio: 1 };
const look = { images: false, hovered: -1, selected: -1, lit: null, version: 0 };
const bounds = [WORLD, WORLD, 0, 0];
for (let i = 0; i < count; i++) {
  const x = positions[2 * i], y = positions[2 * i + 1];
  bounds[0] = Math.min(bounds[0], x); bounds[1] = Math.min(bounds[1], y);
  bounds[2] = Math.max(bounds[2], x); bounds[3] = Math.max(bounds[3], y);
}

// An order in which each cluster is everywhere, so that none covers the others: steps that meet every point once.
const gcd = (a, b) => (b ? gcd(b, a % b) : a);
let stride = Math.max(Math.floor(count * 0.618), 1);
while (gcd(stride, count) > 1) stride++;
const ranked = new Uint16Array(count);
for (let i = 0, point = 0; i < count; i++, point = (point + stride) % count) ranked[i] = point;

const legend = new Map(data.clusters.map((cluster) => [cluster.number, cluster]));
let colors = []; // of the theme, by number of a color: [red, green, blue]
let theme = {};

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  const hex = (name) => style.getPropertyValue(name).trim();
  const rgb = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
  theme = { ground: hex("--map"), ink: hex("--ink"), accent: hex("--accent"), faint: hex("--map-faint") };
  theme.groundRgb = rgb(theme.ground);
  theme.faintRgb = rgb(theme.faint);
  theme.palette = Array.from({ length: 10 }, (_, number) => hex(`--c${number}`));
  colors = [];
  for (const cluster of data.clusters) colors[cluster.number] = rgb(theme.palette[cluster.color]);
}

const colorOf = (cluster) => theme.palette[legend.get(cluster)?.color ?? 9];
const toX = (x) => (x - view.x) * view.scale + view.width / 2;
const toY = (y) => (y - view.y) * view.scale + view.height / 2;
const isLit = (point) => !look.lit || look.lit[point] === 1;

// Thumbnails: the plane in square cells, each with the image in it that is least uncertain; so a cell keeps its image
// while the view moves, and one of its quarters keeps it while the view comes nearer.
const certain = ranked.slice().sort((one, other) => ratios[one] - ratios[other]);
let cells = { level: -1, version: -1, owner: new Map() };

function cellsOfView() {
  const level = Math.max(Math.floor(Math.log2((WORLD + 1) * view.scale / CELL)), 0);
  if (cells.level === level && cells.version === look.version) return cells;
  const size = (WORLD + 1) / 2 ** level, across = 2 ** level;
  const owner = new Map();
  for (const point of certain) {
    if (!isLit(point)) continue;
    const key = Math.floor(positions[2 * point + 1] / size) * across + Math.floor(positions[2 * point] / size);
    if (!owner.has(key)) owner.set(key, point);
  }
  cells = { level, version: look.version, size, across, owner };
  return cells;
}

function cellOf(point) {
  const { size, across, owner } = cellsOfView();
  const column = Math.floor(positions[2 * point] / size), row = Math.floor(positions[2 * point + 1] / size);
  return { owner: owner.get(row * across + column), x: (column + 0.5) * size, y: (row + 0.5) * size };
}

// Where a point is drawn, in CSS pixels: in the middle of its cell if it is the cell's thumbnail.
function placeOf(point) {
  if (look.images) {
    const cell = cellOf(point);
    if (cell.owner === point) return [toX(cell.x), toY(cell.y)];
  }
  return [toX(positions[2 * point]), toY(positions[2 * point + 1])];
}

// The pixels of a disc with soft edges: x and y from its center, and how opaque, from 0 to 256.
function disc(radius, opacity) {
  const reach = Math.ceil(radius), found = [];
  for (let y = -reach; y <= reach; y++) {
    for (let x = -reach; x <= reach; x++) {
      const cover = Math.min(Math.max(radius + 0.5 - Math.hypot(x, y), 0), 1);
      if (cover > 0) found.push([x, y, Math.round(cover * opacity * 256)]);
    }
  }
  return found;
}

const packed = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;

// Mix a color into a pixel: red and blue at once, and green, in whole numbers.
function mix(under, color, opacity) {
  const rest = 256 - opacity;
  const redBlue = (((under & 0xff00ff) * rest + (color & 0xff00ff) * opacity) >>> 8) & 0xff00ff;
  const green = (((under & 0xff00) * rest + (color & 0xff00) * opacity) >>> 8) & 0xff00;
  return (0xff000000 | redBlue | green) >>> 0;
}

let pixels = null, buffer = null;

// Points go into an array of pixels: faster than 60,000 calls of the canvas, with or without a graphics card.
function drawPoints() {
  const width = base.width, height = base.height;
  if (pixels?.width !== width || pixels.height !== height) {
    pixels = context.createImageData(width, height);
    buffer = new Uint32Array(pixels.data.buffer);
  }
  buffer.fill(packed(theme.groundRgb));
  const spacing = Math.sqrt((view.width * view.height) / count) * Math.min(view.scale / view.fit, 12) ** 0.5;
  const radius = Math.min(Math.max(0.22 * spacing, 1.1), 7) * view.ratio;
  const shape = disc(radius, look.images ? 0.35 : 0.82);
  const offsets = Int32Array.from(shape, ([x, y]) => y * width + x);
  const opacities = Int32Array.from(shape, ([, , opacity]) => opacity);
  const inks = [], faint = packed(theme.faintRgb), reach = Math.ceil(radius);
  for (const [cluster, color] of colors.entries()) inks[cluster] = color ? packed(color) : 0;
  const scale = view.scale * view.ratio, left = width / 2 - view.x * scale, top = height / 2 - view.y * scale;
  for (const lit of look.lit ? [0, 1] : [1]) {
    for (let rank = 0; rank < count; rank++) {
      const point = ranked[rank];
      if (look.lit && look.lit[point] !== lit) continue;
      const x = Math.round(positions[2 * point] * scale + left), y = Math.round(positions[2 * point + 1] * scale + top);
      if (x < reach || y < reach || x >= width - reach || y >= height - reach) continue;
      const color = lit ? inks[clusters[point]] : faint, center = y * width + x;
      for (let k = 0; k < offsets.length; k++) {
        const at = center + offsets[k];
        buffer[at] = mix(buffer[at], color, opacities[k]);
      }
    }
  }
  context.putImageData(pixels, 0, 0);
}

function drawThumbnails() {
  const { size, across, owner } = cellsOfView();
  const edge = size * view.scale, gap = 1.5, frame = Math.min(Math.max(0.06 * edge, 1), 2.5);
  context.imageSmoothingEnabled = !data.pixelated;
  for (const [key, point] of owner) {
    const left = toX((key % across) * size), top = toY(Math.floor(key / across) * size);
    if (left > view.width || top > view.height || left < -edge || top < -edge) continue;
    context.fillStyle = colorOf(clusters[point]);
    context.fillRect(left + gap / 2, top + gap / 2, edge - gap, edge - gap);
    const bitmap = sheetOf(point);
    if (bitmap instanceof ImageBitmap) {
      drawTile(context, bitmap, point, left + gap / 2 + frame, top + gap / 2 + frame, edge - gap - 2 * frame);
    }
  }
}

const LONGEST_NAME = 24; // characters on the map

// Names at the clusters' centers, those of the largest first; one that would cover another is left out.
function drawNames() {
  const taken = [];
  context.font = `600 ${data.clusters.length > 40 ? 12 : 14}px ${getComputedStyle(document.body).fontFamily}`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineJoin = "round";
  for (const cluster of data.clusters) {
    if (look.shownClusters && !look.shownClusters.has(cluster.number)) continue;
    const whole = names[cluster.number] ?? String(cluster.number);
    const name = whole.length > LONGEST_NAME ? `${[...whole].slice(0, LONGEST_NAME - 1).join("")}…` : whole;
    const x = toX(cluster.x), y = toY(cluster.y), half = context.measureText(name).width / 2 + 5;
    if (x < -half || y < -10 || x > view.width + half || y > view.height + 10) continue;
    if (taken.some(([left, top, wide]) => Math.abs(left - x) < wide + half && Math.abs(top - y) < 19)) continue;
    taken.push([x, y, half]);
    context.strokeStyle = theme.ground;
    context.lineWidth = 4;
    context.strokeText(name, x, y);
    context.fillStyle = theme.ink;
    context.fillText(name, x, y);
  }
}

function ring(point, radius, color, width) {
  const [x, y] = placeOf(point);
  above.beginPath();
  above.arc(x, y, radius, 0, 2 * Math.PI);
  above.lineWidth = width + 2.5;
  above.strokeStyle = theme.ground;
  above.stroke();
  above.lineWidth = width;
  above.strokeStyle = color;
  above.stroke();
}

function drawOverlay() {
  above.setTransform(view.ratio, 0, 0, view.ratio, 0, 0);
  above.clearRect(0, 0, view.width, view.height);
  if (look.selected >= 0) {
    const [x, y] = placeOf(look.selected);
    above.globalAlpha = 0.75;
    above.lineWidth = 1.5;
    above.strokeStyle = theme.ink;
    for (const other of neighborsOf(look.selected)) {
      above.beginPath();
      above.moveTo(x, y);
      above.lineTo(...placeOf(other));
      above.stroke();
    }
    above.globalAlpha = 1;
    for (const other of neighborsOf(look.selected)) ring(other, 5, colorOf(clusters[other]), 2);
    ring(look.selected, 9, theme.accent, 3);
  }
  if (look.hovered >= 0 && look.hovered !== look.selected) ring(look.hovered, 8, theme.ink, 2);
}

let planned = false;

function redraw() {
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => {
    planned = false;
    drawPoints();
    context.setTransform(view.ratio, 0, 0, view.ratio, 0, 0);
    if (look.images) drawThumbnails();
    drawNames();
    drawOverlay();
    stage.dataset.drawn ??= String(Math.round(performance.now())); // the first time, in milliseconds
  });
}

function fitView() {
  const width = Math.max(bounds[2] - bounds[0], 1), height = Math.max(bounds[3] - bounds[1], 1);
  view.fit = Math.min((view.width - 48) / width, (view.height - 48) / height);
  view.x = (bounds[0] + bounds[2]) / 2;
  view.y = (bounds[1] + bounds[3]) / 2;
  view.scale = view.fit;
}

function resize() {
  const { width, height } = stage.getBoundingClientRect();
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  if (width === view.width && height === view.height && ratio === view.ratio) return;
  const zoom = view.scale / view.fit, { x, y } = view;
  const first = view.width === 1;
  Object.assign(view, { width, height, ratio });
  for (const canvas of [base, overlay]) {
    canvas.width = Math.round(width * view.ratio);
    canvas.height = Math.round(height * view.ratio);
  }
  fitView();
  if (!first && zoom > 1) Object.assign(view, { x, y, scale: view.fit * zoom });
  redraw();
}

// Zoom so that the plane's point under a place on the canvas stays there.
function zoomAt(factor, x = view.width / 2, y = view.height / 2) {
  const scale = Math.min(Math.max(view.scale * factor, view.fit), view.fit * MOST_ZOOM);
  const worldX = (x - view.width / 2) / view.scale + view.x, worldY = (y - view.height / 2) / view.scale + view.y;
  moveTo(worldX - (x - view.width / 2) / scale, worldY - (y - view.height / 2) / scale, scale);
}

// The middle of the canvas stays within the images.
function moveTo(x, y, scale = view.scale) {
  view.scale = scale;
  view.x = Math.min(Math.max(x, bounds[0]), bounds[2]);
  view.y = Math.min(Math.max(y, bounds[1]), bounds[3]);
  if (scale <= view.fit * 1.0001) fitView();
  base.style.touchAction = view.scale > view.fit ? "none" : "pan-y";
  redraw();
}

function nearestTo(x, y, within) {
  let best = -1, least = (within / view.scale) ** 2;
  if (look.images) {
    const { size, across, owner } = cellsOfView();
    const column = Math.floor(((x - view.width / 2) / view.scale + view.x) / size);
    const row = Math.floor(((y - view.height / 2) / view.scale + view.y) / size);
    const found = column >= 0 && column < across ? owner.get(row * across + column) : undefined;
    if (found !== undefined) return found;
  }
  const worldX = (x - view.width / 2) / view.scale + view.x, worldY = (y - view.height / 2) / view.scale + view.y;
  for (let point = 0; point < count; point++) {
    const far = (positions[2 * point] - worldX) ** 2 + (positions[2 * point + 1] - worldY) ** 2;
    if (far < least && isLit(point)) { least = far; best = point; }
  }
  return best;
}
