// The figures of one scrape: the same arithmetic as vllm_surgery/client/traffic.py, and a test holds the two together.

const Z = 1.959963984540054; // The normal distribution's 97.5th percentile: intervals hold 95 %.

/** A rate with Wilson's score interval, {value, low, high}; null of nothing. More loops than answers are cut at 1. */
function wilson(successes, total) {
  if (total <= 0) return null;
  const share = Math.min(1, successes / total);
  const scale = 1 + (Z * Z) / total;
  const middle = (share + (Z * Z) / (2 * total)) / scale;
  const reach = (Z * Math.sqrt((share * (1 - share)) / total + (Z * Z) / (4 * total * total))) / scale;
  return {
    value: share,
    low: share ? Math.max(0, middle - reach) : 0,
    high: share < 1 ? Math.min(1, middle + reach) : 1,
  };
}

/** {kinds, patches: Map of id to {answers, tokens, loops: Map of kind to counts}, swaps, rescues, detectorErrors}. */
function figuresOf(samples) {
  const sum = (name, wanted) =>
    samples
      .filter((one) => one.name === name && Object.entries(wanted).every(([key, value]) => one.labels.get(key) === value))
      .reduce((total, one) => total + one.value, 0);
  const valuesOf = (name, label) =>
    [...new Set(samples.filter((one) => one.name === name).map((one) => one.labels.get(label) ?? ""))];
  const kinds = valuesOf("loops_total", "kind");
  const patches = new Map(valuesOf("requests_total", "patch").map((patch) => [patch, patchFigures(sum, patch, kinds)]));
  const rescues = rescueFigures(samples, sum);
  return { kinds, patches, swaps: swapFigures(samples, sum), rescues, detectorErrors: sum("detector_errors_total", {}) };
}

function patchFigures(sum, patch, kinds) {
  const loopsOf = (kind) => ({
    answers: sum("loops_total", { patch, kind }),
    live: sum("looping_requests", { patch, kind }),
    tokens: sum("looped_tokens_total", { patch, kind }),
  });
  return {
    answers: sum("requests_total", { patch }),
    tokens: sum("output_tokens_total", { patch }),
    loops: new Map(kinds.map((kind) => [kind, loopsOf(kind)])),
  };
}

function swapFigures(samples, sum) {
  const swaps = new Map();
  for (const { name, labels } of samples) {
    if (name !== "swaps_total") continue;
    const [patch, result] = [labels.get("patch") ?? "", labels.get("result") ?? ""];
    const timed = result === "done" ? sum("swap_seconds_count", { phase: "total" }) : 0;
    const mean = timed ? sum("swap_seconds_sum", { phase: "total" }) / timed : null;
    swaps.set(JSON.stringify([patch, result]), { patch, result, count: sum("swaps_total", { patch, result }), mean });
  }
  return [...swaps.values()];
}

/** What was done to answers that looped: [{patch, kind, action, ended, again, cut, tokens}]; empty on a server that rescues none. */
function rescueFigures(samples, sum) {
  const rescues = new Map();
  for (const { name, labels } of samples) {
    if (name !== "rescues_total") continue;
    const wanted = Object.fromEntries(["patch", "kind", "action"].map((label) => [label, labels.get(label) ?? ""]));
    const count = (outcome) => sum("rescues_total", { ...wanted, outcome });
    const counts = { ended: count("ended"), again: count("looped_again"), cut: count("cut") };
    rescues.set(JSON.stringify(wanted), { ...wanted, ...counts, tokens: sum("rescued_tokens_total", wanted) });
  }
  return [...rescues.values()];
}

/** The kind of loop with the largest value of `measure`, as [kind, value]; null where there is none. */
function worst(patch, measure) {
  const found = [...(patch?.loops ?? [])].map(([kind, loops]) => [kind, measure(loops)]);
  return found.reduce((most, one) => (!most || one[1] > most[1] ? one : most), null);
}
