"use strict";
const $ = (id) => document.getElementById(id);
const cards = [...document.querySelectorAll(".card")];
const viewer = $("viewer");
const names = JSON.parse($("cluster-names").textContent); // number of a cluster → its name
const titleOf = (cluster) => names[cluster] ?? `Cluster ${cluster}`;
const inText = (cluster) => names[cluster] ?? `cluster ${cluster}`;
let opened = null; // the button whose image is in the viewer; null for an image of the map
let opener = null; // what has the focus again when the viewer is closed
let trail = []; // points of the map that were seen in the viewer, one from another
let seen = -1; // which of them is shown
let map = null; // what map.js offers, if the page has a map

// What is said of an image; its next cluster and its label may be missing.
const describe = (cluster, next, uncertainty, label) => [
  titleOf(cluster), next && `next nearest ${inText(next)}`, `uncertainty ${uncertainty}`, label && `label ${label}`,
].filter(Boolean).join(", ");

function showNames(card) {
  const { number } = card.dataset, title = card.querySelector("h3"), beside = document.createElement("span");
  card.dataset.name = (names[number] ?? "").toLowerCase();
  title.textContent = titleOf(number);
  beside.className = "soft";
  beside.textContent = `cluster ${number}`;
  if (names[number]) title.after(beside);
  card.querySelector(".on-map")?.setAttribute("aria-label", `Show ${inText(number)} on the map`);
  for (const link of card.querySelectorAll(".borderline a")) link.textContent = inText(link.hash.split("-")[1]);
}

// Filter: a bare number means a cluster or a label, as long as one has it; otherwise names count too.
function filter() {
  const query = $("filter").value.trim().toLowerCase();
  const number = query.match(/^(?:cluster\s*|#)?(\d+)$/);
  const exact = number && cards.filter((card) =>
    card.dataset.number === number[1] || card.dataset.label === query || card.dataset.name === query);
  let shown = 0;
  for (const card of cards) {
    let found = false;
    for (const thumb of card.querySelectorAll(".thumb")) {
      const hit = query !== "" && !exact?.length && thumb.title.toLowerCase().includes(query);
      thumb.classList.toggle("found", hit);
      found ||= hit;
    }
    const named = card.dataset.label.includes(query) || card.dataset.name.includes(query);
    card.hidden = exact?.length ? !exact.includes(card) : !(found || named);
    shown += !card.hidden;
  }
  $("shown").textContent = query ? `${shown} of ${cards.length} clusters` : `${cards.length} clusters`;
  $("nothing").hidden = shown > 0;
}

const orders = {
  size: (a, b) => b.dataset.size - a.dataset.size,
  smallest: (a, b) => a.dataset.size - b.dataset.size,
  uncertainty: (a, b) => b.dataset.uncertainty - a.dataset.uncertainty,
  number: (a, b) => a.dataset.number - b.dataset.number,
};

function sort() {
  const byNumber = orders.number;
  cards.sort((a, b) => orders[$("sort").value](a, b) || byNumber(a, b));
  $("cards").append(...cards);
}

// The viewer: one dialog for thumbnails, figures and images of the map; arrow keys walk through what is visible.
function show(source, title, details, kind, point) {
  $("large").src = source;
  $("large").alt = title;
  $("large").className = kind;
  $("name").textContent = title;
  $("details").textContent = details;
  map?.showNeighbors($("near"), point, visit);
  $("previous").disabled = opened === null && seen === 0;
  $("next").disabled = opened === null && seen === trail.length - 1;
  if (!viewer.open) {
    opener = document.activeElement;
    viewer.showModal();
  }
  viewer.scrollTop = 0;
}

function open(button) {
  opened = button;
  const image = button.querySelector("img"), card = button.closest(".card");
  const { point, next, uncertainty, label } = button.dataset;
  const details = card ? describe(card.dataset.number, next, uncertainty, label) : "";
  show(image.src, button.title, details, card ? `sample ${image.className}` : "", point ?? null);
  if (button.dataset.point) map?.select(Number(button.dataset.point));
}

// Show an image of the map: from the map itself, or from a neighbor in the viewer.
function visit(point) {
  if (!viewer.open || opened) trail = opened?.dataset.point ? [Number(opened.dataset.point)] : [];
  if (!viewer.open || opened) seen = trail.length - 1;
  opened = null;
  trail = [...trail.slice(0, seen + 1), point];
  seen = trail.length - 1;
  showPoint(point);
}

async function showPoint(point) {
  map.select(point);
  const thumb = document.querySelector(`.thumb[data-point="${point}"] img`); // larger than that of the map
  const source = thumb?.src ?? await map.thumbnail(point);
  const kind = thumb?.className ?? (map.pixelated ? "pixelated" : "");
  show(source, map.file(point), map.details(point), `sample ${kind}`, point);
}

function step(by) {
  if (!opened) {
    const other = trail[seen + by];
    if (other === undefined) return;
    seen += by;
    showPoint(other);
    return;
  }
  const kind = opened.classList.contains("thumb") ? ".thumb" : "figure button";
  const buttons = [...document.querySelectorAll(kind)].filter((button) => !button.closest("[hidden]"));
  open(buttons[(buttons.indexOf(opened) + by + buttons.length) % buttons.length]);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest(".thumb, figure button");
  if (button) open(button);
  else if (event.target === viewer) viewer.close(); // the backdrop
  const link = event.target.closest('a[href^="#cluster-"]');
  if (link && $(link.hash.slice(1))?.hidden) {
    $("filter").value = "";
    filter(); // before the browser scrolls there
  }
  const dot = event.target.closest(".on-map");
  if (dot) map?.only(Number(dot.closest(".card").dataset.number));
});
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") step(1);
  if (event.key === "ArrowLeft") step(-1);
});
viewer.addEventListener("close", () => opener?.focus());
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));

if (cards.length) {
  cards.forEach(showNames);
  $("filter").addEventListener("input", filter);
  $("sort").addEventListener("change", sort);
  sort(); // a browser may have kept the fields over a reload
  filter();
}
