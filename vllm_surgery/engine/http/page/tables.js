// The cards and tables.

function showState(state) {
  const { model } = state;
  const layers = model.layers === null ? "" : counted(model.layers, "layer");
  say("model", [model.name, model.architectures.join(" or "), layers].filter(Boolean).join(" · "));
  say("active", state.active === "shares" && state.slots ? inShares(state.slots.default) : state.active);
  const units = state.slots ? counted(state.units, "unit") : `${counted(state.units, "unit")} in ${counted(state.tensors, "tensor")}`;
  say("active-more", `since ${day(state.since)} · epoch ${state.epoch} · ${units}`);
  const { id, error } = state.desired;
  const same = id === state.active && !error;
  say("desired", !state.watching ? "" : same ? "as the followed files ask" : `The followed files ask for: ${oneLine([id, error].filter(Boolean).join(": "))}`);
  byId("desired").className = same ? "quiet" : "warn";
  warn("cannot", state.can_swap ? null : `This server can't swap: ${oneLine(state.cannot_swap_reason ?? "no reason given")}`);
}

function showCards(figures, active) {
  const patch = figures.patches.get(active);
  const most = patch?.answers ? worst(patch, (loops) => loops.answers) : null;
  const rate = most && wilson(most[1], patch.answers);
  say("rate", rate ? percent(rate.value) : "–");
  say("rate-more", rate ? `${most[0]}, active patch; ${range(rate)} of ${counted(patch.answers, "answer")}` : "no answer of the active patch yet");
  const tokens = patch?.tokens ? worst(patch, (loops) => loops.tokens) : null;
  say("wasted", tokens ? percent(Math.min(1, tokens[1] / patch.tokens)) : "–");
  say("wasted-more", tokens ? `${tokens[0]}, active patch; of ${counted(patch.tokens, "token")}` : "no token of the active patch yet");
  const live = figures.kinds.map((kind) => [kind, sumLive(figures, kind)]);
  say("live", whole(live.reduce((sum, [, number]) => sum + number, 0)));
  say("live-more", live.map(([kind, number]) => `${number} ${kind}`).join(", ") || "requests of all patches");
  warn("detector-errors", figures.detectorErrors ? `${counted(figures.detectorErrors, "answer")} unwatched: a detector failed` : null);
}

function sumLive(figures, kind) {
  return [...figures.patches.values()].reduce((sum, patch) => sum + patch.loops.get(kind).live, 0);
}

/** A group of rows for each patch, the active one first. */
function showLoops(patches, figures, active) {
  const table = byId("loops");
  const sorted = [...patches].sort(([one], [other]) => (other === active) - (one === active));
  byId("no-answers").hidden = sorted.length > 0;
  table.hidden = !sorted.length;
  for (const body of [...table.tBodies]) body.remove();
  const rates = sorted.flatMap(([, patch]) => [...patch.loops.values()].map((loops) => wilson(loops.answers, patch.answers)));
  const ceiling = ceilingOf(rates.map((rate) => rate?.high ?? 0));
  say("ceiling", percent(ceiling).replace(".0", ""));
  const rowsOf = (id, patch) => [patchRow(id, patch, active), ...kindRows(id, patch, figures, ceiling)];
  table.append(...sorted.map(([id, patch]) => element("tbody", {}, ...rowsOf(id, patch))));
}

function patchRow(id, patch, active) {
  const more = `${id === active ? "active · " : ""}${counted(patch.answers, "answer")} · ${counted(patch.tokens, "token")}`;
  const head = element("th", { scope: "rowgroup", colSpan: 5 }, element("b", {}, id), " ", element("span", { className: "quiet" }, more));
  return element("tr", {}, head);
}

function kindRows(id, patch, figures, ceiling) {
  return [...patch.loops].map(([kind, loops]) => {
    const rate = wilson(loops.answers, patch.answers);
    const live = figures.patches.get(id)?.loops.get(kind)?.live ?? 0;
    const share = patch.tokens ? Math.min(1, loops.tokens / patch.tokens) : null;
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, kind),
      element("td", {}, percent(rate?.value ?? null), ...(rate ? [" ", element("small", {}, `${range(rate)}, ${whole(loops.answers)} looped`)] : [])),
      element("td", { className: "scale" }, ...(rate ? [whisker(rate, ceiling)] : [])),
      element("td", { className: live ? "number warn" : "number" }, whole(live)),
      element("td", { className: "number" }, percent(share)),
    );
  });
}

/** The interval on a scale from 0 to `ceiling`. */
function whisker(rate, ceiling) {
  const x = (share) => (100 * share) / ceiling;
  const line = (name, from, to) => drawing("line", { class: name, x1: x(from), x2: x(to), y1: 5, y2: 5 });
  const mark = drawing("line", { class: "mark", x1: x(rate.value), x2: x(rate.value), y1: 1, y2: 9 });
  const all = [line("axis", 0, ceiling), line("reach", rate.low, rate.high), mark];
  return drawing("svg", { class: "whisker", viewBox: "-1 0 102 10", preserveAspectRatio: "none", "aria-hidden": "true" }, ...all);
}

/** What became of answers that were rescued, on a server that rescues. */
function showRescues(rescues) {
  byId("rescues-card").hidden = !rescues.length;
  byId("rescues").tBodies[0].replaceChildren(...rescues.map(rescueRow));
}

function rescueRow({ patch, kind, action, ended, again, cut, tokens }) {
  return element(
    "tr",
    {},
    ...[patch, kind, action].map((text) => element("td", {}, text)),
    ...[ended, again, cut, tokens].map((number) => element("td", { className: "number" }, whole(number))),
  );
}

/** Those that were seen last first. */
function showSwaps(swaps, history) {
  const seen = swaps.map((swap) => ({ ...swap, time: history.lastSwap(swap.patch, swap.result) }));
  seen.sort((one, other) => (other.time ?? 0) - (one.time ?? 0));
  byId("no-swaps").hidden = seen.length > 0;
  byId("swaps").hidden = !seen.length;
  byId("swaps").tBodies[0].replaceChildren(...seen.map(swapRow));
}

function swapRow({ patch, result, count, mean, time }) {
  const numbers = [whole(count), mean === null ? "" : `${whole(Math.round(1000 * mean))} ms`, time ? clock(time) : "before"];
  return element(
    "tr",
    {},
    element("td", {}, patch),
    element("td", {}, result),
    ...numbers.map((text) => element("td", { className: "number" }, text)),
  );
}
