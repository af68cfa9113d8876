"use strict";
// The report. Text of a run reaches the page by textContent alone, never as markup.
(() => {
  const COLORS = 7, MAIN_HEIGHT = 320, SIDE_HEIGHT = 210, SMALL_HEIGHT = 168;
  const DASHES = [[], [7, 4], [2, 3]];
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  let data = JSON.parse(byId("data").textContent);

  // ---- Elements and words -------------------------------------------------------------------

  /** An element; props are attributes, children are elements or text. */
  function h(name, props, ...children) {
    const [tag, ...classes] = name.split(".");
    const element = document.createElement(tag);
    if (classes.length) element.className = classes.join(" ");
    for (const [key, value] of Object.entries(props || {}))
      if (value === true) element.setAttribute(key, "");
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value);
    element.append(...children.flat(Infinity).filter((x) => x !== null && x !== undefined && x !== false));
    return element;
  }
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const color = (i) => css(`--s${i % COLORS}`);
  const dash = (i) => DASHES[Math.floor(i / COLORS) % DASHES.length];
  const there = (x) => typeof x === "number" && Number.isFinite(x);
  const many = (n, one, more) => `${whole(n)} ${n === 1 ? one : more || one + "s"}`;
  const whole = (x) => Math.round(x).toLocaleString("en");
  const sentence = (text) => text && text[0].toUpperCase() + text.slice(1);

  function number(x) {
    if (!there(x)) return "–";
    const size = Math.abs(x);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return minus(x.toExponential(2).replace("e+", "e"));
    if (size >= 1e4) return minus(whole(x));
    return minus(String(+x.toPrecision(4)));
  }
  const minus = (text) => text.replace(/^-/, "\u2212").replace("e-", "e\u2212");
  const percent = (x) => (there(x) ? `${(100 * x).toFixed(x > 0 && x < 0.0995 ? 1 : 0)}%` : "–");
  function score(x) {
    if (!there(x)) return "–";
    if (Number.isInteger(x)) return minus(whole(x));
    return minus(Math.abs(x) >= 1000 ? whole(x) : Math.abs(x) >= 10 ? x.toFixed(1) : x.toFixed(3));
  }
  function duration(seconds) {
    if (!there(seconds)) return "–";
    if (seconds < 10) return `${seconds.toFixed(1)} s`;
    if (seconds < 120) return `${Math.round(seconds)} s`;
    const minutes = Math.round(seconds / 60);
    return minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }
  function clock(seconds) {
    const s = Math.round(seconds), pad = (n) => String(n).padStart(2, "0");
    if (s < 60) return seconds % 1 ? `${seconds.toFixed(1)}s` : `${s}s`;
    const [hours, minutes] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
    return hours ? `${hours}:${pad(minutes)}h` : `${minutes}:${pad(s % 60)}`;
  }
  function tick(x) {
    const size = Math.abs(x);
    if (size >= 1e6) return minus(`${+(x / 1e6).toPrecision(4)}M`);
    if (size >= 1e4) return minus(`${+(x / 1e3).toPrecision(4)}k`);
    if (size !== 0 && size < 1e-3) return minus(x.toExponential(0));
    return minus(String(+x.toPrecision(6)));
  }
  const place = (axis, x) => (axis === "seconds" ? clock(x) : whole(x));
  const axisLabel = () => data.axes.find((a) => a.key === view.axis).label;

  // ---- What is shown ------------------------------------------------------------------------

  const view = { axis: data.axes[0].key, seeds: true, zoom: null };
  let charts = [];
  const alone = () => data.groups.length === 1;
  const color_of = (group) => group;

  // ---- Charts -------------------------------------------------------------------------------

  /** Lines of a reading: of each group its mean with a band, or its run with its extremes. */
  function lines(key) {
    const found = [];
    data.groups.forEach((group, g) => {
      const band = ((data.bands[g] || {})[view.axis] || {})[key];
      if (view.seeds || !band)
        group.runs.forEach((r) => {
          const curves = data.runs[r].curves, y = curves.values[key];
          if (!y) return;
          const single = !band;
          found.push({ group: g, x: curves.axes[view.axis], y, thin: !single, name: group.label,
                       low: single && curves.low && curves.low[key], high: single && curves.high && curves.high[key] });
        });
      if (band)
        found.push({ group: g, x: band.x, y: band.mean, low: band.low, high: band.high, name: group.label,
                     seeds: band.runs });
    });
    return found.filter((line) => line.x.length);
  }

  /** Tables of uPlot and their series. */
  function plotted(key, threshold) {
    const tables = [], series = [{}], bands = [], found = lines(key);
    // All bands lie below all lines, and the lines of seeds below those of their means.
    for (const line of found.filter((l) => l.low)) {
      const at = series.length;
      tables.push([line.x, line.low, line.high]);
      // With few seeds an interval is wider than all that was seen: it does not set the scale.
      const auto = !(line.seeds < 4);
      for (let i = 0; i < 2; i++) series.push({ auto, stroke: "transparent", width: 0, points: { show: false }, role: "band" });
      bands.push({ series: [at + 1, at], fill: () => alpha(color(line.group), 0.17) });
    }
    for (const line of [...found.filter((l) => l.thin), ...found.filter((l) => !l.thin)]) {
      const few = line.y.filter(there).length < 40;
      tables.push([line.x, line.y]);
      series.push({
        stroke: () => (line.thin ? alpha(color(line.group), 0.38) : color(line.group)),
        width: line.thin ? 1 : 2, dash: dash(line.group), role: line.thin ? "seed" : "line", group: line.group,
        points: { show: few && !line.thin, size: 5, fill: () => color(line.group), stroke: () => color(line.group) },
      });
    }
    if (there(threshold) && tables.length) {
      const begin = Math.min(...tables.map((t) => t[0][0])), end = Math.max(...tables.map((t) => t[0][t[0].length - 1]));
      tables.push([[begin, end], [threshold, threshold]]);
      series.push({ stroke: () => css("--muted"), width: 1, dash: [4, 4], points: { show: false }, role: "threshold" });
    }
    for (const one of series.slice(1)) one.spanGaps = true;
    return { table: tables.length ? uPlot.join(tables) : [[]], series, bands };
  }

  function alpha(hex, a) {
    const n = parseInt(hex.slice(1), 16);
    return `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${a})`;
  }

  /** Index of the value nearest to the cursor: joined curves have gaps where others have points. */
  function nearest(u, seriesIdx, idx, x) {
    const xs = u.data[0], ys = u.data[seriesIdx];
    if (seriesIdx > 0 && u.series[seriesIdx].role !== "line") return null; // and no dot
    if (seriesIdx === 0 || !ys || there(ys[idx])) return idx;
    let [below, above] = [idx, idx];
    while (below >= 0 && !there(ys[below])) below--;
    while (above < ys.length && !there(ys[above])) above++;
    if (below < 0) return above < ys.length ? above : idx;
    if (above >= ys.length) return below;
    return x - xs[below] <= xs[above] - x ? below : above;
  }

  const axisStyle = (size, values) => ({
    stroke: () => css("--muted"), font: `12px ${css("--sans")}`, size, values,
    grid: { stroke: () => css("--grid"), width: 1 }, ticks: { show: false }, border: { show: false }, gap: 6,
  });

  /** Options that all charts share. */
  function options(width, height, parts, extra) {
    return {
      width, height, ...parts, legend: { show: false }, padding: [10, 18, 0, 0],
      scales: { x: { time: false }, y: { range: (u, low, high) => padded(low, high) } },
      axes: [
        { ...axisStyle(28, (u, splits) => splits.map((x) => (view.axis === "seconds" ? clock(x) : tick(x)))), space: 64,
          grid: { show: false } },
        { ...axisStyle(46, (u, splits) => splits.map(tick)), space: 28 },
      ],
      ...extra,
    };
  }
  function padded(low, high) {
    if (!there(low) || !there(high)) return [0, 1];
    if (low === high) return [low - (Math.abs(low) * 0.1 || 0.5), high + (Math.abs(high) * 0.1 || 0.5)];
    const room = 0.06 * (high - low);
    return [low >= 0 && low < room * 2 ? 0 : low - room, high + room];
  }

  function zoomed(u, key) {
    if (key !== "x" || view.zooming || !u.ready_) return;
    const { min, max } = u.scales.x, xs = u.data[0];
    view.zoom = min > xs[0] || max < xs[xs.length - 1] ? [min, max] : null;
    view.zooming = true;
    for (const chart of charts) if (chart.plot && chart.plot !== u && chart.synced) chart.plot.setScale("x", { min, max });
    view.zooming = false;
  }

  /** A figure with a curve for each group: hover, zoom and arrow keys move all of them together. */
  function chart(key, height, { threshold, first } = {}) {
    const reading = data.readings[key];
    const holder = h("div.plot", { tabindex: "0", role: "img" });
    const legend = h("ul.legend", {});
    const unit = h("span.unit", {}, reading.unit || "");
    const element = h(`figure.chart${first ? ".first" : ""}${alone() ? ".alone" : ""}`, { "data-key": key },
      h("figcaption", {}, reading.title, unit), h("p.meaning", {}, meaning(key, reading)), legend, holder);
    const self = { element, holder, height, synced: true, key };
    const draw = () => {
      const parts = plotted(key, threshold);
      holder.setAttribute("aria-label", summary(key, reading));
      if (self.plot) self.plot.destroy();
      entries(legend, key, parts, threshold);
      self.plot = new uPlot(options(widthOf(holder), height, { series: parts.series, bands: parts.bands }, {
        cursor: { y: false, points: { size: 7 }, dataIdx: nearest, sync: { key: "readings", scales: ["x", null] }, drag: { x: true, y: false } },
        hooks: {
          setCursor: [(u) => hovered(u, legend)], setScale: [zoomed],
          drawClear: reading.healthy ? [(u) => zone(u, reading.healthy)] : [],
        },
      }), parts.table, holder);
      for (const s of [...self.plot.root.querySelectorAll(".u-cursor-pt")]) s.classList.add("point");
      if (view.zoom) self.plot.setScale("x", { min: view.zoom[0], max: view.zoom[1] });
      self.plot.ready_ = true;
      self.count = parts.series.length;
    };
    self.draw = draw;
    self.refresh = () => {
      const parts = plotted(key, threshold);
      if (!self.plot || parts.series.length !== self.count) return draw();
      self.plot.setData(parts.table, !view.zoom);
      if (view.zoom) self.plot.redraw();
      holder.setAttribute("aria-label", summary(key, reading));
      hovered(self.plot, legend);
    };
    self.resize = () => self.plot && self.plot.setSize({ width: widthOf(holder), height });
    holder.addEventListener("keydown", (event) => keyed(event, self));
    charts.push(self);
    return element;
  }
  // Of A4 with the margins of the style sheet, in CSS pixels: before printing nothing can measure it.
  const PAPER = { first: 674, column: 314 };
  let printing = false;
  function widthOf(holder) {
    if (printing) return holder.closest(".first") ? PAPER.first : PAPER.column;
    return Math.max(160, Math.floor(holder.clientWidth || holder.parentNode.clientWidth || 320));
  }

  function meaning(key, reading) {
    const range = reading.healthy ? ` Usual range: ${reading.healthy[0]} to ${reading.healthy[1]}.` : "";
    return reading.meaning + range || `Added by a callback: ${key}.`;
  }

  /** Tint of the range in which a reading usually stays. */
  function zone(u, [low, high]) {
    const { ctx, bbox } = u, top = Math.max(u.valToPos(high, "y", true), bbox.top);
    const bottom = Math.min(u.valToPos(low, "y", true), bbox.top + bbox.height);
    if (bottom <= top) return;
    ctx.save();
    ctx.fillStyle = css("--zone");
    ctx.fillRect(bbox.left, top, bbox.width, bottom - top);
    ctx.restore();
  }

  /** Legend: a key, a name and the value under the cursor for each group. */
  function entries(legend, key, parts, threshold) {
    legend.replaceChildren(...data.groups.map((group, g) => {
      const has = parts.series.some((s) => s.group === g && s.role === "line");
      if (!has) return null;
      const style = ["", ".dash", ".dots"][Math.floor(g / COLORS) % 3];
      return h("li", { "data-group": g }, h(`span.key.c${g % COLORS}${style}`, { "aria-hidden": "true" }),
        h("span.name", {}, group.label), h("b", {}, ""));
    }).filter(Boolean));
    if (there(threshold))
      legend.append(h("li.goal", {}, h("span.key.dash.c6", { "aria-hidden": "true" }), h("span.name", {}, "success"), h("b", {}, number(threshold))));
    legend.prepend(h("li.at", {}));
  }

  function hovered(u, legend) {
    const at = u.cursor.idx, on = there(at) && u.cursor.left >= 0;
    for (const item of legend.querySelectorAll("[data-group]")) {
      const i = u.series.findIndex((s) => s.role === "line" && s.group === +item.dataset.group);
      if (i < 0) continue;
      const ys = u.data[i];
      let k = on ? nearest(u, i, at, u.data[0][at]) : ys.length - 1;
      if (!on) while (k > 0 && !there(ys[k])) k--;
      item.querySelector("b").textContent = number(ys[k]);
    }
    legend.querySelector(".at").textContent = on ? `at ${place(view.axis, u.data[0][at])}` : "";
  }

  function keyed(event, self) {
    const u = self.plot, xs = u.data[0], step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") return u.setCursor({ left: -10, top: -10 }, true, true);
    if (step === undefined || !xs.length) return;
    event.preventDefault();
    const stride = event.shiftKey ? 10 : 1, from = there(u.cursor.idx) && u.cursor.left >= 0 ? u.cursor.idx : step > 0 ? -1 : xs.length;
    const at = Math.min(xs.length - 1, Math.max(0, from + step * stride));
    u.setCursor({ left: u.valToPos(xs[at], "x"), top: u.bbox.height / 2 / devicePixelRatio }, true, true);
    const values = [...self.element.querySelectorAll(".legend [data-group]")].map((x) => x.textContent).join(", ");
    byId("said").textContent = `${axisLabel()} ${place(view.axis, xs[at])}: ${values}`;
  }

  /** A chart in words, for who cannot see it. */
  function summary(key, reading) {
    const words = lines(key).filter((line) => !line.thin).map((line) => {
      const ys = line.y.filter(there);
      if (!ys.length) return `${line.name}: no values`;
      return `${line.name}: from ${number(ys[0])} to ${number(ys[ys.length - 1])}, lowest ${number(Math.min(...ys))}, highest ${number(Math.max(...ys))}`;
    });
    return `${reading.title} over ${axisLabel()}. ${words.join(". ")}. Arrow keys read single values.`;
  }

  // ---- Sections -----------------------------------------------------------------------------

  const scrolled = (...children) => h("div.scroll", { tabindex: "0", role: "group", "aria-label": "Table" }, ...children);
  const chip = (g) => h(`span.chip.c${g % COLORS}`, { "aria-hidden": "true" });
  const folded = (id, title, ...children) => h("details", { id }, h("summary", {}, title), ...children);

  function table(head, rows, numeric = []) {
    const cell = (tag, x, i, props) => h(numeric.includes(i) ? `${tag}.number` : tag, props, x);
    return scrolled(h("table", {},
      h("thead", {}, h("tr", {}, head.map((x, i) => cell("th", x, i, { scope: "col" })))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((x, i) => (i ? cell("td", x, i) : h("th", { scope: "row" }, x))))))));
  }

  function masthead() {
    const steps = data.runs.map((r) => r.count), most = Math.max(0, ...steps);
    const runs = data.runs.length === 1 ? data.runs[0].name : many(data.runs.length, "run");
    const counted = most ? `${whole(most)} ${data.counter}` : "no update yet";
    const live = data.live && h("span.pulse", { id: "pulse" }, "live");
    byId("masthead").replaceChildren(
      h("p.overline", {}, h("b", {}, "Proximo report"), h("span", {}, data.made), live),
      h("h1", {}, data.title), h("p.lede", {}, `${runs} · ${counted}`));
  }

  const scored = (group) => {
    if (!group.scored) return "–";
    return there(group.half_width) ? `${score(group.mean)} ± ${score(group.half_width)}` : score(group.mean);
  };
  const ending = (run) => run.ended || (data.live ? "training" : "no result: still training, or stopped");

  function summarySection() {
    const one = data.runs.length === 1 && data.runs[0];
    if (one) return [one_run(one), warnings()];
    const interval = (g) => (there(g.iqm_low) ? `${score(g.iqm)} [${score(g.iqm_low)}, ${score(g.iqm_high)}]` : "–");
    const rows = data.groups.map((group, g) => {
      const runs = group.runs.map((r) => data.runs[r]), of = (key) => runs.map((r) => r[key]);
      return [h("span.whole", {}, chip(g), group.label), String(runs.length), scored(group), interval(group), whole(Math.max(...of("count"))),
              duration(median(of("seconds"))), [...new Set(runs.map(ending))].join("; ")];
    });
    const head = ["Group", "Runs", "Score", "IQM", sentence(data.counter), "Time", "Ended"];
    const each = data.runs.map((run) => [run.name, String(run.seed), score(run.score), whole(run.count), duration(run.seconds), ending(run)]);
    return [
      table(head, rows, [1, 2, 3, 4, 5]),
      h("p.note", {}, `Score: ${data.score}; mean over runs ± half of its 95% interval (Student's t). IQM: interquartile mean with its 95% bootstrap interval. Time: median over runs.`),
      folded("each", `Each of ${many(data.runs.length, "run")}`, table(["Run", "Seed", "Score", sentence(data.counter), "Time", "Ended"], each, [1, 2, 3, 4])),
      warnings(),
    ];
  }
  function one_run(run) {
    const share = run.total && (data.counter === "steps" ? run.count : run.updates) / run.total;
    const entry = (term, value, small, big) => h(big ? "div.big" : "div", {}, h("dt", {}, term), h("dd", {}, value, small && h("small", {}, small)));
    return h("dl.stats", {},
      entry("Score", score(run.score), data.score, true),
      there(run.best) && entry("Best", score(run.best), "highest of the run"),
      entry(sentence(data.axes.find((a) => a.key === data.counter).label), whole(run.count), `${many(run.updates, "update")}${share && share < 1 ? `, ${percent(share)} of the run` : ""}`),
      entry("Time", duration(run.seconds), run.seconds > 0 && `${whole(run.count / run.seconds)} ${data.counter} a second`),
      entry(run.ended ? "Ended" : "State", sentence(ending(run)), `seed ${run.seed}`));
  }
  function median(values) {
    const sorted = values.filter(there).sort((a, b) => a - b), n = sorted.length;
    return n ? (sorted[(n - 1) >> 1] + sorted[n >> 1]) / 2 : NaN;
  }
  function warnings() {
    const found = new Map();
    data.runs.forEach((run) => run.warnings.forEach((text) => found.set(text, [...(found.get(text) || []), run.name])));
    if (!found.size) return null;
    const of = (names) => (data.runs.length > 1 ? ` (${names.join(", ")})` : "");
    return h("div", {}, h("h3", {}, "Warnings of the run"), h("ul.warnings", {}, [...found].map(([text, names]) => h("li", {}, text + of(names)))));
  }

  function healthSection() {
    if (!data.findings.length) return [h("p.well", {}, "No finding in the readings of ", data.runs.length > 1 ? "these runs." : "this run.")];
    return data.findings.map((finding) => {
      const copy = h("button.copy", { type: "button" }, "Copy");
      copy.addEventListener("click", () => copied(copy, finding.remedy));
      const first = Math.min(...finding.seen.map((s) => s.update)), seen = finding.seen.length;
      const where = data.runs.length > 1 ? `in ${seen} of ${many(data.runs.length, "run")} (${finding.seen.map((s) => data.runs[s.run].name).join(", ")}), ` : "";
      return h("article.finding", {}, h("h3", {}, ruled(finding.rule)), h("p", {}, ended(sentence(finding.cause))),
        h("p.evidence", {}, finding.seen[0].evidence), h("p.remedy", {}, h("code", {}, finding.remedy), copy),
        h("p.where", {}, `Seen ${where}first at update ${whole(first)}. Explained in ${finding.link}`));
    });
  }
  const ended = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);
  const ruled = (rule) => sentence(rule.replace(/-/g, " ")).replace(/\b(kl|eos|nan)\b/gi, (word) => word.toUpperCase());
  async function copied(button, text) {
    try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
    catch { button.textContent = "Not allowed here"; }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }

  function learningSection() {
    const own = data.main.filter((key) => lines(key).length);
    if (!own.length) return [h("p.note", {}, "No reading yet: the first update has not ended.")];
    const shown = own.map((key, i) => chart(key, i ? SIDE_HEIGHT : MAIN_HEIGHT, { threshold: threshold_of(key), first: !i }));
    const frontier = data.counter === "tokens" && data.readings.kl && data.readings.score && scoreAgainstKL();
    const seeds = data.groups.some((g) => g.runs.length > 1);
    const spread = data.runs.some((r) => r.curves.low);
    return [h("div.charts.wide", {}, shown, frontier), h("p.note", {},
      seeds ? "Lines: mean over the runs of a group; thin lines: its runs; band: 95% interval of the mean (Student's t). " : spread ? "Lines: means of consecutive updates; band: from the lowest to the highest of them. " : "",
      "Drag to zoom, double-click to see all; arrow keys read single values.")];
  }
  const threshold_of = (key) => (["return_mean", "evaluation", "return_smoothed"].includes(key) ? data.threshold : undefined);

  /** Score over KL to the reference: what each nat of distance has earned. */
  function scoreAgainstKL() {
    const holder = h("div.plot", { role: "img", "aria-label": "Score over the KL to the reference, a point per update" });
    const legend = h("ul.legend", {});
    const element = h("figure.chart", { "data-key": "score-kl" }, h("figcaption", {}, "Score against KL"),
      h("p.meaning", {}, "A point per update, later ones stronger: what each nat of distance to the reference has earned."), legend, holder);
    const self = { element, holder };
    const SHADES = 5;
    self.draw = () => {
      const tables = [], series = [{}];
      data.groups.forEach((group, g) => {
        for (let part = 0; part < SHADES; part++) {
          const points = [];
          for (const r of group.runs) {
            const { kl, score: s } = data.runs[r].curves.values;
            if (!kl || !s) continue;
            const n = kl.length;
            for (let i = Math.floor((part * n) / SHADES); i < Math.floor(((part + 1) * n) / SHADES); i++)
              if (there(kl[i]) && there(s[i])) points.push([kl[i], s[i]]);
          }
          points.sort((a, b) => a[0] - b[0]);
          if (!points.length) continue;
          tables.push([points.map((p) => p[0]), points.map((p) => p[1])]);
          const fill = () => alpha(color(g), 0.2 + (0.75 * part) / (SHADES - 1));
          series.push({ paths: () => null, stroke: fill, points: { show: true, size: 6, fill, stroke: "transparent", width: 0 } });
        }
      });
      if (self.plot) self.plot.destroy();
      if (!tables.length) return;
      legend.replaceChildren(...(alone() ? [] : data.groups.map((group, g) => h("li", {}, h(`span.key.c${g % COLORS}`, {}), h("span.name", {}, group.label)))));
      const parts = options(widthOf(holder), SIDE_HEIGHT + 24, { series }, { cursor: { y: true, drag: { x: false, y: false } } });
      parts.axes[0] = { ...axisStyle(28, (u, splits) => splits.map(tick)), space: 56, label: "KL to the reference, nats", labelSize: 18, labelFont: `12px ${css("--sans")}` };
      parts.axes[1] = { ...axisStyle(52, (u, splits) => splits.map(tick)), label: "score", labelSize: 14, labelFont: `12px ${css("--sans")}` };
      parts.scales.x.range = (u, low, high) => padded(low, high);
      self.plot = new uPlot(parts, distinct(tables), holder);
    };
    self.refresh = self.draw;
    self.resize = () => self.plot && self.plot.setSize({ width: widthOf(holder), height: SIDE_HEIGHT + 24 });
    charts.push(self);
    return element;
  }
  /** Joined tables whose x may repeat, which a join would merge: each point keeps its own row. */
  function distinct(tables) {
    const rows = tables.flatMap((t, k) => t[0].map((x, i) => [x, k, t[1][i]])).sort((a, b) => a[0] - b[0]);
    return [rows.map((r) => r[0]), ...tables.map((_, k) => rows.map((r) => (r[1] === k ? r[2] : null)))];
  }

  function replaysSection() {
    const replays = data.replays || [], notes = data.replay_notes || [];
    return [replays.length ? h("div.replays", {}, replays.map(replay)) : null, ...notes.map((text) => h("p.note", {}, text))];
  }
  const group_of = (run) => data.groups.findIndex((g) => g.runs.includes(run));
  function replay(one) {
    const words = `${one.label} policy: return ${score(one.return)} in ${many(one.steps, "step")}`;
    const of = data.groups.length > 1 && `${data.groups[group_of(one.run)].label}, ${data.runs[one.run].name}`;
    const caption = h("figcaption", {}, h("span", {}, of && chip(group_of(one.run)), h("b", {}, of || one.label),
      h("small", {}, of ? `${one.label}: return` : "Return", ` ${score(one.return)} in ${many(one.steps, "step")}${one.cut ? ", cut off" : ""}; update ${whole(one.update)}`)));
    const source = `data:${one.mime};base64,${one.data}`;
    if (!one.mime.startsWith("video/")) {
      const image = h("img", { alt: words });
      image.src = source;
      return h("figure", {}, image, caption);
    }
    const video = h("video", { loop: true, playsinline: true, preload: "auto", "aria-label": words });
    const button = h("button", { type: "button", "aria-label": `Play the ${one.label.toLowerCase()} policy` }, "Play");
    const toggle = () => (video.paused ? video.play() : video.pause());
    video.muted = true;
    video.src = source;
    for (const name of ["play", "pause"]) video.addEventListener(name, () => (button.textContent = video.paused ? "Play" : "Pause"));
    video.addEventListener("click", toggle);
    button.addEventListener("click", toggle);
    caption.append(button);
    return h("figure", {}, video, caption);
  }

  function behaviourSection() {
    const notes = (data.behaviour_notes || []).map((text) => h("p.note", {}, text));
    return [...(data.behaviour || []).map(behaviour).flat(), ...notes];
  }
  function behaviour(one) {
    const group = group_of(one.run);
    const words = `${many(one.episodes, "episode")} with sampled actions, ${many(one.steps, "step")}: mean return ${score(one.return_mean)}.`;
    const panels = one.actions.panels.map((panel) => bars(panel, group));
    if (one.actions.left_out) panels.push(h("p.note", {}, `${many(one.actions.left_out, "further part")} of the action not shown.`));
    return [
      h("p", {}, data.groups.length > 1 && chip(group), data.runs.length > 1 ? `${data.groups[group].label}, ${data.runs[one.run].name}. ` : "", words),
      h("div.charts", {}, one.values && scatter(one.values, group), panels),
    ];
  }
  function bars(panel, group) {
    const holder = h("div.plot", { role: "img", "aria-label": `Distribution of the action ${panel.name}` });
    const shares = panel.kind === "shares";
    const named = panel.name ? `Action ${panel.name}` : "Actions";
    const said = shares ? "Share of the steps in which each choice was taken." : `Share of the steps; ${percent(panel.at_bounds)} at the bounds.`;
    const element = h("figure.chart", {}, h("figcaption", {}, named), h("p.meaning", {}, said), h("ul.legend", {}, h("li.at", {})), holder);
    const at = element.querySelector(".at");
    const self = { element, holder };
    const width = shares ? 1 : panel.x.length > 1 ? panel.x[1] - panel.x[0] : 1;
    self.draw = () => {
      if (self.plot) self.plot.destroy();
      const ends = [panel.x[0] - width / 2, panel.x[panel.x.length - 1] + width / 2];
      const parts = options(widthOf(holder), SMALL_HEIGHT, { series: [{}, {
        paths: uPlot.paths.bars({ size: [shares ? 0.7 : 0.98, 90] }), fill: () => alpha(color(group), 0.75), stroke: "transparent", width: 0, points: { show: false },
      }] }, {
        cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
        hooks: { setCursor: [(u) => { const i = u.cursor.idx; at.textContent = there(i) && u.cursor.left >= 0 ? `${shares ? "choice" : "about"} ${number(panel.x[i])}: ${percent(panel.share[i])}` : ""; }] },
      });
      parts.scales = { x: { time: false, range: () => ends }, y: { range: (u, low, high) => [0, (high || 1) * 1.08] } };
      parts.axes[0] = { ...parts.axes[0], space: shares ? 30 : 46, values: (u, splits) => splits.map((x) => (shares && x % 1 ? "" : tick(x))) };
      parts.axes[1] = { ...parts.axes[1], values: (u, splits) => splits.map((x) => `${+(100 * x).toPrecision(3)}%`) };
      self.plot = new uPlot(parts, [panel.x, panel.share], holder);
    };
    self.refresh = () => {};
    self.resize = () => self.plot && self.plot.setSize({ width: widthOf(holder), height: SMALL_HEIGHT });
    charts.push(self);
    return element;
  }
  /** One range for values and returns: what differs little from the other looks so. */
  function shared(all) {
    const [low, high] = [Math.min(...all), Math.max(...all)], middle = (low + high) / 2;
    const half = Math.max(0.55 * (high - low), 0.05 * Math.abs(middle), 1e-6);
    return [middle - half, middle + half];
  }
  function scatter(values, group) {
    const holder = h("div.plot", { role: "img", "aria-label": "Realised return over the value, a point per step" });
    const said = `The closer to the line, the better the critic: it explains ${values.explained > 0 ? percent(values.explained) : "none"} of the variance of the returns, and is ${number(Math.abs(values.bias))} too ${values.bias < 0 ? "low" : "high"} on average.`;
    const element = h("figure.chart", { "data-key": "values" }, h("figcaption", {}, "Value against realised return"), h("p.meaning", {}, said), holder);
    const self = { element, holder };
    self.draw = () => {
      if (self.plot) self.plot.destroy();
      const fill = () => alpha(color(group), 0.35);
      const parts = options(widthOf(holder), SMALL_HEIGHT + 40, { series: [{},
        { paths: () => null, stroke: fill, points: { show: true, size: 4, fill, stroke: "transparent", width: 0 } },
        { stroke: () => css("--muted"), width: 1, dash: [4, 4], points: { show: false } },
      ] }, { cursor: { show: false } });
      const both = shared([...values.value, ...values.return].filter(there));
      parts.scales = { x: { time: false, range: () => both }, y: { range: () => both } };
      parts.axes[0] = { ...axisStyle(28, (u, splits) => splits.map(tick)), space: 48, label: "value V(s)", labelSize: 18, labelFont: `12px ${css("--sans")}` };
      parts.axes[1] = { ...axisStyle(50, (u, splits) => splits.map(tick)), label: "discounted return", labelSize: 14, labelFont: `12px ${css("--sans")}` };
      const x = [both[0], ...values.value, both[1]];
      self.plot = new uPlot(parts, [x, [null, ...values.return, null], x], holder);
    };
    self.refresh = () => {};
    self.resize = () => self.plot && self.plot.setSize({ width: widthOf(holder), height: SMALL_HEIGHT + 40 });
    charts.push(self);
    return element;
  }

  function readingsSection() {
    const parts = [], constants = [];
    const sections = new Map();
    for (const [key, reading] of Object.entries(data.readings)) {
      if (data.main.includes(key) || !lines(key).length) continue;
      const values = data.runs.flatMap((run) => (run.curves.values[key] || []).filter(there));
      if (new Set(values).size === 1) constants.push([reading.title, values[0]]);
      else sections.set(reading.section, [...(sections.get(reading.section) || []), key]);
    }
    for (const [title, keys] of sections)
      parts.push(h("h3", {}, title), h("div.charts", {}, keys.map((key) => chart(key, SMALL_HEIGHT, { threshold: threshold_of(key) }))));
    if (constants.length)
      parts.push(h("h3", {}, "Constant"), h("ul.constants", {}, constants.map(([title, x]) => h("li", {}, h("span", {}, title), h("b", {}, number(x))))));
    parts.push(folded("numbers", "All readings as a table", numbersTable()));
    return parts;
  }
  function numbersTable() {
    const rows = [];
    for (const [key, reading] of Object.entries(data.readings))
      for (const line of lines(key).filter((l) => !l.thin)) {
        const ys = line.y.filter(there);
        if (ys.length) rows.push([reading.title, alone() ? key : line.name, ...[ys[0], ys[ys.length - 1], Math.min(...ys), Math.max(...ys)].map(number)]);
      }
    return table(["Reading", alone() ? "Key" : "Group", "First", "Last", "Lowest", "Highest"], rows, [2, 3, 4, 5]);
  }

  function samplesSection() {
    return data.samples.map((updates, r) => {
      if (!updates.length) return null;
      const run = data.runs[r], output = h("output", {});
      const range = h("input", { type: "range", min: "0", max: String(updates.length - 1), value: String(updates.length - 1), "aria-label": `Update of the samples of ${run.name}` });
      const place_ = h("div", {});
      const show = () => {
        const one = updates[+range.value];
        output.textContent = `update ${whole(one.update)}`;
        place_.replaceChildren(scrolled(h("table", {},
          h("thead", {}, h("tr", {}, ["Prompt", "Completion"].map((x) => h("th", { scope: "col" }, x)), ["Score", "KL"].map((x) => h("th.number", { scope: "col" }, x)))),
          h("tbody", {}, one.samples.map((s) => h("tr", {}, h("td.text.prompt", {}, s.prompt), h("td.text", {}, s.completion), h("td.number", {}, number(s.score)), h("td.number", {}, number(s.kl))))))));
      };
      range.addEventListener("input", show);
      show();
      return h("div", {}, data.runs.length > 1 && h("h3", {}, run.name), h("p.picker", {}, h("span", {}, "Completions of"), output, range), place_);
    });
  }

  function settingsSection() {
    const { rows, references } = data.settings, differ = rows.filter((row) => row.differs);
    const head = () => ["Setting", ...data.groups.map((group, g) => h("span", {}, data.groups.length > 1 && chip(g), group.label, " ", h("small", {}, references[g] ? `(${references[g]})` : "")))];
    const cells = (row) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, row.name)), row.values.map((x, g) =>
      h(row.changed[g] ? "td.changed" : "td", {}, x === "" ? "–" : x, row.changed[g] && h("small", {}, `${references[g]}: ${row.preset[g]}`))));
    const listed = (some) => scrolled(h("table", {}, h("thead", {}, h("tr", {}, head().map((x) => h("th", { scope: "col" }, x)))), h("tbody", {}, some.map(cells))));
    const compared = [...new Set(references.filter(Boolean))].join(", ") || "the defaults";
    return [
      differ.length ? listed(differ) : h("p.note", {}, `All settings are those of ${compared}${data.groups.length > 1 ? " and of each other" : ""}.`),
      differ.length ? h("p.note", {}, "Settings that differ from their preset (bold) or from each other; what a run chooses by itself is not counted.") : null,
      folded("all-settings", `All ${rows.length} settings`, listed(rows)),
      folded("versions", "Versions", versions()),
    ];
  }
  function versions() {
    const names = [...new Set(data.runs.flatMap((run) => Object.keys(run.versions)))];
    if (!names.length) return h("p.note", {}, "No versions.json.");
    return table(["Package", "Version"], names.map((name) => [name, [...new Set(data.runs.map((run) => run.versions[name] || "–"))].join(", ")]));
  }

  function timeSection() {
    const measured = data.groups.map((group, g) => [g, group.runs.find((r) => data.time[r].phases.length)]).filter(([, r]) => r !== undefined);
    const speed = (t) => `${whole(t.speed)} ${data.counter} a second`;
    const parts = measured.map(([g, r]) => {
      const time = data.time[r];
      return h("div", {}, data.groups.length > 1 && h("h3", {}, chip(g), data.groups[g].label),
        h("ul.shares", {}, [...time.phases].sort((a, b) => b.share - a.share).map((phase) => {
          const fill = h(`span.fill.c${g % COLORS}`, {});
          fill.style.width = `${100 * phase.share}%`;
          return h("li", {}, h("span", {}, phase.name, h("small", {}, phase.words)), h("span.track", { "aria-hidden": "true" }, fill),
            h("span.number", {}, percent(phase.share), there(phase.microseconds) && h("small", {}, `${number(phase.microseconds)} µs a step`)));
        })),
        there(time.ceiling) && h("p.note", {}, `The envs alone would run at ${whole(time.ceiling)} steps a second; the run reached ${percent(time.speed / time.ceiling)} of that.`));
    });
    if (parts.length) return parts;
    const known = data.groups.map((group, g) => {
      const runs = group.runs.map((r) => data.time[r]).filter((t) => there(t.speed));
      return runs.length && `${data.groups.length > 1 ? `${group.label}: ` : ""}${speed({ speed: median(runs.map((t) => t.speed)) })}`;
    }).filter(Boolean);
    return [known.length ? h("p", {}, `${sentence(known.join("; "))}, evaluations and files included.`) : null,
      data.counter === "steps" || known.length ? h("p.note", {}, "The parts were not measured: train with ", h("code", {}, "--run.profile"), " to see them.") : null];
  }

  function logSection() {
    return data.runs.filter((run) => run.log.length).map((run, i) => {
      const text = h("pre.log", { tabindex: "0", "aria-label": `Log of ${run.name}` }, run.log.join("\n"));
      const title = `${run.log_cut ? "Last" : "All"} ${many(run.log.length, "line")} of the log${data.runs.length > 1 ? ` of ${run.name}` : ""}`;
      return folded(`log-${i}`, title, text);
    });
  }

  const SECTIONS = [
    ["summary", "Summary", summarySection], ["health", "Health", healthSection], ["learning", "Learning", learningSection],
    ["replays", "Replays", replaysSection], ["behaviour", "Behaviour", behaviourSection], ["samples", "Samples", samplesSection],
    ["readings", "Readings", readingsSection], ["time", "Time", timeSection], ["settings", "Settings", settingsSection], ["log", "Log", logSection],
  ];

  // ---- The page -----------------------------------------------------------------------------

  function render() {
    const open = new Set([...document.querySelectorAll("details[open]")].map((d) => d.id));
    charts.forEach((c) => c.plot && c.plot.destroy());
    charts = [];
    masthead();
    const made = SECTIONS.map(([id, title, build]) => [id, title, build().flat(Infinity).filter(Boolean)]).filter(([, , parts]) => parts.length);
    byId("main").replaceChildren(...made.map(([id, title, parts]) => h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), parts)));
    byId("sections").replaceChildren(...made.map(([id, title]) => h("li", {}, h("a", { href: `#${id}` }, title))));
    open.forEach((id) => byId(id) && (byId(id).open = true));
    byId("seeds-label").hidden = !data.groups.some((g) => g.runs.length > 1);
    byId("footer").replaceChildren(h("p", {}, `Made by Proximo ${data.proximo}. The page holds all that it shows and asks nothing of a network. Charts: uPlot, MIT licence.`));
    charts.forEach((c) => c.draw());
    document.title = `${data.title} · Proximo`;
  }

  const themed = (name) => {
    root.dataset.theme = name;
    byId("theme").textContent = name === "dark" ? "Light" : "Dark";
    byId("theme").setAttribute("aria-pressed", String(name === "dark"));
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let theme = dark.matches ? "dark" : "light";
  function paint(name) { themed(name); charts.forEach((c) => c.draw()); }

  themed(theme);
  byId("axis").replaceChildren(...data.axes.map((a) => h("option", { value: a.key }, a.label)));
  byId("axis").addEventListener("change", (event) => {
    Object.assign(view, { axis: event.target.value, zoom: null });
    charts.forEach((c) => c.draw());
  });
  byId("seeds").addEventListener("change", (event) => { view.seeds = event.target.checked; charts.forEach((c) => c.draw()); });
  byId("theme").addEventListener("click", () => paint((theme = theme === "dark" ? "light" : "dark")));
  dark.addEventListener("change", (event) => paint((theme = event.matches ? "dark" : "light")));
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => charts.forEach((c) => c.resize()), 120); });
  // On paper: light, everything open, charts as wide as their columns.
  let folded_ = [];
  addEventListener("beforeprint", () => {
    folded_ = [...document.querySelectorAll("details:not([open])")].filter((d) => d.id !== "all-settings");
    folded_.forEach((d) => (d.open = true));
    printing = true;
    paint("light");
  });
  addEventListener("afterprint", () => { printing = false; folded_.forEach((d) => (d.open = false)); paint(theme); });
  render();

  // ---- A run that is still training ---------------------------------------------------------

  const shape = (d) => JSON.stringify([d.groups.map((g) => [g.label, g.runs]), Object.keys(d.readings), d.runs.map((r) => [r.ended, r.warnings.length]), d.findings.length, d.samples.map((s) => s.length > 0)]);
  /** A section without charts, made anew; what was unfolded stays so. */
  function refill(id) {
    const section = byId(id);
    if (!section) return;
    const open = [...section.querySelectorAll("details[open]")].map((d) => d.id);
    const parts = SECTIONS.find(([name]) => name === id)[2]();
    section.replaceChildren(section.firstChild, ...parts.flat(Infinity).filter(Boolean));
    open.forEach((name) => byId(name) && (byId(name).open = true));
  }
  let tag = "";
  async function follow() {
    let next = 2000;
    try {
      const answer = await fetch("data.json", { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
      if (answer.status === 200) {
        tag = answer.headers.get("ETag") || "";
        const before = shape(data), fresh = await answer.json();
        data = { ...fresh, live: true };
        if (shape(data) !== before) render();
        else {
          masthead();
          ["summary", "time", "log"].forEach(refill);
          const range = document.querySelector("#samples input");
          if (range && range.value === range.max) refill("samples"); // else somebody looks at earlier ones
          charts.forEach((c) => c.refresh());
        }
      } else if (answer.status !== 304) throw new Error(answer.statusText);
      if (data.runs.every((run) => run.ended)) { state("ended", true); next = 10000; } else state("live", false);
    } catch { state("the server has ended: this is its last state", true); next = 5000; }
    setTimeout(follow, next);
  }
  function state(text, gone) {
    const pulse = byId("pulse");
    if (!pulse) return;
    pulse.textContent = text;
    pulse.classList.toggle("gone", gone);
  }
  if (data.live) setTimeout(follow, 500);
})();
