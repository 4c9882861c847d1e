(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("figures").textContent);
  const tip = document.getElementById("tip");
  const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
  const numbers = (element, name) => element.dataset[name].split(" ").map(Number);

  function show(event, ...content) {
    tip.replaceChildren(...content);
    tip.hidden = false;
    const box = tip.getBoundingClientRect(), gap = 14;
    const right = event.clientX + gap + box.width > innerWidth - 4;
    const below = event.clientY + gap + box.height > innerHeight - 4;
    const x = right ? Math.max(4, event.clientX - gap - box.width) : event.clientX + gap;
    const y = below ? Math.max(4, event.clientY - gap - box.height) : event.clientY + gap;
    tip.style.transform = `translate(${x}px, ${y}px)`;
  }
  const hide = () => { tip.hidden = true; };

  // Where the pointer is in the drawing's own coordinates.
  function inside(svg, event) {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  function at(curve, values, x) {
    const xs = curve.x;
    if (!values || x < xs[0] || x > xs[xs.length - 1]) return null;
    const after = xs.findIndex((value) => value >= x);
    if (after <= 0) return values[0];
    const part = (x - xs[after - 1]) / (xs[after] - xs[after - 1]);
    return values[after - 1] + part * (values[after] - values[after - 1]);
  }

  function curveTable(curves, x) {
    const table = document.createElement("table");
    const found = curves.map((curve) => [curve, at(curve, curve.y, x)]).filter(([, y]) => y !== null);
    for (const [curve, y] of found.sort((a, b) => b[1] - a[1])) {
      const row = table.insertRow(), name = make("th", data.rows[curve.row].name), dot = document.createElement("i");
      dot.style.background = `var(--${data.rows[curve.row].colour})`;
      name.prepend(dot);
      const low = at(curve, curve.low, x), high = at(curve, curve.high, x);
      row.append(name, make("td", y.toFixed(3)), make("td", low === null ? "" : `${low.toFixed(3)}–${high.toFixed(3)}`));
    }
    return table;
  }

  for (const svg of document.querySelectorAll("svg[data-curves]")) {
    const [left, top, right, bottom, low, high] = numbers(svg, "frame");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    line.setAttribute("class", "crosshair");
    const axis = svg.dataset.curves;
    svg.addEventListener("pointermove", (event) => {
      const [px] = inside(svg, event);
      if (px < left || px > right) { line.remove(); hide(); return; }
      const x = low + ((px - left) / (right - left)) * (high - low);
      for (const [key, value] of [["x1", px], ["x2", px], ["y1", top], ["y2", bottom]]) line.setAttribute(key, value);
      svg.append(line);
      const shown = axis === "seconds" || high < 20 ? x.toPrecision(3) : Math.round(x).toLocaleString("en");
      show(event, make("div", `${shown} ${svg.dataset.unit}`), curveTable(data.curves[axis], x));
    });
    svg.addEventListener("pointerleave", () => { line.remove(); hide(); });
  }

  for (const svg of document.querySelectorAll("svg[data-heat]")) {
    const [left, , right] = numbers(svg, "frame"), tops = numbers(svg, "tops"), height = Number(svg.dataset.height);
    const map = data.heat.maps[Number(svg.dataset.heat)];
    svg.addEventListener("pointermove", (event) => {
      const [px, py] = inside(svg, event);
      const column = Math.floor(((px - left) / (right - left)) * map.step.length);
      const lineAt = tops.findIndex((top) => py >= top && py < top + height);
      if (lineAt < 0 || column < 0 || column >= map.step.length) { hide(); return; }
      const arms = data.heat.lines[lineAt].map((arm) => data.arms[arm]);
      const share = map.share[lineAt][column];
      const name = arms.length > 1 ? `${arms[0]} … ${arms[arms.length - 1]} (mean of ${arms.length})` : arms[0];
      show(event, make("div", `${name}\nabout step ${Math.round(map.step[column])}: ${share === null ? "not logged" : (100 * share).toFixed(1) + " % of the tasks"}`));
    });
    svg.addEventListener("pointerleave", hide);
  }

  for (const element of document.querySelectorAll("[data-tip]")) {
    element.addEventListener("pointerenter", (event) => show(event, make("div", element.dataset.tip)));
    element.addEventListener("pointerleave", hide);
  }
  addEventListener("scroll", hide, { passive: true });

  // Pointing at a method lights it up in every figure; a click keeps it lit.
  let pinned = null;
  function light(row) {
    for (const figure of document.querySelectorAll("figure svg")) {
      figure.classList.toggle("dimmed", row !== null && figure.querySelector(`[data-row="${row}"]`) !== null);
      for (const mark of figure.querySelectorAll("[data-row]")) mark.classList.toggle("lit", mark.dataset.row === row);
    }
    for (const button of document.querySelectorAll(".legend button")) button.setAttribute("aria-pressed", String(button.value === pinned));
  }
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("pointerenter", () => light(button.value));
    button.addEventListener("pointerleave", () => light(pinned));
    button.addEventListener("click", () => { pinned = pinned === button.value ? null : button.value; light(pinned); });
  }
})();
