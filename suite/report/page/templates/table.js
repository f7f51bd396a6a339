"use strict";
const table = document.getElementById("results");
const body = table.tBodies[0];
const rows = Array.from(body.rows, (row, place) => ({
  row, place, cells: Array.from(row.cells, (cell) => cell.textContent), text: row.textContent.toLowerCase(),
}));

function sortBy(column, descending) {
  const numeric = (entry) => entry.row.cells[column].dataset.v;
  const key = (entry) => {
    const value = numeric(entry);
    return value === undefined ? entry.cells[column] : value === "" ? "" : Number(value);
  };
  const sign = descending ? -1 : 1;
  const keyed = rows.map((entry) => [key(entry), entry]);
  keyed.sort(([a, first], [b, second]) => {
    if (a === "" || b === "") return (a === "") - (b === "") || first.place - second.place;
    const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
    return sign * order || first.place - second.place;
  });
  const sorted = document.createDocumentFragment();
  for (const [, entry] of keyed) sorted.append(entry.row);
  body.append(sorted);
}

const heads = Array.from(table.tHead.rows[0].cells);
for (const [column, head] of heads.entries()) {
  head.querySelector("button")?.addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    sortBy(column, descending);
  });
}

const words = document.getElementById("filter");
const menus = Array.from(document.querySelectorAll("select[data-column]"));
function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = menus.filter((menu) => menu.value).map((menu) => [Number(menu.dataset.column), menu.value]);
  let shown = 0;
  for (const { row, cells, text } of rows) {
    const fits = wanted.every((word) => text.includes(word)) && chosen.every(([column, value]) => cells[column] === value);
    row.hidden = !fits;
    shown += fits;
  }
  document.getElementById("count").textContent = shown === rows.length ? `${shown} lines` : `${shown} of ${rows.length} lines`;
}
const form = words.form;
form.addEventListener("input", filter);
form.addEventListener("change", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
filter();  // a browser may keep what was typed before a reload
