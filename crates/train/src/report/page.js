// Draws the curves of the page's data, and shows values under the pointer or by arrow keys.
"use strict";
(() => {
  const failures = [];
  window.addEventListener("error", (event) => {
    failures.push(event.message || "a picture failed to load");
    publish();
  }, true);

  const SVG = "http://www.w3.org/2000/svg";
  const data = JSON.parse(document.getElementById("data").textContent);
  const HEIGHT = 210;
  const MARGIN = { top: 10, right: 12, bottom: 26, left: 50 };

  /** Appends an SVG element to `parent`. */
  function add(parent, name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    parent.appendChild(element);
    return element;
  }

  /** Formats a number with four digits. */
  function show(value) {
    if (value === null || value === undefined) return "not a number";
    const size = Math.abs(value);
    if (value === 0) return "0";
    if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace("e+", "e");
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    return String(Number(value.toPrecision(4)));
  }

  /** Returns about `count` round numbers from `low` to `high`. */
  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const all = [];
    for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) all.push(i * step);
    return all;
  }

  function logTicks(low, high) {
    const all = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
      for (const n of [1, 2, 5]) all.push(n * 10 ** e);
    }
    const inside = all.filter((v) => v >= low && v <= high);
    const decades = inside.filter((v) => Math.abs(Math.log10(v) % 1) < 1e-9);
    if (inside.length > 8 && decades.length > 2) return decades;
    return inside.length > 1 ? inside : ticks(low, high, 4);
  }

  /** Returns the range of the value axis: all values, except a few outliers. */
  function range(values, panel, isLog) {
    const sorted = values.filter((v) => v !== null && (!isLog || v > 0)).sort((a, b) => a - b);
    if (sorted.length === 0) return [0, 1];
    const scale = isLog ? Math.log10 : (v) => v;
    const back = isLog ? (v) => 10 ** v : (v) => v;
    let low = scale(sorted[0]);
    let high = scale(sorted[sorted.length - 1]);
    if (!isLog && sorted.length > 8) {
      const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
      const [p5, p95] = [at(0.05), at(0.95)];
      const span = Math.max(p95 - p5, 1e-12);
      if (low < p5 - 3 * span) low = p5 - span;
      if (high > p95 + 3 * span) high = p95 + span;
    }
    if (!isLog && panel.zero) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
    if (high - low < 1e-12) {
      const pad = isLog ? 0.5 : Math.abs(high) * 0.1 || 1;
      [low, high] = [panel.zero ? low : low - pad, high + pad];
    }
    const pad = 0.05 * (high - low);
    const isFloor = !isLog && panel.zero && low === 0;
    return [isFloor ? low : back(low - pad), back(high + pad)];
  }

  function draw(figure, panel) {
    const host = figure.querySelector(".plot");
    const isLog = figure.dataset.log === "true";
    const width = Math.max(host.clientWidth, 200);
    host.textContent = "";
    const svg = add(host, "svg", {
      width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", tabindex: "0",
      "aria-label": `${panel.title}. Use the arrow keys to read values.`,
    });
    const all = panel.series.flatMap((s) => s.points);
    const [low, high] = range(all.map((p) => p[1]), panel, isLog);
    const last = Math.max(1, data.last, ...all.map((p) => p[0]));
    const right = width - MARGIN.right;
    const bottom = HEIGHT - MARGIN.bottom;
    const x = (step) => MARGIN.left + (step / last) * (right - MARGIN.left);
    const scale = isLog ? Math.log10 : (v) => v;
    const y = (v) => bottom -
      ((scale(v) - scale(low)) / (scale(high) - scale(low))) * (bottom - MARGIN.top);

    const clip = `clip-${panel.id}`;
    add(add(add(svg, "defs", {}), "clipPath", { id: clip }), "rect", {
      x: MARGIN.left, y: MARGIN.top - 4, width: right - MARGIN.left + 4, height: bottom - MARGIN.top + 8,
    });
    for (const value of isLog ? logTicks(low, high) : ticks(low, high, 4)) {
      add(svg, "line", {
        class: value === 0 ? "grid zero" : "grid", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value),
      });
      add(svg, "text", { class: "tick", x: MARGIN.left - 7, y: y(value) + 4, "text-anchor": "end" }, show(value));
    }
    for (const step of ticks(0, last, width < 420 ? 3 : 5)) {
      const anchor = step === 0 ? "start" : x(step) > right - 24 ? "end" : "middle";
      add(svg, "text", { class: "tick", x: x(step), y: HEIGHT - 8, "text-anchor": anchor }, show(step));
    }
    const inside = add(svg, "g", { "clip-path": `url(#${clip})` });
    for (const action of data.actions) {
      const mark = add(inside, "g", { class: "action" });
      add(mark, "title", {}, `step ${action.step}: ${action.action} (${action.reason})`);
      add(mark, "line", { x1: x(action.step), x2: x(action.step), y1: MARGIN.top, y2: bottom });
      add(mark, "path", { d: `M${x(action.step) - 5} ${MARGIN.top - 4}h10l-5 8z` });
    }
    panel.series.forEach((series, i) => {
      let path = "";
      let isDrawing = false;
      const isShown = (value) => value !== null && (!isLog || value > 0);
      for (const [step, value] of series.points) {
        if (isShown(value)) path += `${isDrawing ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
        isDrawing = isShown(value);
      }
      add(inside, "path", { class: `line s${i % 8}${i >= 8 ? " dashed" : ""}`, d: path });
      if (series.points.length <= 30) {
        for (const [step, value] of series.points.filter((p) => isShown(p[1]))) {
          add(inside, "circle", { class: `dot s${i % 8}`, cx: x(step), cy: y(value), r: 2.6 });
        }
      }
    });
    const cross = add(svg, "g", { class: "cross", visibility: "hidden" });
    add(cross, "line", { y1: MARGIN.top, y2: bottom });
    const knobs = panel.series.map((_, i) => add(cross, "circle", { class: `knob s${i % 8}`, r: 4 }));
    addReadout(figure, panel, svg, { x, y, left: MARGIN.left, right, last, cross, knobs, isLog });
  }

  /** Returns the last point of `series` at or before `step`, or its first. After a roll-back, steps repeat. */
  function pointAt(series, step) {
    let best = series.points[0];
    for (const point of series.points) {
      if (point[0] <= step && (point[0] >= best[0] || best[0] > step)) best = point;
    }
    return best;
  }

  /** Shows values under the pointer, or at the step that arrow keys select. */
  function addReadout(figure, panel, svg, plot) {
    const steps = [...new Set(panel.series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);
    const values = [...figure.querySelectorAll(".legend .value")];
    const where = figure.querySelector(".where");
    let at = steps.length - 1;
    function showStep(step, visible) {
      plot.cross.setAttribute("visibility", visible ? "visible" : "hidden");
      where.textContent = visible ? `step ${show(step)}` : where.dataset.rest;
      plot.cross.firstChild.setAttribute("x1", plot.x(step));
      plot.cross.firstChild.setAttribute("x2", plot.x(step));
      panel.series.forEach((series, i) => {
        const point = visible ? pointAt(series, step) : series.points[series.points.length - 1];
        values[i].textContent = point ? show(point[1]) : "–";
        const isShown = point && point[1] !== null && (!plot.isLog || point[1] > 0);
        plot.knobs[i].setAttribute("visibility", visible && isShown ? "inherit" : "hidden");
        if (isShown) {
          plot.knobs[i].setAttribute("cx", plot.x(point[0]));
          plot.knobs[i].setAttribute("cy", plot.y(point[1]));
        }
      });
    }
    function nearest(step) {
      let best = 0;
      steps.forEach((s, i) => { if (Math.abs(s - step) < Math.abs(steps[best] - step)) best = i; });
      return best;
    }
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const share = (event.clientX - box.left - plot.left) / (plot.right - plot.left);
      at = nearest(Math.min(1, Math.max(0, share)) * plot.last);
      showStep(steps[at], true);
    });
    svg.addEventListener("pointerleave", () => showStep(0, false));
    svg.addEventListener("blur", () => showStep(0, false));
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: 10, PageDown: -10 }[event.key];
      if (event.key === "Home") at = 0;
      else if (event.key === "End") at = steps.length - 1;
      else if (move) at = Math.min(steps.length - 1, Math.max(0, at + move));
      else return;
      event.preventDefault();
      showStep(steps[at], true);
    });
    showStep(0, false);
  }

  const figures = data.panels.map((panel) => {
    const figure = document.getElementById(`panel-${panel.id}`);
    figure.dataset.log = String(panel.log);
    const toggle = figure.querySelector(".log");
    if (toggle) {
      toggle.setAttribute("aria-pressed", figure.dataset.log);
      toggle.addEventListener("click", () => {
        figure.dataset.log = String(figure.dataset.log !== "true");
        toggle.setAttribute("aria-pressed", figure.dataset.log);
        draw(figure, panel);
      });
    }
    return [figure, panel];
  });
  const redraw = () => figures.forEach(([figure, panel]) => draw(figure, panel));
  redraw();
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) redraw();
    width = window.innerWidth;
  });

  // SVG images do not report whether they have loaded; copies do, and the page waits for them.
  const drawn = [...document.querySelectorAll("svg image")].map((image) => {
    const copy = new Image();
    copy.src = image.getAttribute("href");
    return [image, copy];
  });

  /** Checks for tests that everything is drawn and fits the window. */
  function check() {
    for (const [figure, panel] of figures) {
      const lines = [...figure.querySelectorAll("path.line")];
      if (lines.length !== panel.series.length) failures.push(`${panel.id}: a curve is missing`);
      const drawn = (path) => /^M[\d.]/.test(path.getAttribute("d"));
      panel.series.forEach((series, i) => {
        const known = series.points.some((p) => p[1] !== null && (figure.dataset.log !== "true" || p[1] > 0));
        if (known && !(lines[i] && drawn(lines[i]))) failures.push(`${panel.id}: ${series.name} is empty`);
      });
      if (/NaN|Infinity/.test(figure.innerHTML)) failures.push(`${panel.id}: an invalid number`);
    }
    for (const image of document.images) {
      if (!image.complete || image.naturalWidth === 0) failures.push(`a picture failed to load: ${image.alt}`);
      if (!image.hasAttribute("alt")) failures.push("a picture without alternative text");
    }
    for (const svg of document.querySelectorAll("main svg[role=img]")) {
      if (!svg.hasAttribute("aria-label")) failures.push("a drawing without alternative text");
    }
    for (const [image, copy] of drawn) {
      if (!copy.complete || copy.naturalWidth === 0) failures.push(`a picture failed to load: ${image.closest("svg").ariaLabel}`);
    }
    const page = document.documentElement;
    if (page.scrollWidth > page.clientWidth) {
      failures.push(`the page is wider (${page.scrollWidth}) than the window (${page.clientWidth})`);
    }
  }
  function publish() {
    document.documentElement.dataset.check = failures.length === 0 ? "good" : failures.join("; ");
  }
  window.addEventListener("load", () => { check(); publish(); });
})();
