// The map's user: pointer, touch, keyboard, legend, search, and the panel beside it.
const chosen = new Set(); // clusters that were clicked in the legend; empty for all
let pointed = null; // the cluster of the legend under the pointer
const tip = $("tip");

function select(point, { reveal = false } = {}) {
  look.selected = point;
  $("panel-hint").hidden = point >= 0;
  $("panel-body").hidden = point < 0;
  if (point >= 0) {
    $("panel-name").textContent = fileOf(point);
    $("panel-details").textContent = detailsOf(point);
    $("panel-cluster").textContent = `All of ${inText(clusters[point])}`;
    $("panel-cluster").href = `#cluster-${clusters[point]}`;
    $("panel-open").setAttribute("aria-label", `Enlarge ${fileOf(point)}`);
    setImage($("panel-image"), point);
    showNeighbors($("panel-near"), point, (other) => { select(other, { reveal: true }); announce(other); });
    if (reveal) revealPoint(point);
  }
  redraw();
}

function setImage(image, point) {
  image.className = data.pixelated ? "pixelated" : "";
  image.dataset.point = point;
  image.removeAttribute("src");
  thumbnail(point).then((source) => { if (image.dataset.point === String(point)) image.src = source; });
}

// Buttons of the nearest images of a point; none for what is not on the map.
function showNeighbors(place, point, onClick) {
  place.replaceChildren();
  place.closest(".nearest").hidden = point === null || data.near === 0;
  if (point === null) return;
  for (const other of neighborsOf(Number(point))) {
    const button = document.createElement("button"), image = document.createElement("img");
    button.type = "button";
    button.className = "neighbor";
    button.title = `${fileOf(other)}\n${detailsOf(other)}`;
    button.setAttribute("aria-label", `${fileOf(other)}, ${titleOf(clusters[other])}`);
    button.style.setProperty("--color", colorOf(clusters[other]));
    image.alt = "";
    setImage(image, other);
    button.append(image);
    button.addEventListener("click", () => onClick(other));
    place.append(button);
  }
}

function announce(point) {
  $("map-said").textContent = point < 0 ? "" : `${fileOf(point)}, ${detailsOf(point)}`;
}

function revealPoint(point) {
  const x = toX(positions[2 * point]), y = toY(positions[2 * point + 1]);
  if (x < 30 || y < 30 || x > view.width - 30 || y > view.height - 30) {
    moveTo(positions[2 * point], positions[2 * point + 1]);
  }
}

function hover(point) {
  if (point === look.hovered) return;
  look.hovered = point;
  base.style.cursor = point < 0 ? "" : "pointer";
  tip.hidden = point < 0;
  if (point >= 0) {
    setImage($("tip-image"), point);
    $("tip-name").textContent = fileOf(point).split("/").pop();
    $("tip-cluster").textContent = titleOf(clusters[point]) + (labelOf(point) ? `, label ${labelOf(point)}` : "");
    const [left, top] = placeOf(point);
    tip.style.left = `${Math.min(Math.max(left - tip.offsetWidth / 2, 4), view.width - tip.offsetWidth - 4)}px`;
    tip.style.top = `${top - tip.offsetHeight - 16 > 0 ? top - tip.offsetHeight - 16 : top + 16}px`;
  }
  drawOverlay();
}

// What is lit: the cluster that is pointed at, or what legend and search leave.
function light() {
  const query = $("find").value.trim().toLowerCase();
  const only = pointed !== null ? new Set([pointed]) : chosen;
  const named = new Set(query ? data.clusters.map(({ number }) => number).filter((each) => isCalled(each, query)) : []);
  const number = /^(?:cluster\s*)?\d+$/.test(query) && named.size > 0; // then file names do not count
  look.lit = only.size || query ? new Uint8Array(count) : null;
  look.shownClusters = only.size ? only : null;
  look.version++;
  let shown = look.lit ? 0 : count;
  for (let point = 0; look.lit && point < count; point++) {
    const cluster = clusters[point];
    if (only.size && !only.has(cluster)) continue;
    if (query && pointed === null && !named.has(cluster) && (number || !matches(point, query))) continue;
    look.lit[point] = 1;
    shown++;
  }
  if (pointed === null) {
    const all = `${count.toLocaleString("en")} images`;
    $("map-shown").textContent = look.lit ? `${shown.toLocaleString("en")} of ${all}` : all;
    $("map-all").hidden = !look.lit;
  }
  redraw();
}

const isCalled = (cluster, query) => [String(cluster), `cluster ${cluster}`].includes(query)
  || Boolean(names[cluster]?.toLowerCase().includes(query));
const matches = (point, query) =>
  fileOf(point).toLowerCase().includes(query) || labelOf(point).toLowerCase().includes(query);

// Show only some clusters, or all if there are none.
function choose(these) {
  chosen.clear();
  for (const cluster of these) chosen.add(cluster);
  for (const button of $("legend").children) {
    button.setAttribute("aria-pressed", String(chosen.has(Number(button.dataset.cluster))));
  }
  light();
}

function showAll() {
  $("find").value = "";
  choose([]);
}

// Show one cluster only, from its card.
function only(cluster) {
  $("find").value = "";
  choose([cluster]);
  $("images-map").scrollIntoView();
  base.focus({ preventScroll: true });
}

function pointAt(cluster) {
  pointed = cluster;
  light();
}

function fillLegend() {
  for (const cluster of data.clusters) {
    const [button, dot, size] = ["button", "i", "small"].map((tag) => document.createElement(tag));
    button.type = "button";
    button.dataset.cluster = cluster.number;
    button.setAttribute("aria-pressed", "false");
    dot.style.background = `var(--c${cluster.color})`;
    size.textContent = cluster.size.toLocaleString("en");
    button.append(dot, titleOf(cluster.number), size);
    button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") pointAt(cluster.number); });
    button.addEventListener("pointerleave", () => pointAt(null));
    button.addEventListener("click", () => {
      pointed = null;
      const others = [...chosen].filter((other) => other !== cluster.number);
      choose(chosen.has(cluster.number) ? others : [...others, cluster.number]);
    });
    $("legend").append(button);
  }
}

// Pointer: drag to move, two fingers to zoom, a click without a move selects.
const pointers = new Map();
let moved = 0, spread = 0;
const place = (event) => {
  const box = base.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

base.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  base.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, place(event));
  if (pointers.size === 1) moved = 0;
  spread = 0;
});

base.addEventListener("pointermove", (event) => {
  const [x, y] = place(event), last = pointers.get(event.pointerId);
  if (!last) {
    if (event.pointerType === "mouse") hover(nearestTo(x, y, 14));
    return;
  }
  pointers.set(event.pointerId, [x, y]);
  moved += Math.hypot(x - last[0], y - last[1]);
  if (moved < 5) return;
  hover(-1);
  if (pointers.size === 2) {
    const [[ax, ay], [bx, by]] = pointers.values();
    const distance = Math.hypot(ax - bx, ay - by);
    if (spread) zoomAt(distance / spread, (ax + bx) / 2, (ay + by) / 2);
    spread = distance;
  }
  moveTo(view.x - (x - last[0]) / pointers.size / view.scale, view.y - (y - last[1]) / pointers.size / view.scale);
});

for (const name of ["pointerup", "pointercancel"]) {
  base.addEventListener(name, (event) => {
    const known = pointers.delete(event.pointerId);
    spread = 0;
    if (name === "pointercancel" || !known || moved >= 5 || pointers.size) return;
    const point = nearestTo(...place(event), event.pointerType === "mouse" ? 16 : 26);
    hover(-1);
    select(point);
    announce(point);
    if (point >= 0 && window.innerWidth < 900) $("panel").scrollIntoView({ block: "nearest" });
  });
}
base.addEventListener("pointerleave", () => hover(-1));
base.addEventListener("dblclick", (event) => zoomAt(2, ...place(event)));

// The wheel zooms, but does not stop a page that is being scrolled over the map.
let scrolled = -Infinity; // when it last did
document.addEventListener("wheel", (event) => {
  const onMap = event.target === base, out = event.deltaY > 0 && view.scale <= view.fit;
  if (!onMap || out || (event.timeStamp - scrolled < 400 && !event.ctrlKey)) {
    scrolled = event.timeStamp;
    return;
  }
  event.preventDefault();
  hover(-1);
  zoomAt(2 ** (-event.deltaY * (event.deltaMode ? 0.06 : event.ctrlKey ? 0.01 : 0.0025)), ...place(event));
}, { passive: false });

// Keyboard: arrows go to the nearest image in their direction.
function neighborTowards(dx, dy) {
  if (look.selected < 0) return nearestTo(view.width / 2, view.height / 2, Infinity);
  const x = positions[2 * look.selected], y = positions[2 * look.selected + 1];
  let best = look.selected, least = Infinity;
  for (let point = 0; point < count; point++) {
    const along = (positions[2 * point] - x) * dx + (positions[2 * point + 1] - y) * dy;
    const aside = Math.abs((positions[2 * point] - x) * dy) + Math.abs((positions[2 * point + 1] - y) * dx);
    if (along > 0 && aside <= along && along + 2 * aside < least && isLit(point)) {
      least = along + 2 * aside;
      best = point;
    }
  }
  return best;
}

const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
base.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = arrows[event.key];
  if (arrow) {
    const point = neighborTowards(...arrow);
    select(point, { reveal: true });
    announce(point);
  } else if (event.key === "Enter" && look.selected >= 0) visit(look.selected);
  else if (event.key === "+" || event.key === "=") zoomAt(1.5);
  else if (event.key === "-") zoomAt(1 / 1.5);
  else if (event.key === "0") { fitView(); redraw(); }
  else if (event.key === "Escape") select(-1);
  else return;
  event.preventDefault();
});

function setImages(on) {
  look.images = on;
  $("map-images").setAttribute("aria-pressed", String(on));
  $("map-points").setAttribute("aria-pressed", String(!on));
  redraw();
}

map = { select, showNeighbors, thumbnail, only, file: fileOf, details: detailsOf, pixelated: data.pixelated };
$("map-images").addEventListener("click", () => setImages(true));
$("map-points").addEventListener("click", () => setImages(false));
$("map-in").addEventListener("click", () => zoomAt(1.6));
$("map-out").addEventListener("click", () => zoomAt(1 / 1.6));
$("map-fit").addEventListener("click", () => { fitView(); redraw(); });
$("map-all").addEventListener("click", showAll);
$("find").addEventListener("input", light);
$("panel-open").addEventListener("click", () => visit(look.selected));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readTheme(); redraw(); });
readTheme();
fillLegend();
resize();
light();
new ResizeObserver(resize).observe(stage);
