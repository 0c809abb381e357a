// Read-out under the pointer: the charts are complete without it. It serves figures that come later, too.
{
  const parsed = new WeakMap();
  const dataOf = (figure) => {
    if (!parsed.has(figure)) parsed.set(figure, JSON.parse(figure.dataset.chart));
    return parsed.get(figure);
  };
  let shown = null;
  const hide = () => {
    if (shown) for (const part of shown.querySelectorAll(".rule, .tip")) part.hidden = true;
    shown = null;
  };
  const show = (event) => {
    const area = event.target.closest?.(".area");
    if (area !== shown) hide();
    const figure = area?.closest("[data-chart]");
    if (!figure) return;
    shown = area;
    const data = dataOf(figure);
    const rule = area.querySelector(".rule");
    const tip = area.querySelector(".tip");
    const box = area.getBoundingClientRect();
    const share = (100 * (event.clientX - box.left)) / box.width;
    let best = 0;
    data.at.forEach((at, i) => { if (Math.abs(at - share) < Math.abs(data.at[best] - share)) best = i; });
    tip.replaceChildren(document.createTextNode(`${data.label} ${data.x[best]}`));
    for (const series of data.series) {
      const row = document.createElement("div");
      const mark = document.createElement("i");
      const value = document.createElement("b");
      mark.style.background = series.color;
      value.textContent = series.y[best];
      row.append(mark, series.name, value);
      tip.append(row);
    }
    rule.hidden = tip.hidden = false;
    rule.style.left = `${data.at[best]}%`;
    const right = data.at[best] > 50;
    tip.style.left = right ? "auto" : `calc(${data.at[best]}% + 10px)`;
    tip.style.right = right ? `calc(${100 - data.at[best]}% + 10px)` : "auto";
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("pointerleave", hide);
}
