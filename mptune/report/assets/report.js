"use strict";

// --- tables: a click on a header sorts; a second click turns the order round ---

const keyOf = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort);
};

const inOrder = (a, b) => {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a.localeCompare(b, undefined, { numeric: true });
};

const sortBy = (table, header) => {
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  const body = table.tBodies[0];
  const rows = [...body.rows].sort(
    (a, b) => inOrder(keyOf(a, header.cellIndex), keyOf(b, header.cellIndex)) * (ascending ? 1 : -1),
  );
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  body.append(...rows);
};

// --- filters: rows stay that hold every word, and the chosen value of every menu ---

const matches = (row, words, menus) =>
  words.every((word) => row.textContent.toLowerCase().includes(word)) &&
  menus.every((m) => !m.value || row.cells[m.dataset.column].textContent.trim() === m.value);

const setUpFilter = (bar) => {
  const field = bar.querySelector("input");
  const menus = [...bar.querySelectorAll("select")];
  const rows = [...bar.parentElement.querySelector("tbody").rows];
  const output = bar.querySelector("output");
  const update = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !matches(row, words, menus);
    const shown = rows.filter((row) => !row.hidden).length;
    output.textContent = output.dataset.words.replace("{shown}", shown).replace("{all}", rows.length);
  };
  for (const control of [field, ...menus]) control.addEventListener("input", update);
  update();
};

// --- figures: the nearest point says its numbers, to the pointer and to the arrow keys ---

const pointsOf = (svg) =>
  [...svg.querySelectorAll("[data-tip]")].map((mark) => ({
    mark,
    x: Number(mark.dataset.x),
    y: Number(mark.dataset.y),
  }));

const ringOf = (svg) => {
  const found = svg.querySelector(".ring");
  if (found) return found;
  const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  ring.setAttribute("class", "ring");
  ring.setAttribute("r", "7");
  svg.append(ring);
  return ring;
};

const placeTip = (tip, svg, point) => {
  const box = svg.getBoundingClientRect();
  const scale = box.width / svg.viewBox.baseVal.width;
  const x = box.left + point.x * scale;
  const y = box.top + point.y * scale;
  const left = Math.min(Math.max(8, x - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
  const above = y - tip.offsetHeight - 14;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${(above > 4 ? above : y + 16) + scrollY}px`;
};

const showPoint = (tip, svg, point) => {
  const [first, ...rest] = point.mark.dataset.tip.split("\n");
  const title = document.createElement("strong");
  title.textContent = first;
  tip.replaceChildren(title, ...rest.map((line) => {
    const row = document.createElement("span");
    row.textContent = line;
    return row;
  }));
  tip.hidden = false;
  const ring = ringOf(svg);
  ring.setAttribute("cx", point.x);
  ring.setAttribute("cy", point.y);
  ring.style.stroke = point.mark.style.stroke || point.mark.style.fill;
  placeTip(tip, svg, point);
};

const hidePoint = (tip, svg) => {
  tip.hidden = true;
  svg.querySelector(".ring")?.remove();
};

const nearest = (svg, points, event) => {
  const box = svg.getBoundingClientRect();
  const scale = svg.viewBox.baseVal.width / box.width;
  const x = (event.clientX - box.left) * scale;
  const y = (event.clientY - box.top) * scale;
  let best = null;
  let least = 60 * 60;
  for (const point of points) {
    const distance = (point.x - x) ** 2 + (point.y - y) ** 2;
    if (distance < least) [best, least] = [point, distance];
  }
  return best;
};

const setUpFigure = (svg, tip) => {
  const points = pointsOf(svg);
  let at = -1;
  const show = (point) => {
    at = points.indexOf(point);
    if (point) showPoint(tip, svg, point);
    else hidePoint(tip, svg);
  };
  svg.addEventListener("pointermove", (event) => show(nearest(svg, points, event)));
  svg.addEventListener("pointerdown", (event) => show(nearest(svg, points, event)));
  svg.addEventListener("pointerleave", () => show(null));
  svg.addEventListener("blur", () => show(null));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") show(null);
    if (!step || !points.length) return;
    event.preventDefault();
    show(points[(at + step + points.length) % points.length]);
  });
};

// A series that is pointed at in the legend stands out.
const setUpLegend = (svg) => {
  const emphasise = (series) => {
    for (const shape of svg.querySelectorAll("[data-s]")) {
      shape.classList.toggle("dim", series !== null && shape.dataset.s !== series);
    }
  };
  for (const label of svg.querySelectorAll("text[data-s]")) {
    label.addEventListener("pointerenter", () => emphasise(label.dataset.s));
    label.addEventListener("pointerleave", () => emphasise(null));
  }
};

// --- one of several figures is seen ---

const setUpSwitch = (group) => {
  const buttons = [...group.querySelectorAll(".choices button")];
  const figures = [...group.querySelectorAll("figure")];
  const choose = (chosen) => {
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === chosen)));
    figures.forEach((figure, k) => { figure.classList.toggle("unchosen", k !== chosen); });
  };
  buttons.forEach((button, k) => button.addEventListener("click", () => choose(k)));
  choose(0);
};

// --- a figure as a file, in the colours that are seen ---

const saveFigure = (figure) => {
  const shown = [...figure.querySelectorAll("svg")].find((svg) => svg.getBoundingClientRect().width);
  const copy = shown.cloneNode(true);
  const colours = getComputedStyle(document.documentElement);
  const text = new XMLSerializer().serializeToString(copy)
    .replace(/var\((--[\w-]+)\)/g, (_, name) => colours.getPropertyValue(name).trim())
    .replace("<svg", '<svg font-family="sans-serif"');
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  link.download = `${figure.id.replace("figure-", "")}.svg`;
  link.click();
  URL.revokeObjectURL(link.href);
};

document.addEventListener("DOMContentLoaded", () => {
  const tip = document.querySelector(".tip");
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const header of table.tHead.rows[0].cells) {
      header.querySelector("button").addEventListener("click", () => sortBy(table, header));
    }
  }
  document.querySelectorAll(".filter").forEach(setUpFilter);
  document.querySelectorAll(".switch").forEach(setUpSwitch);
  for (const svg of document.querySelectorAll("figure svg")) {
    setUpFigure(svg, tip);
    setUpLegend(svg);
  }
  for (const button of document.querySelectorAll(".save")) {
    button.addEventListener("click", () => saveFigure(button.closest("figure")));
  }
});
