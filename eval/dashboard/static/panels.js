// Pages of curves: sections of panels, each with what it shows, over what, and what is healthy.
import { ask, chart, el, runPath, words } from "./dom.js";

export async function showCurves(page, route, steps) {
  const data = await ask(`${runPath(route.run)}/${route.page}`, steps);
  const parts = [];
  if (data.verdict) parts.push(verdict(data.verdict, route));
  if (data.tiles?.length) parts.push(tiles(data.tiles));
  if (data.bar) {
    parts.push(el("section", { class: "card" }, el("h2", {}, "One step, on average of the last tenth of the run"), chart(data.bar)));
  }
  parts.push(...data.sections.map((section) => sectionOf(section, route)));
  replace(page, parts);
}

// Keeps the panels whose chart is as it was, so that a read-out under the pointer stays.
function replace(page, parts) {
  const known = new Map([...page.querySelectorAll(".panel")].map((panel) => [panel.dataset.key, panel]));
  for (const part of parts) {
    for (const panel of part.querySelectorAll(".panel")) {
      const old = known.get(panel.dataset.key);
      if (old && old.dataset.html === panel.dataset.html) panel.replaceWith(old);
    }
  }
  page.replaceChildren(...parts);
}

export function panel(entry, run) {
  const where = `#/${encodeURIComponent(run)}/metrics/${encodeURIComponent(entry.metric)}`;
  return el(
    "article",
    { class: "panel card", "data-key": entry.key, "data-html": hash(entry.html) },
    chart(entry.html),
    el(
      "p",
      { class: "about" },
      el("span", {}, "Shows ", words(entry.shows)),
      el("span", {}, el("b", {}, "Over "), words(entry.over)),
      el("span", {}, el("b", {}, "Healthy "), words(entry.healthy)),
      el("a", { href: where }, "docs"),
    ),
  );
}

function sectionOf(section, route) {
  return el(
    "section",
    { id: section.key },
    el("h2", {}, section.title),
    el("p", { class: "intro" }, section.intro),
    el("div", { class: "panels" }, section.panels.map((entry) => panel(entry, route.run))),
    section.absent.length ? el("p", { class: "note absent" }, `Not in this run. ${section.absent.join(". ")}.`) : null,
  );
}

function tiles(entries) {
  return el(
    "div",
    { class: "tiles" },
    entries.map((tile) => el("div", { class: "tile card" }, el("span", {}, tile.title), el("b", {}, tile.value), el("span", {}, tile.note))),
  );
}

function verdict(data, route) {
  return el(
    "section",
    { class: `verdict card ${data.kind}`, id: "verdict" },
    el("h2", {}, data.title),
    data.error ? el("p", { class: "error" }, data.error) : null,
    el("ul", {}, data.alerts.slice(0, 12).map((alert) => el(
      "li",
      { class: alert.until === null ? "bad" : "open" },
      el("p", {}, el("b", {}, alert.title), " ", el("span", { class: "soft" }, spanOf(alert))),
      el("p", {}, `${alert.text}. `, el("a", { href: `#/${encodeURIComponent(route.run)}/${alert.page}` }, "curve")),
      el("p", { class: "soft" }, `Try: ${alert.advice}.`),
    ))),
    data.alerts.length > 12 ? el("p", { class: "soft" }, `and ${data.alerts.length - 12} more`) : null,
  );
}

function spanOf(alert) {
  if (alert.until === null) return `since step ${alert.since}`;
  return alert.until === alert.since ? `step ${alert.since}` : `steps ${alert.since} to ${alert.until}`;
}

function hash(text) {
  let value = 0;
  for (let i = 0; i < text.length; i += 1) value = (value * 31 + text.charCodeAt(i)) | 0;
  return `${text.length}.${value}`;
}
