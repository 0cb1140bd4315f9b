// What happened since the page was opened: increases of counters, as Prometheus computes them, and swaps.

const KEPT = 8640; // Looks: twelve hours of one every five seconds, some tens of megabytes with many patches.

class History {
  constructor() {
    this.looks = []; // {time, patches: Map of id to increases since the page was opened}
    this.swaps = []; // {time, patch, result}
    this.last = null;
  }

  add(time, figures) {
    this.#noticeSwaps(time, figures);
    const before = this.looks.at(-1)?.patches ?? new Map();
    const patches = new Map(before);
    for (const [patch, now] of figures.patches) {
      const then = this.last ? (this.last.patches.get(patch) ?? null) : now;
      patches.set(patch, increased(before.get(patch), then, now));
    }
    this.looks.push({ time, patches });
    if (this.looks.length > KEPT) this.looks.shift();
    this.last = figures;
  }

  /** Increases since the page was opened. */
  get total() {
    return this.looks.at(-1)?.patches ?? new Map();
  }

  /** When a swap to these patches last ended so; null where that was before. */
  lastSwap(patch, result) {
    return this.swaps.findLast((one) => one.patch === patch && one.result === result)?.time ?? null;
  }

  /** At each look that found new answers, the rate of those of the last `span` milliseconds: [{time, rate}]. */
  rates(patch, kind, span) {
    const points = [];
    let first = 0;
    for (const [index, { time, patches }] of this.looks.entries()) {
      while (first + 1 < index && this.looks[first + 1].time <= time - span) first += 1;
      const answers = (at) => this.looks[at]?.patches.get(patch)?.answers ?? 0;
      if (index === 0 || answers(index) === answers(index - 1)) continue;
      const loops = looped(patches.get(patch), kind) - looped(this.looks[first].patches.get(patch), kind);
      points.push({ time, rate: wilson(loops, answers(index) - answers(first)) });
    }
    return points;
  }

  #noticeSwaps(time, figures) {
    if (!this.last) return;
    for (const { patch, result, count } of figures.swaps) {
      const then = this.last.swaps.find((one) => one.patch === patch && one.result === result);
      if (count > (then?.count ?? 0)) this.swaps.push({ time, patch, result });
    }
  }
}

/** A counter that fell was begun anew, by a restart or by a patch that came back: all of it is increase. */
function increase(then, now) {
  return now >= then ? now - then : now;
}

function increased(total, then, now) {
  if (total && then && sameCounts(then, now)) return total; // Kept once, however many looks it stays so.
  const loops = [...now.loops].map(([kind, each]) => {
    const [sum, last] = [total?.loops.get(kind), then?.loops.get(kind)];
    const grown = (name) => (sum?.[name] ?? 0) + increase(last?.[name] ?? 0, each[name]);
    return [kind, { answers: grown("answers"), tokens: grown("tokens") }];
  });
  const grown = (name) => (total?.[name] ?? 0) + increase(then?.[name] ?? 0, now[name]);
  return { answers: grown("answers"), tokens: grown("tokens"), loops: new Map(loops) };
}

function sameCounts(then, now) {
  const equal = (one, other) => one?.answers === other.answers && one.tokens === other.tokens;
  return equal(then, now) && [...now.loops].every(([kind, loops]) => equal(then.loops.get(kind), loops));
}

/** Answers that looped; of every kind where `kind` is empty, and one that looped in two kinds counts twice. */
function looped(patch, kind) {
  if (!patch) return 0;
  return kind ? (patch.loops.get(kind)?.answers ?? 0) : [...patch.loops.values()].reduce((sum, one) => sum + one.answers, 0);
}
