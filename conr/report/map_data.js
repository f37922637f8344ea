// The images of the map: arrays from base64, and thumbnails from sprite sheets, which are decoded when one is needed.
const data = JSON.parse($("map-data").textContent);
const NONE = 65535;

function bytes(text) {
  const raw = atob(text);
  const found = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
  return found;
}

const words = (text) => new Uint16Array(bytes(text).buffer);
const count = data.count;
const positions = words(data.positions); // x and y of each point
const clusters = words(data.cluster);
const nextClusters = words(data.next);
const labels = words(data.label);
const ratios = bytes(data.ratio);
const tiles = words(data.tile);
const neighbors = words(data.neighbors);
const perSheet = data.columns ** 2;

const fileOf = (point) => data.folders[data.files[2 * point]] + data.files[2 * point + 1];
const labelOf = (point) => data.labels[labels[point]] ?? "";
const neighborsOf = (point) => [...neighbors.subarray(point * data.near, (point + 1) * data.near)];

function detailsOf(point) {
  const next = nextClusters[point] === NONE ? "" : String(nextClusters[point]);
  return describe(clusters[point], next, (ratios[point] * data.ratioStep).toFixed(2), labelOf(point));
}

// The sheets are behind this script, so that the map is there before the browser has read them.
const read = new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve));
const sheets = []; // a bitmap, or the promise of one

function sheetOf(point) {
  const number = Math.floor(tiles[point] / perSheet);
  sheets[number] ??= decode(number);
  return sheets[number];
}

async function decode(number) {
  await read;
  const text = $(`sheet-${number}`);
  sheets[number] = await createImageBitmap(new Blob([bytes(text.textContent)], { type: "image/webp" }));
  text.remove();
  redraw();
  return sheets[number];
}

function drawTile(target, bitmap, point, x, y, size) {
  const tile = tiles[point] % perSheet;
  const edge = data.edge;
  const left = (tile % data.columns) * edge, top = Math.floor(tile / data.columns) * edge;
  target.drawImage(bitmap, left, top, edge, edge, x, y, size, size);
}

const thumbnails = new Map(); // the promise of a data URI

function thumbnail(point) {
  if (!thumbnails.has(point)) {
    thumbnails.set(point, Promise.resolve(sheetOf(point)).then((bitmap) => {
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = data.edge;
      drawTile(canvas.getContext("2d"), bitmap, point, 0, 0, data.edge);
      return canvas.toDataURL();
    }));
  }
  return thumbnails.get(point);
}
