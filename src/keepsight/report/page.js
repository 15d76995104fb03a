/* Draws the charts of a report, filters its tables, opens its listings for print. Texts of the page are only ever set as text. */
(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const made = (tag, text) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    return element;
  };

  /* Tables: rows that hold all the words typed. */
  for (const form of all(".filter[data-rows]")) {
    const rows = all("tbody tr", document.getElementById(form.dataset.rows));
    const [input, said] = [form.querySelector("input"), form.querySelector("output")];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let kept = 0;
      rows.forEach((row, i) => {
        row.hidden = !words.every((word) => texts[i].includes(word));
        kept += !row.hidden;
      });
      said.textContent = words.length ? `${kept} of ${rows.length} rows` : `${rows.length} rows`;
    };
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    input.addEventListener("input", filter);
    filter();
  }

  /* What can be scrolled can be reached by keyboard. */
  const reach = (box) => {
    const needed = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
    for (const [name, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", box.dataset.label]]) {
      if (needed) box.setAttribute(name, value);
      else box.removeAttribute(name);
    }
  };
  const boxes = new ResizeObserver((entries) => entries.forEach((entry) => reach(entry.target)));
  all(".scroll, pre").forEach((box) => boxes.observe(box));

  /* Print shows what is folded away, except long tables of charts. */
  let opened = [];
  const unfold = () => {
    if (opened.length) return;
    opened = all("details.printed:not([open])");
    opened.forEach((details) => { details.open = true; });
  };
  const fold = () => {
    opened.forEach((details) => { details.open = false; });
    opened = [];
  };
  window.addEventListener("beforeprint", unfold);
  window.addEventListener("afterprint", fold);
  window.matchMedia("print").addEventListener("change", (event) => (event.matches ? unfold() : fold()));

  const charts = all(".chart");
  if (!charts.length) return;

  /* The mouse rests on a mark. */
  const tip = made("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);
  const showTip = (handler, event, item, value) => {
    if (value === null || value === undefined || value === "") {
      tip.hidden = true;
      return;
    }
    const list = made("dl");
    for (const [title, text] of Object.entries(typeof value === "object" ? value : { "": value })) {
      if (text !== "" && text !== "none") list.append(made("dt", title), made("dd", String(text)));
    }
    tip.replaceChildren(list);
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const left = event.clientX + 14 + width > innerWidth ? event.clientX - width - 10 : event.clientX + 14;
    const top = event.clientY + 14 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 14;
    tip.style.left = `${Math.max(4, Math.min(left, innerWidth - width - 4))}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tip.hidden = true;
  });
  window.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  /* Colours are the page's: drawings follow light, dark and print by themselves. */
  const look = (width, columns) => ({
    aria: false,
    background: null,
    font: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
    padding: 4,
    view: { stroke: "var(--line)", fill: null },
    axis: {
      labelColor: "var(--ink)", titleColor: "var(--ink)", gridColor: "var(--grid)", domainColor: "var(--soft)", tickColor: "var(--soft)",
      labelFontSize: 12, titleFontSize: 12.5, titleFontWeight: 600, titlePadding: 8, labelLimit: Math.max(90, Math.min(260, width * 0.36)),
      titleLimit: Math.max(240, width - 60), tickCount: width < 480 ? 5 : 8, labelOverlap: true,
    },
    axisBand: { labelOverlap: false, grid: false },
    axisX: { tickCount: width < 480 ? 4 : 8 },
    title: { color: "var(--ink)", fontSize: 13, fontWeight: 600, anchor: "start", limit: Math.max(200, Math.min(width, 240)) },
    legend: {
      orient: "top", direction: "horizontal", columns, labelColor: "var(--ink)", titleColor: "var(--ink)",
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: 600, labelLimit: Math.floor(width / columns) - 38, symbolSize: 70, gridAlign: "each", columnPadding: 14,
      rowPadding: 3, offset: 10, clipHeight: 16, symbolOpacity: 1, symbolBaseFillColor: "var(--heat)",
    },
    mark: { color: "var(--c1)" },
    line: { strokeWidth: 2 },
    text: { color: "var(--ink)", fontSize: 11.5 },
    range: { category: [1, 2, 3, 4, 5, 6, 7, 8].map((number) => `var(--c${number})`) },
    style: {
      interval: { color: "var(--c1)", strokeWidth: 2 },
      reference: { color: "var(--soft)", strokeWidth: 1.3, strokeDash: [5, 4] },
      marked: { color: "var(--ink)", strokeWidth: 1.8 },
      band: { color: "var(--c1)" },
      name: { color: "var(--soft)", limit: width < 600 ? 64 : 130 },
      heat: { color: "var(--heat)", stroke: null },
      "on-weak": { color: "var(--on-weak)" },
      "on-strong": { color: "var(--on-strong)" },
    },
  });

  /* As many names of groups side by side as have room. */
  const beside = (figure, width) => {
    const names = all("option", figure).map((option) => option.textContent.length);
    return Math.max(1, Math.floor((width - 40) / (46 + 7 * Math.min(30, Math.max(6, ...names)))));
  };

  /* The page gives a chart the width it has. */
  const fitted = (spec, room) => {
    const { usermeta = {}, ...own } = spec;
    const width = Math.min(room, usermeta.width ?? Infinity);
    if (usermeta.panel) {
      const columns = Math.max(1, Math.min(own.concat.length, Math.floor(room / (usermeta.panel + 70))));
      const side = Math.max(140, Math.min(340, Math.floor(room / columns) - 75));
      return [{ ...own, columns, concat: own.concat.map((panel) => ({ ...panel, width: side, height: side })) }, room];
    }
    const height = usermeta.square ? Math.min(own.height, Math.max(160, width - 60)) : own.height;
    return [{ ...own, width, height, autosize: { type: "fit-x", contains: "padding" } }, width];
  };

  /* The groups of a chart can be chosen without a mouse as well. */
  const chooser = (figure, view) => {
    const select = figure.querySelector(".filter select");
    if (!select) return;
    select.closest(".filter").hidden = false;
    const choose = () => {
      const group = select.selectedOptions[0];
      const field = [{ type: "E", field: "group" }];
      view.data("chosen_store", group.dataset.all ? [] : [{ fields: field, values: [group.value] }]).runAsync();
    };
    select.onchange = choose;
    if (select.selectedIndex > 0) choose();
  };

  const drawn = new Map();
  const draw = async (chart) => {
    const room = Math.floor(chart.clientWidth);
    const before = drawn.get(chart);
    if (!room || (before && Math.abs(before.room - room) < 8)) return;
    const state = { room, result: null };
    drawn.set(chart, state);
    const figure = chart.closest("figure");
    const text = document.getElementById(chart.dataset.spec).textContent;
    const [spec, width] = fitted(JSON.parse(text), room);
    const place = made("div");
    place.setAttribute("aria-hidden", "true"); // the figure has its description, and the table below
    const result = await window.vegaEmbed(place, spec, {
      mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false, config: look(width, beside(figure, width)), tooltip: showTip,
    });
    if (drawn.get(chart) !== state) {
      result.finalize();
      return;
    }
    before?.result?.finalize();
    state.result = result;
    chart.replaceChildren(place);
    chart.dataset.drawn = "yes";
    chooser(figure, result.view);
  };
  const tried = (chart) => draw(chart).catch((error) => {
    chart.replaceChildren(made("p", "This chart could not be drawn; the table below holds the same figures."));
    console.error(error);
  });
  let waiting = 0;
  const widths = new ResizeObserver(() => {
    if (window.matchMedia("print").matches) return;
    clearTimeout(waiting);
    waiting = setTimeout(() => charts.forEach(tried), 120);
  });
  charts.forEach((chart) => {
    tried(chart);
    widths.observe(chart);
  });
})();
