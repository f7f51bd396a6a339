"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byKey = new Map(data.runs.map((run) => [run.key, run]));
const article = document.getElementById("run");
const list = document.getElementById("list");
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
function draw(parent, name, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  parent.append(node);
  return node;
}
function facts(title, pairs) {
  if (!pairs.length) return "";
  const rows = pairs.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, String(value))));
  const table = make("table", { class: "facts" }, make("tbody", {}, ...rows));
  return make("section", {}, make("h3", {}, title), make("div", { class: "scroll" }, table));
}
function origin(provenance) {
  return provenance ? [...data.provenance[provenance.shared], ...provenance.own] : [];
}

// ---- curves -----------------------------------------------------------------------------------------------------------

const short = (value) => (value === 0 || Math.abs(value) >= 0.01 ? String(Number(value.toPrecision(4))) : value.toExponential(1));
function chart(name, epochs, values) {
  const width = 250, height = 150, left = 10, right = 10, top = 34, bottom = 24;
  const known = values.filter((value) => value !== null);
  const svg = document.createElementNS(SVG, "svg");
  if (!known.length) return svg;
  const low = Math.min(...known), high = Math.max(...known), first = epochs[0], last = epochs.at(-1);
  for (const [key, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}`, role: "img" })) svg.setAttribute(key, value);
  svg.setAttribute("aria-label", `${name} over epochs ${first} to ${last}: from ${short(known[0])} to ${short(known.at(-1))}`);
  const x = (epoch) => left + (width - left - right) * (last === first ? 0.5 : (epoch - first) / (last - first));
  const y = (value) => height - bottom - (height - top - bottom) * (high === low ? 0.5 : (value - low) / (high - low));
  draw(svg, "text", { x: left, y: 15, "font-weight": 600 }, name);
  draw(svg, "text", { x: left, y: 28, class: "faint" }, `${short(low)} to ${short(high)}`);
  draw(svg, "text", { x: width - right, y: 28, "text-anchor": "end", class: "faint" }, `last ${short(known.at(-1))}`);
  draw(svg, "path", { d: `M${left} ${height - bottom}H${width - right}`, class: "axis" });
  draw(svg, "text", { x: left, y: height - 8, class: "faint" }, `epoch ${first}`);
  draw(svg, "text", { x: width - right, y: height - 8, "text-anchor": "end", class: "faint" }, String(last));
  const steps = epochs.map((epoch, i) => [epoch, values[i]]).filter(([, value]) => value !== null);
  draw(svg, "path", { d: "M" + steps.map(([epoch, value]) => `${x(epoch).toFixed(1)} ${y(value).toFixed(1)}`).join("L"), class: "curve" });
  return svg;
}
function curves(run) {
  return run.curves.map(([title, key]) => {
    const { epoch, ...columns } = data.curves[key];
    const charts = Object.entries(columns).map(([name, values]) => chart(name, epoch, values));
    return make("section", {}, make("h3", {}, `Curves: ${title}`), make("div", { class: "charts" }, ...charts));
  });
}

// ---- structure --------------------------------------------------------------------------------------------------------

function structure(layers) {
  if (!layers.length) return "";
  const names = 24 + 6.3 * Math.max(...layers.map(([name, filters, channels]) => `${name} ${filters} × ${channels}`.length)), bar = 330, row = layers.length > 40 ? 13 : 20, filled = row * 0.8, width = names + bar + 60;
  const svg = document.createElementNS(SVG, "svg");
  const height = row * layers.length + 24;
  for (const [key, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}`, role: "img" })) svg.setAttribute(key, value);
  svg.setAttribute("aria-label", "What is left of each convolution, by filter group");
  draw(svg, "text", { x: names, y: 12, class: "faint" }, "filters by group; filled: channels read");
  draw(svg, "text", { x: width, y: 12, "text-anchor": "end", class: "faint" }, "MACs gone");
  layers.forEach(([name, filters, channels, groups], index) => {
    const y = 20 + row * index;
    draw(svg, "text", { x: names - 8, y: y + filled * 0.75, "text-anchor": "end" }, `${name}  ${filters} × ${channels}`);
    let x = names, left = 0;
    groups.forEach(([filterShare, channelShare], group) => {
      const wide = bar * filterShare;
      draw(svg, "rect", { x, y, width: Math.max(0, wide - 0.8), height: filled, class: "gone" });
      draw(svg, "rect", { x, y: y + filled * (1 - channelShare), width: Math.max(0, wide - 0.8), height: filled * channelShare, fill: data.colours[group] });
      x += wide;
      left += filterShare * channelShare;
    });
    if (names + bar - x > 0.5) draw(svg, "rect", { x, y: y + 0.5, width: names + bar - x, height: filled - 1, class: "lost" });
    draw(svg, "text", { x: width, y: y + filled * 0.75, "text-anchor": "end" }, `${(100 * (1 - left)).toFixed(0)} %`);
  });
  const about = make("p", { class: "soft" }, "The filled area is the share of the layer's MACs that is left; the darkest group reads most; dashed: filters that are gone.");
  const picture = make("div", { class: "shape", tabindex: "0", role: "region", "aria-label": "Structure" });
  picture.append(svg);
  return make("section", {}, make("h3", {}, "Structure"), picture, about);
}

// ---- the page ---------------------------------------------------------------------------------------------------------

function files(run) {
  const rows = run.status === "missing" ? [] : [run.key];
  const links = [...rows, ...run.timed.map((timed) => timed.key)].map((key) => make("li", {}, make("a", { href: `../rows/${key}.json` }, `${key}.json`)));
  return links.length ? make("section", {}, make("h3", {}, "Rows"), make("ul", {}, ...links)) : "";
}
function show(run) {
  const head = make("p", {}, make("span", { class: `status ${run.status}` }, run.status), " ", make("code", {}, run.key));
  const pairs = make("div", { class: "pair" }, facts("Result", run.result), facts("Configuration", run.configuration));
  const known = new Set(origin(run.provenance).map((pair) => JSON.stringify(pair)));
  const timed = run.timed.map((row) => make("div", { class: "pair" },
    facts(`${row.title}${row.status === "done" ? "" : `: ${row.status}`}`, row.reason ? [["reason", row.reason], ...row.result] : row.result),
    facts("Provenance of this row, where it differs", origin(row.provenance).filter(([name, value]) => !known.has(JSON.stringify([name, value]))))));
  const work = run.structure.length || run.curves.length ? "" : make("p", { class: "soft" },
    "Curves, structure and log lie in results/work, which was not there when this page was made.");
  article.replaceChildren(
    make("h1", {}, run.label), head, run.reason ? make("p", { class: "warning" }, run.reason) : "",
    pairs, ...curves(run), structure(run.structure), ...timed, facts("Provenance", origin(run.provenance)), files(run),
    run.log ? make("section", {}, make("h3", {}, "End of the log"), make("pre", { tabindex: "0" }, run.log)) : "", work,
  );
}
const items = data.runs.map((run) => {
  const note = run.status === "done" ? "" : ` (${run.status})`;
  const link = make("a", { href: `#${run.key}` }, run.label + note);
  return { run, link, item: make("li", {}, link), text: (run.label + note + run.key).toLowerCase() };
});
list.append(...items.map(({ item }) => item));
function route(event) {
  const run = byKey.get(decodeURIComponent(location.hash.slice(1))) ?? (location.hash && location.hash !== "#main" ? null : data.runs[0]);
  for (const { run: other, link } of items) {
    if (other === run) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  if (run) show(run);
  else article.replaceChildren(make("h1", {}, "No such run"), make("p", {}, "The list has all runs of this grid."));
  if (event) { article.focus({ preventScroll: true }); article.scrollIntoView({ block: "nearest" }); window.scrollTo(0, Math.max(0, article.offsetTop - 60)); }
}
const find = document.getElementById("find");
find.addEventListener("input", () => {
  const wanted = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const { item, text } of items) item.hidden = !wanted.every((word) => text.includes(word));
});
window.addEventListener("hashchange", route);
route();
