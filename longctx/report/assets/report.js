// Draws the charts of a longctx report from the JSON in #data; needs uPlot, reads colours from the CSS.
"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("data").textContent);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (index) => css("--c" + index);
  const charts = [];

  // -- data --------------------------------------------------------------------------------------

  function unpack(p) {
    const text = atob(p.data), t = new Array(p.n), v = new Array(p.n);
    let at = 0, lastT = 0, lastV = 0;
    const read = () => {
      let number = 0, factor = 1, byte;
      do { byte = text.charCodeAt(at++); number += (byte & 127) * factor; factor *= 128; } while (byte > 127);
      return number;
    };
    for (let i = 0; i < p.n; i++) {
      lastT += read();
      t[i] = lastT * p.time_quantum_s;
      const code = read();
      if (code % 2) { v[i] = null; continue; }
      const step = code / 2;
      lastV += step % 2 ? -(step + 1) / 2 : step / 2;
      v[i] = (lastV * p.value_quantum) / p.divide_by;
    }
    return [t, v];
  }

  function tables(spec) {
    const all = spec.series.map((s) => (s.packed ? unpack(s.packed) : [s.x, s.y]));
    if (all.length === 1) return all[0];
    const same = all.every(([x]) => x.length === all[0][0].length && x.every((v, i) => v === all[0][0][i]));
    return same ? [all[0][0], ...all.map(([, y]) => y)] : uPlot.join(all);
  }

  // -- numbers -----------------------------------------------------------------------------------

  const grouped = (value, digits) => value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  function figure(value, axis) {
    if (value == null) return "n/a";
    const digits = axis.digits ?? (Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2);
    return grouped(value, digits) + (axis.unit ? " " + axis.unit : "");
  }
  const digitsOf = (at) => (at.length < 2 ? 1 : Math.max(0, Math.min(3, -Math.floor(Math.log10(at[1] - at[0]) + 1e-9) + ((at[1] - at[0]) / 10 ** Math.floor(Math.log10(at[1] - at[0]) + 1e-9) % 1 > 1e-6 ? 1 : 0))));
  function clock(seconds, range, digits) {
    if (range < 180) return grouped(seconds, digits);
    const whole = Math.round(seconds), rest = String(whole % 60).padStart(2, "0"), minutes = Math.floor(whole / 60);
    return minutes < 60 ? minutes + ":" + rest : Math.floor(minutes / 60) + ":" + String(minutes % 60).padStart(2, "0") + ":" + rest;
  }
  const nearestKnown = (values, index) => {
    for (let d = 0; d < values.length; d++) {
      if (values[index - d] !== undefined && index - d >= 0) return index - d;
      if (values[index + d] !== undefined && index + d < values.length) return index + d;
    }
    return index;
  };

  // -- what lies behind and over the curves ------------------------------------------------------

  const clip = (u, draw) => {
    const { left, top, width, height } = u.bbox, c = u.ctx;
    c.save(); c.beginPath(); c.rect(left, top, width, height); c.clip(); draw(c, u.bbox); c.restore();
  };
  const font = () => Math.round(11 * devicePixelRatio) + "px system-ui, sans-serif";

  const behind = (spec) => (u) => clip(u, (c, box) => {
    c.font = font(); c.textBaseline = "top"; c.textAlign = "left";
    let free = -Infinity;
    for (const [i, band] of (spec.bands || []).entries()) {
      const x0 = u.valToPos(band.from, "x", true), x1 = u.valToPos(band.to ?? u.scales.x.max, "x", true);
      if (i % 2) { c.fillStyle = css("--band"); c.fillRect(x0, box.top, x1 - x0, box.height); }
      const x = Math.max(x0, box.left) + 5 * devicePixelRatio, end = Math.min(x1, box.left + box.width);
      const label = [band.label, band.short].find((text) => text && x > free && x + c.measureText(text).width < end);
      if (label) { c.fillStyle = css("--muted"); c.fillText(label, x, box.top + 4 * devicePixelRatio); free = x + c.measureText(label).width; }
    }
  });

  const over = (spec) => (u) => clip(u, (c, box) => {
    const px = devicePixelRatio;
    c.font = font(); c.textAlign = "right";
    for (const mark of spec.marks || []) {
      const y = u.valToPos(mark.value, "y", true);
      c.strokeStyle = css("--mark"); c.lineWidth = 2 * px; c.setLineDash([5 * px, 3 * px]); c.beginPath();
      c.moveTo(u.valToPos(mark.from, "x", true) + px, y);
      c.lineTo(u.valToPos(mark.to ?? u.scales.x.max, "x", true) - px, y); c.stroke();
    }
    const lines = (spec.lines || []).map((l) => ({ ...l, y: u.valToPos(l.value, "y", true) })).sort((a, b) => a.y - b.y);
    const busy = (spec.events || []).some((e) => { const x = u.valToPos(e.t, "x", true) - box.left; return x > box.width - 150 * px && x < box.width + 5 * px; });
    const at = busy ? box.left + 6 * px : box.left + box.width - 6 * px;
    c.textAlign = busy ? "left" : "right";
    lines.forEach((line, i) => {
      c.strokeStyle = c.fillStyle = css(line.kind === "soft" ? "--soft" : "--ceil");
      c.lineWidth = 1.5 * px; c.setLineDash(line.kind === "soft" ? [7 * px, 4 * px] : []);
      c.beginPath(); c.moveTo(box.left, line.y); c.lineTo(box.left + box.width, line.y); c.stroke();
      if (line.y > box.top) {
        const above = i === 0 && lines.length > 1 || line.kind !== "soft";
        c.textBaseline = above ? "bottom" : "top";
        c.fillText(line.label, at, line.y + (above ? -3 : 4) * px);
      }
    });
    if (u.$above) { c.fillStyle = css("--ceil"); c.textBaseline = "top"; c.fillText(u.$above + " ↑", at, box.top + (busy ? 20 : 4) * px); }
    c.setLineDash([]); c.textBaseline = "bottom";
    for (const event of spec.events || []) {
      const x = u.valToPos(event.t, "x", true);
      c.strokeStyle = c.fillStyle = css("--badc"); c.lineWidth = 1.5 * px;
      c.beginPath(); c.moveTo(x, box.top); c.lineTo(x, box.top + box.height); c.stroke();
      c.textAlign = x > box.left + box.width / 2 ? "right" : "left";
      c.fillText(event.label, x + (c.textAlign === "right" ? -5 : 5) * px, box.top + box.height - 5 * px);
    }
  });

  // The y range follows what is visible; limits are in it unless they would flatten the curve.
  const rangeY = (spec) => (u, low, high) => {
    if (low == null) return [0, 1];
    const visible = (m) => (m.to ?? Infinity) >= u.scales.x.min && m.from <= u.scales.x.max;
    const span = spec.zero ? high : Math.max(high - low, high * 0.02, 1e-9);
    const room = 36 / Math.max(u.bbox.height / devicePixelRatio, 150); // two lines of labels above the ceiling
    let top = high + (spec.bands ? Math.max(room, 0.08) : 0.08) * span;
    for (const m of spec.marks || []) if (visible(m) && m.value <= high * 2.5) top = Math.max(top, m.value + 0.05 * span);
    u.$above = "";
    for (const line of spec.lines || []) {
      if (line.value <= (spec.zero ? 7 * high : top + 3 * span)) top = Math.max(top, line.value + room * (line.value - (spec.zero ? 0 : low)));
      else if (line.kind === "ceiling") u.$above = line.label;
    }
    return [spec.zero || low < 0.55 * top ? 0 : low - 0.1 * span, top];
  };

  // -- one chart ---------------------------------------------------------------------------------

  function series(s, spec) {
    const stroke = () => colour(s.colour ?? 0), base = { label: s.label, stroke, width: s.width ?? 1.5, points: { show: false } };
    if (s.style === "bars") return { ...base, width: 0, fill: stroke, paths: uPlot.paths.bars({ size: [0.72, 64] }) };
    if (s.style === "points") return { ...base, paths: () => null, points: { show: true, size: s.size ?? 5, fill: stroke, stroke, width: 0 } };
    if (s.style === "both") return { ...base, dash: s.dash, fill: s.fill ? () => css("--fill") : undefined, points: { show: true, size: 6, fill: stroke, stroke, width: 0 } };
    return { ...base, dash: s.dash, fill: s.fill ? () => css("--fill") : undefined };
  }

  function axes(spec) {
    const common = { stroke: () => css("--muted"), grid: { stroke: () => css("--rule"), width: 1 }, ticks: { stroke: () => css("--rule"), width: 1, size: 4 }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 18 };
    const values = spec.x.clock ? (u, at) => at.map((v) => clock(v, u.scales.x.max - u.scales.x.min, digitsOf(at)))
      : (u, at) => at.map((v) => (spec.x.whole && v % 1 ? "" : spec.x.ticks ? spec.x.ticks[v] ?? "" : grouped(v, digitsOf(at))));
    return [
      { ...common, label: spec.x.label, values, space: 60, size: 32, grid: { show: !spec.x.whole, stroke: () => css("--rule"), width: 1 } },
      { ...common, label: spec.y.label, size: 62, values: (u, at) => at.map((v) => grouped(v, digitsOf(at))) },
    ];
  }

  function build(figureElement) {
    const spec = specs[figureElement.id], host = figureElement.querySelector(".plot");
    const data = tables(spec), x = data[0];
    const height = () => (innerWidth < 560 ? 250 : spec.height ?? 330);
    const full = spec.range ?? (spec.x.whole ? [x[0] - 0.6, x[x.length - 1] + 0.6] : [Math.min(0, x[0]), Math.max(x[x.length - 1] * (spec.x.clock ? 1 : 1.015), x[0] + 1e-3)]);
    const tip = document.createElement("div");
    tip.className = "tip"; tip.setAttribute("role", "status");
    const u = new uPlot({
      width: host.clientWidth || 600, height: height(), legend: { show: false }, padding: [8, 26, 0, 0],
      scales: { x: { time: false, range: (self, a, b) => (a == null ? full : [a, b]) }, y: { range: rangeY(spec) } },
      series: [{}, ...spec.series.map((s) => series(s, spec))],
      axes: axes(spec),
      cursor: { drag: { x: true, y: false, uni: 20 }, points: { size: 8 }, dataIdx: (self, si, index) => (si === 0 ? index : nearestKnown(self.data[si], index)), bind: { dblclick: () => () => { zoom(...full); } } },
      hooks: { drawClear: [behind(spec)], draw: [over(spec)], setCursor: [(self) => showTip(self)], setScale: [(self, key) => { if (key === "x") figureElement.dataset.window = self.scales.x.min + " " + self.scales.x.max; }] },
    }, data, host);
    u.over.append(tip);
    u.setScale("x", { min: (spec.window ?? full)[0], max: (spec.window ?? full)[1] });

    function showTip(self) {
      const index = self.cursor.idx, left = self.cursor.left;
      if (index == null || left < 0) { tip.style.display = "none"; return; }
      const lines = [], at = x[index];
      const band = (spec.bands || []).findLast((b) => at >= b.from && (b.to == null || at < b.to));
      spec.series.forEach((s, i) => {
        if (!self.series[i + 1].show) return;
        const value = self.data[i + 1][nearestKnown(self.data[i + 1], index)];
        const shown = s.true_y ? s.true_y[index] : value;
        if (shown != null) lines.push(s.label + ": " + figure(shown, spec.y));
      });
      const mark = (spec.marks || []).findLast((m) => at >= m.from && (m.to == null || at < m.to));
      if (mark) lines.push("predicted peak: " + figure(mark.value, spec.y));
      const head = document.createElement("b");
      head.textContent = (spec.x.clock ? grouped(at, 2) + " s" : spec.x.names ? spec.x.names[at] ?? at : figure(at, { digits: 0, unit: spec.x.unit })) + (band ? " · " + band.label : "");
      tip.replaceChildren(head, ...lines.flatMap((line) => { const div = document.createElement("div"); div.textContent = line; return [div]; }));
      tip.style.display = "block";
      const wide = tip.offsetWidth, room = self.over.clientWidth;
      tip.style.left = Math.max(2, left + 14 + wide > room ? left - wide - 14 : left + 14) + "px";
      tip.style.top = Math.max(2, Math.min(self.cursor.top + 10, self.over.clientHeight - tip.offsetHeight - 4)) + "px";
    }

    function zoom(min, max) {
      const wide = Math.min(max - min, full[1] - full[0]);
      const from = Math.max(full[0], Math.min(min, full[1] - wide));
      u.setScale("x", { min: from, max: from + wide });
    }
    const by = (factor) => () => { const { min, max } = u.scales.x, middle = (min + max) / 2, half = ((max - min) / 2) * factor; zoom(middle - half, middle + half); };
    const pan = (share) => () => { const { min, max } = u.scales.x, step = (max - min) * share; zoom(min + step, max + step); };
    if (!spec.x.whole) {
      const buttons = [["+", "Zoom in", by(0.5)], ["−", "Zoom out", by(2)], ["←", "Move left", pan(-0.5)], ["→", "Move right", pan(0.5)], ["All", "Show everything", () => zoom(...full)]];
      if (spec.tail) buttons.push([spec.tail.label, "Show " + spec.tail.label, () => zoom(spec.tail.from, spec.tail.to)]);
      for (const [text, title, action] of buttons) {
        const button = document.createElement("button");
        button.type = "button"; button.textContent = text; button.title = title; button.setAttribute("aria-label", title);
        button.addEventListener("click", action);
        figureElement.querySelector(".tools").append(button);
      }
    }
    host.addEventListener("keydown", (event) => {
      const keys = { "+": by(0.5), "=": by(0.5), "-": by(2), "0": () => zoom(...full), Escape: () => u.setCursor({ left: -10, top: -10 }) };
      if (keys[event.key]) { keys[event.key](); event.preventDefault(); return; }
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      event.preventDefault();
      const way = event.key === "ArrowLeft" ? -1 : 1, wide = u.over.clientWidth, off = u.cursor.left == null || u.cursor.left < 0;
      let left = off ? (way > 0 ? 1 : wide - 1) : Math.max(0, Math.min(wide, u.cursor.left + (way * wide) / 60));
      if (spec.x.whole) left = u.valToPos(x[off ? (way > 0 ? 0 : x.length - 1) : Math.max(0, Math.min(x.length - 1, u.cursor.idx + way))], "x");
      u.setCursor({ left, top: u.over.clientHeight / 3 });
    });
    keysOf(figureElement, spec, u);
    new ResizeObserver(() => { if (host.clientWidth && host.clientWidth !== u.width) u.setSize({ width: host.clientWidth, height: height() }); }).observe(host);
    charts.push(u);
  }

  // -- the legend --------------------------------------------------------------------------------

  function swatch(style, name) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 24 12"); svg.setAttribute("aria-hidden", "true");
    const make = (tag, attributes) => { const e = document.createElementNS(svg.namespaceURI, tag); for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v); svg.append(e); return e; };
    const shape = style === "bars" ? make("rect", { x: 6, y: 0, width: 12, height: 12, rx: 2 }) : style === "points" ? make("circle", { cx: 12, cy: 6, r: 4 }) : make("line", { x1: 0, y1: 6, x2: 24, y2: 6, "stroke-width": 3 });
    if (style === "dashed") shape.setAttribute("stroke-dasharray", "7 4");
    shape.style.fill = shape.style.stroke = `var(${name})`;
    return svg;
  }

  function keysOf(figureElement, spec, u) {
    const keys = figureElement.querySelector(".keys");
    const add = (tag, style, name, label) => { const e = document.createElement(tag); e.className = "key"; e.append(swatch(style, name), label); keys.append(e); return e; };
    spec.series.forEach((s, i) => {
      const toggles = spec.series.length > 1 && s.style !== "bars";
      const key = add(toggles ? "button" : "span", s.dash ? "dashed" : s.style, "--c" + (s.colour ?? 0), s.label);
      if (!toggles) return;
      key.type = "button"; key.setAttribute("aria-pressed", "true");
      key.addEventListener("click", () => { const show = !u.series[i + 1].show; u.setSeries(i + 1, { show }); key.setAttribute("aria-pressed", String(show)); });
    });
    if ((spec.marks || []).length) add("span", "dashed", "--mark", "predicted peak");
  }

  // -- start -------------------------------------------------------------------------------------

  for (const element of document.querySelectorAll("[data-chart]")) {
    const folded = element.closest("details");
    if (folded && !folded.open) folded.addEventListener("toggle", () => build(element), { once: true });
    else build(element);
  }
  const redraw = () => charts.forEach((u) => u.redraw(false, true));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => { document.documentElement.classList.add("light"); redraw(); });
  addEventListener("afterprint", () => { document.documentElement.classList.remove("light"); redraw(); });
  if (navigator.clipboard) for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
  requestAnimationFrame(() => requestAnimationFrame(() => { document.documentElement.dataset.drawn = String(Math.round(performance.now())); }));
})();
