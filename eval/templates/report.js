// Read-out under the pointer: the charts are complete without it.
for (const figure of document.querySelectorAll("[data-chart]")) {
  const data = JSON.parse(figure.dataset.chart);
  const area = figure.querySelector(".area");
  const rule = area.querySelector(".rule");
  const tip = area.querySelector(".tip");
  const show = (event) => {
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
  const hide = () => { rule.hidden = tip.hidden = true; };
  area.addEventListener("pointermove", show);
  area.addEventListener("pointerdown", show);
  area.addEventListener("pointerleave", hide);
}
