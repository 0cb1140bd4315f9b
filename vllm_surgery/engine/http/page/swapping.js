// Choosing patches and swapping them in.

const MODES = { keep: "pause and go on", wait: "are waited for", abort: "are ended" };

let asked = null; // What the open dialog asks about: {names, mode, epoch}.
let swapping = false;

/** Lists the server's patches; ticks those that are active. */
async function listPatches(state) {
  const { patches } = await readJson(PATCHES);
  const active = new Set(state.patches.map((patch) => patch.id));
  const box = byId("patches");
  const nothing = element("p", { className: "quiet" }, "No patch ticked: the model as it is.");
  const none = element("p", { className: "quiet" }, "The server has no patch folder, or nothing in it.");
  const labels = patches.map((patch) => patchLabel(patch, active));
  box.replaceChildren(box.firstElementChild, ...(labels.length ? [...labels, nothing] : [none]));
}

function patchLabel({ name, id, error }, active) {
  const tick = element("input", { type: "checkbox", value: name, disabled: id === null, checked: active.has(id) });
  const note = element("small", { className: error ? "warn" : "" }, error ? oneLine(error) : id);
  return element("label", {}, tick, element("span", {}, name, note));
}

function allowSwaps(state) {
  byId("swap").disabled = swapping || !state?.can_swap;
}

function askFirst(state) {
  const ticks = [...document.querySelectorAll("#patches input:checked")];
  asked = { names: ticks.map((tick) => tick.value), mode: byId("mode").value, epoch: state.epoch };
  say("confirm-from", state.active);
  say("confirm-to", asked.names.join(" + ") || "no patch: the model as it is");
  say("confirm-mode", MODES[asked.mode]);
  say("confirm-epoch", String(asked.epoch));
  byId("confirm").showModal();
}

/** Carries out what was asked. Gives nothing: how it went is on the page. */
async function swapAsked() {
  byId("confirm").close();
  warn("refusal", null);
  say("outcome", "Swapping…");
  swapping = true;
  byId("swap").disabled = true;
  try {
    say("outcome", inOneLine(await swapTo(asked.names, asked.mode, asked.epoch)));
  } catch (error) {
    say("outcome", "");
    warn("refusal", error.message);
  } finally {
    swapping = false;
  }
}

function inOneLine({ id, previous, epoch, milliseconds }) {
  if (id === previous) return `${id} was active already, epoch ${epoch}.`;
  const still = milliseconds.total - milliseconds.stage;
  return `${id} in place of ${previous}, epoch ${epoch}. Tokens stood still for ${Math.round(still)} ms.`;
}
