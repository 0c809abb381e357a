// The table of metrics, with the newest values of the run.
import { ask, el, words } from "./dom.js";

export async function showMetrics(page, route) {
  const sections = await ask("metrics", { run: route.run });
  page.replaceChildren(
    el("p", { class: "intro" }, "What a run logs, over what it is taken, and what to expect of a run that is well. docs/metrics.md is the same table."),
    ...sections.map((section) => el("section", {}, el("h2", {}, section.title), el("p", { class: "intro" }, section.intro), el("div", { class: "card scroll" }, el("table", { class: "reference" },
      el("thead", {}, el("tr", {}, ["metric", "meaning", "over", "unit", "healthy", "now"].map((title) => el("th", {}, title)))),
      el("tbody", {}, section.metrics.map((metric) => el(
        "tr",
        { "data-metric": metric.name, class: metric.name === route.part ? "asked" : "" },
        el("th", { scope: "row" }, el("code", {}, metric.name)),
        el("td", { class: "wrap" }, words(metric.meaning)),
        el("td", { class: "wrap" }, words(metric.over)),
        el("td", {}, metric.unit || "–"),
        el("td", { class: "wrap" }, words(metric.healthy)),
        el("td", {}, metric.values.length === 1 ? metric.values[0].value : metric.values.map((value) => el("div", {}, el("span", { class: "soft" }, `${value.name} `), value.value))),
      ))),
    )))),
  );
  page.querySelector("tr.asked")?.scrollIntoView({ block: "center" });
}
