"use strict";
const $ = (id) => document.getElementById(id);
const cards = [...document.querySelectorAll(".card")];
const viewer = $("viewer");
let opened = null; // the button whose image is in the viewer

// Filter: a bare number means a cluster or a label, as long as one has it; otherwise names count too.
function filter() {
  const query = $("filter").value.trim().toLowerCase();
  const number = query.match(/^(?:cluster\s*|#)?(\d+)$/);
  const exact = number && cards.filter((card) =>
    card.dataset.number === number[1] || card.dataset.label === query);
  let shown = 0;
  for (const card of cards) {
    let found = false;
    for (const thumb of card.querySelectorAll(".thumb")) {
      const hit = query !== "" && !exact?.length && thumb.title.toLowerCase().includes(query);
      thumb.classList.toggle("found", hit);
      found ||= hit;
    }
    card.hidden = exact?.length ? !exact.includes(card) : !(found || card.dataset.label.includes(query));
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

// The viewer: one dialog for thumbnails and figures; arrow keys walk through what is visible.
function open(button) {
  opened = button;
  const image = button.querySelector("img");
  const sample = button.classList.contains("thumb");
  $("large").src = image.src;
  $("large").alt = button.title;
  $("large").className = sample ? `sample ${image.className}` : "";
  $("name").textContent = button.title;
  $("details").textContent = button.dataset.details;
  if (!viewer.open) viewer.showModal();
  viewer.scrollTop = 0;
}

function step(by) {
  const kind = opened.classList.contains("thumb") ? ".thumb" : "figure button";
  const buttons = [...document.querySelectorAll(kind)].filter((button) => !button.closest("[hidden]"));
  open(buttons[(buttons.indexOf(opened) + by + buttons.length) % buttons.length]);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest(".thumb, figure button");
  if (button) open(button);
  else if (event.target === viewer) viewer.close(); // the backdrop
  const link = event.target.closest(".card a");
  if (link && $(link.hash.slice(1))?.hidden) {
    $("filter").value = "";
    filter(); // before the browser scrolls there
  }
});
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") step(1);
  if (event.key === "ArrowLeft") step(-1);
});
viewer.addEventListener("close", () => opened.focus());
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));

if (cards.length) {
  $("filter").addEventListener("input", filter);
  $("sort").addEventListener("change", sort);
  sort(); // a browser may have kept the fields over a reload
  filter();
}
