"use strict";
(() => {
  const numbers = JSON.parse(document.getElementById("numbers").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches; // a finger scrolls, and taps to see numbers
  const current = new Map(); // what each place shows

  // Colours are CSS variables; only what is under the name of a colour can be one.
  const coloured = (value, style, isColour = false) => {
    if (typeof value === "string") {
      const found = isColour && /^var\((--[\w-]+)\)$/.exec(value);
      return found ? style.getPropertyValue(found[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => coloured(item, style, isColour));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value).map(([name, item]) => [
        name,
        coloured(item, style, isColour || name.includes("color")),
      ]),
    );
  };

  const save = (format) => (plot) =>
    Plotly.downloadImage(plot, {
      format,
      filename: `tersenet-${plot.dataset.figure}`,
      width: plot.clientWidth,
      height: plot.clientHeight,
      scale: format === "png" ? 2 : 1,
    });
  const button = (format) => ({
    name: format,
    title: `Save as ${format.toUpperCase()}`,
    icon: format === "png" ? Plotly.Icons.camera : Plotly.Icons.disk,
    click: save(format),
  });

  const draw = (place) => {
    const figure = current.get(place);
    const style = getComputedStyle(document.documentElement);
    const layout = coloured(figure.layout, style);
    const hasAxes = "xaxis" in layout;
    if (touch) layout.dragmode = false;
    const zooming = hasAxes && !touch ? [["zoomIn2d", "zoomOut2d", "resetScale2d"]] : [];
    return Plotly.react(place, coloured(figure.data, style), layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: true,
      modeBarButtons: [[button("png"), button("svg")], ...zooming],
    });
  };

  // A ring goes to the point of what is chosen.
  const mark = (place, value) => {
    const { data } = current.get(place);
    const ring = data.find((trace) => trace.meta === "chosen");
    if (ring === undefined) return [];
    for (const { x, y, ids, customdata } of data) {
      const at = ids === undefined ? -1 : ids.indexOf(value);
      if (at >= 0) Object.assign(ring, { x: [x[at]], y: [y[at]], ids: [value], customdata: [customdata[at]] });
    }
    return [draw(place)];
  };

  const places = [...document.querySelectorAll("[data-figure]")];
  const selects = [...document.querySelectorAll("[data-choice]")];
  const choose = (select) => {
    const variant = numbers.choices[select.dataset.choice][select.value];
    document.querySelector(`[data-note="${select.dataset.choice}"]`).textContent = variant.note;
    const picking = places.filter((place) => place.dataset.picks === select.dataset.choice);
    const shown = places.filter((place) => Object.hasOwn(variant.figures, place.dataset.figure));
    return [
      ...picking.flatMap((place) => mark(place, select.value)),
      ...shown.map((place) => {
        current.set(place, variant.figures[place.dataset.figure]);
        return draw(place);
      }),
    ];
  };

  const first = places
    .filter((place) => numbers.figures[place.dataset.figure] !== null)
    .map((place) => {
      current.set(place, numbers.figures[place.dataset.figure]);
      return draw(place);
    });
  for (const select of selects) {
    first.push(...choose(select));
    select.addEventListener("change", () => choose(select));
  }
  for (const place of places.filter((place) => place.dataset.picks)) {
    const select = selects.find((select) => select.dataset.choice === place.dataset.picks);
    place.on("plotly_click", ({ points }) => {
      const value = String(points[0].id);
      if (![...select.options].some((option) => option.value === value)) return;
      select.value = value;
      choose(select);
    });
  }
  dark.addEventListener("change", () => [...current.keys()].forEach(draw));
  Promise.all(first).then(() => (document.documentElement.dataset.drawn = String(current.size)));
})();
