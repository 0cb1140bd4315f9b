// Looking again and again, and what the buttons do.

const EVERY_MS = 5000; // Often enough to see a swap work, and an answer takes the server milliseconds.

const past = new History();
let state = null;
let figures = null;
let listed = false;
let paused = false;
let looking = Promise.resolve();
let pending = 0;

/** Looks once more, after any look that is under way. */
function look() {
  count(1);
  looking = looking.then(lookNow).finally(() => count(-1));
  return looking;
}

function count(change) {
  pending += change;
  byId("freshness").setAttribute("aria-busy", String(pending > 0));
}

async function lookNow() {
  const [newState, newText] = await Promise.allSettled([readJson(STATE), read(METRICS)]);
  const errors = [newState, newText].filter((one) => one.status === "rejected").map((one) => one.reason);
  try {
    if (newState.status === "fulfilled") await takeState(newState.value);
    if (newText.status === "fulfilled" && !wantsKey(errors)) takeFigures(newText.value);
  } catch (error) {
    errors.push(error);
  }
  if (wantsKey(errors)) return askForKey();
  warn("problem", errors.length ? errors[0].message : null);
  say("freshness", errors.length ? "Not up to date." : `${paused ? "Paused" : "Looked"} at ${clock(Date.now())}`);
  allowSwaps(errors.length ? null : state);
}

const wantsKey = (errors) => errors.some((error) => error.status === 401);

async function takeState(answer) {
  showState(answer);
  showSlots(answer);
  state = answer;
  byId("key-form").hidden = true;
  byId("figures").hidden = false;
  if (!listed) await listPatches(state);
  listed = true;
}

function takeFigures(text) {
  figures = figuresOf(parseMetrics(text));
  past.add(Date.now(), figures);
  showFigures();
}

function showFigures() {
  if (!figures) return;
  const active = state?.active ?? "";
  offerKinds(figures.kinds);
  showCards(figures, active);
  showLoops(byId("since").value === "open" ? past.total : figures.patches, figures, active);
  showRescues(figures.rescues);
  showSwaps(figures.swaps, past);
  drawChart(past, byId("chart-kind").value, Number(byId("chart-window").value), Date.now());
}

function offerKinds(kinds) {
  const choice = byId("chart-kind");
  if (choice.options.length === kinds.length + 1) return;
  choice.replaceChildren(new Option("all", ""), ...kinds.map((kind) => new Option(kind, kind)));
}

function askForKey() {
  warn("problem", apiKey ? "The server wants another API key." : null);
  say("freshness", "Waiting for the API key.");
  byId("figures").hidden = true;
  if (!byId("key-form").hidden) return;
  byId("key-form").hidden = false;
  byId("key").focus();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    setKey(byId("key").value);
  } catch (error) {
    return warn("problem", error.message);
  }
  byId("key").value = "";
  look();
});

byId("refresh").addEventListener("click", look);

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  say("pause", paused ? "Go on" : "Pause");
  if (!paused) look();
});

byId("relist").addEventListener("click", () => {
  listed = false;
  look();
});

byId("swap-form").addEventListener("submit", (event) => {
  event.preventDefault();
  askFirst(state);
});

byId("slots-form").addEventListener("submit", (event) => {
  event.preventDefault();
  askToMove(state);
});

byId("confirm-form").addEventListener("submit", (event) => event.preventDefault()); // Enter alone swaps nothing.

byId("cancel").addEventListener("click", () => byId("confirm").close());

byId("go").addEventListener("click", async () => {
  await swapAsked();
  look();
});

for (const id of ["chart-kind", "chart-window", "since"]) byId(id).addEventListener("change", showFigures);

new ResizeObserver(showFigures).observe(byId("chart"));

setInterval(() => {
  if (!paused && !pending && byId("key-form").hidden) look();
}, EVERY_MS);
look();
