// The chart: a line and a band for each patch.

const COLOURS = 6; // Beyond these, colours and dashes repeat; the legend says which is which.
const POINTS = 400; // A line has no more, however long the page was open.
const MARGIN = { top: 8, right: 8, bottom: 22, left: 44 };
const CEILINGS = [0.02, 0.05, 0.1, 0.25, 0.5, 1];

function drawChart(history, kind, span, now) {
  const box = byId("chart");
  const [width, height] = [Math.max(box.clientWidth, 240), window.innerWidth < 544 ? 192 : 240];
  const series = seriesOf(history, kind, span);
  const start = history.looks[0].time;
  const scale = scaleOf(series, start, Math.max(now, start + 60000), width, height);
  const picture = drawing("svg", { role: "img", viewBox: `0 0 ${width} ${height}`, "aria-label": inWords(series) });
  picture.append(...grid(scale), ...swapLines(history.swaps, scale), ...series.flatMap((one) => shapes(one, scale, span)));
  if (!series.length) {
    const middle = { x: width / 2, y: height / 2, "text-anchor": "middle" };
    picture.append(drawing("text", middle, "No answer has ended since this page was opened."));
  }
  box.replaceChildren(picture);
  byId("legend").replaceChildren(...series.map(legendEntry));
}

function seriesOf(history, kind, span) {
  return [...history.total.keys()]
    .map((patch, colour) => ({ patch, colour: colour % COLOURS, points: thinned(history.rates(patch, kind, span)) }))
    .filter((one) => one.points.length);
}

function thinned(points) {
  const stride = Math.ceil(points.length / POINTS);
  return points.filter((_, index) => (points.length - 1 - index) % stride === 0);
}

function scaleOf(series, start, end, width, height) {
  const rates = series.flatMap((one) => one.points).map((point) => point.rate);
  const ceiling = ceilingOf(rates.map((rate) => Math.min(rate.high, 2.5 * rate.value + 0.05))); // Wide bands may be cut.
  const [inner, depth] = [width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
  return {
    ceiling, start, end, width, height,
    x: (time) => MARGIN.left + (inner * (time - start)) / (end - start),
    y: (share) => MARGIN.top + depth * (1 - Math.min(share, ceiling) / ceiling),
  };
}

const ceilingOf = (shares) => CEILINGS.find((one) => one >= Math.max(0, ...shares)) ?? 1;

function grid(scale) {
  const drawn = [];
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    const [share, y] = [part * scale.ceiling, scale.y(part * scale.ceiling)];
    const digits = scale.ceiling < 0.1 ? 1 : 0;
    drawn.push(drawing("line", { class: "grid", x1: MARGIN.left, x2: scale.width - MARGIN.right, y1: y, y2: y }));
    if (part % 0.5 === 0 || scale.ceiling === 1) {
      drawn.push(drawing("text", { x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, `${(100 * share).toFixed(digits)}\u00a0%`));
    }
  }
  for (const [part, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
    const time = scale.start + part * (scale.end - scale.start);
    drawn.push(drawing("text", { x: scale.x(time), y: scale.height - 5, "text-anchor": anchor }, clock(time)));
  }
  return drawn;
}

function swapLines(swaps, scale) {
  return swaps
    .filter((swap) => swap.result === "done" && swap.time >= scale.start)
    .map((swap) => {
      const place = { x1: scale.x(swap.time), x2: scale.x(swap.time), y1: MARGIN.top, y2: scale.height - MARGIN.bottom };
      return drawing("line", { class: "swap", ...place }, drawing("title", {}, `${clock(swap.time)}: ${swap.patch}`));
    });
}

/** A line and its band for each stretch without a long gap; a dot where it ends. */
function shapes({ patch, colour, points }, scale, span) {
  return stretches(points, span).flatMap((stretch) => {
    const along = (edge) => stretch.map(({ time, rate }) => `${scale.x(time).toFixed(1)},${scale.y(rate[edge]).toFixed(1)}`);
    const last = stretch.at(-1);
    return [
      drawing("path", { class: `band s${colour}`, d: `M${[...along("high"), ...along("low").reverse()].join("L")}Z` }),
      drawing("path", { class: `line s${colour}`, d: `M${along("value").join("L")}` }, drawing("title", {}, patch)),
      drawing("circle", { class: `dot s${colour}`, cx: scale.x(last.time), cy: scale.y(last.rate.value), r: 3 }),
    ];
  });
}

function stretches(points, span) {
  const found = [];
  for (const point of points) {
    const near = found.length && point.time - found.at(-1).at(-1).time <= span;
    near ? found.at(-1).push(point) : found.push([point]);
  }
  return found;
}

const latest = ({ points }) => points.at(-1).rate;

function legendEntry(one) {
  const line = drawing("line", { class: `line s${one.colour}`, x1: 0, x2: 29, y1: 6, y2: 6 });
  const key = drawing("svg", { viewBox: "0 0 29 12", "aria-hidden": "true" }, line);
  return element("li", {}, key, `${one.patch} ${percent(latest(one).value)}`);
}

function inWords(series) {
  const parts = series.map((one) => `${one.patch} ${percent(latest(one).value)}, interval ${range(latest(one))}`);
  return parts.length ? `Loop rate by patch, latest: ${parts.join("; ")}` : "Loop rate by patch: no answer yet";
}
