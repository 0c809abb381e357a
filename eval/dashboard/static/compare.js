// Several runs side by side, and pictures in pairs.
import { ask, badge, decimals, el, runPath } from "./dom.js";
import { panel } from "./panels.js";

export async function showCompare(page, route, runs) {
  const [data, pairs] = await Promise.all([ask("compare"), ask(`${runPath(route.run)}/pairs`)]);
  page.replaceChildren(
    el("section", {}, el("h2", {}, runs.length > 1 ? `${runs.length} runs` : "One run"), runs.length > 1
      ? el("p", { class: "intro" }, "Runs that differ in their seed alone are one line: their mean, and a band from the least to the largest.")
      : el("p", { class: "intro" }, "Name several runs to compare them: dina dashboard RUN RUN …"), legend(data.arms)),
    table(data),
    settings(data),
    el("section", {}, el("h2", {}, "Curves"), el("div", { class: "panels" }, data.panels.map((entry) => panel(entry, route.run)))),
    drawn(data.pairs),
    beforeAfter(pairs, route.run),
  );
}

function legend(arms) {
  return el("ul", { class: "legend arms" }, arms.map((arm) => el("li", {}, el("span", { class: "swatch", style: `background:${arm.color}` }), arm.name, arm.runs.length > 1 ? el("span", { class: "soft" }, ` (${arm.runs.join(", ")})`) : null)));
}

function table(data) {
  if (!data.table.length) return el("p", { class: "soft" }, "Nothing logged yet.");
  return el("section", { class: "card scroll" }, el("table", { id: "final" },
    el("thead", {}, el("tr", {}, el("th", {}, "mean of the last tenth"), data.arms.map((arm) => el("th", {}, arm.name)))),
    el("tbody", {}, data.table.map((row) => el("tr", {}, el("th", { scope: "row" }, row.name, row.better ? el("span", { class: "soft" }, row.better === "higher" ? " ↑" : " ↓") : null), row.values.map((value) => el("td", {}, value)))))));
}

function settings(data) {
  if (!data.settings.length) return "";
  return el("section", { class: "card scroll" }, el("h3", {}, "Settings that differ"), el("table", { id: "settings" },
    el("thead", {}, el("tr", {}, el("th", {}, "key"), data.arms.map((arm) => el("th", { class: "left" }, arm.name)))),
    el("tbody", {}, data.settings.map((row) => el("tr", {}, el("th", { scope: "row" }, row.key), row.values.map((value) => el("td", { class: "wrap" }, value)))))));
}

function drawn(pairs) {
  if (!pairs.length) return "";
  return el("section", { id: "drawn" }, el("h2", {}, "The same prompt in the same step"), el("div", { class: "pairs" }, pairs.map((pair) => el(
    "div",
    { class: "card pair" },
    el("p", {}, pair.prompt, el("span", { class: "soft" }, ` · step ${pair.step}`)),
    el("div", { class: "pair-sides" }, pair.sides.map((side) => el("figure", {},
      el("img", { class: "pixels", src: `/api/${runPath(side.run)}/pictures/${side.picture}`, alt: side.run, loading: "lazy" }),
      el("figcaption", { class: "caption" }, side.run, el("br"), `reward ${decimals(side.reward)}`)))),
  ))));
}

function beforeAfter(groups, run) {
  if (!groups.length) return "";
  return el("section", { id: "before-after" }, el("h2", {}, `Before and after ${run}`), el("p", { class: "intro" }, "The first prompts of every category of the evaluation, drawn with the same seed; none chosen by its score."), groups.map((group) => [
    el("h3", { class: "category" }, group.name),
    el("div", { class: "pairs" }, group.pairs.map((pair) => el(
      "div",
      { class: "card pair" },
      el("p", {}, pair.prompt),
      el("div", { class: "pair-sides" }, pair.sides.map((side) => el("figure", {},
        side.image ? el("img", { class: side.pixels ? "pixels" : "", src: side.image, alt: side.name, loading: "lazy" }) : el("div", { class: "missing" }, "no picture"),
        el("figcaption", { class: "caption" }, `${side.name} `, badge({ kind: side.kind, title: side.badge }), el("br"), side.text)))),
    ))),
  ]));
}
