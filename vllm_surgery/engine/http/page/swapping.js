// Choosing patches and swapping them in.

const MODES = { keep: "pause and go on", wait: "are waited for", abort: "are ended" };

let asked = null; // What the open dialog asks about: {body, from, to, mode, told}.
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
  byId("move").disabled ||= swapping || !state;
}

function askFirst(state) {
  const patches = [...document.querySelectorAll("#patches input:checked")].map((tick) => tick.value);
  const mode = state.slots ? "keep" : byId("mode").value;
  askAbout({
    body: { patches, mode, if_epoch: state.epoch },
    from: state.slots ? inShares(state.slots.default) : state.active,
    to: patches.join(" + ") || "no patch: the model as it is",
    mode: state.slots ? "end as they began" : MODES[mode],
    told: (report) => inOneLine(report, state.slots),
  });
}

function askAbout(change) {
  asked = change;
  for (const part of ["from", "to", "mode"]) say(`confirm-${part}`, asked[part]);
  say("confirm-epoch", String(asked.body.if_epoch));
  byId("confirm").showModal();
}

/** Carries out what was asked. Gives nothing: how it went is on the page. */
async function swapAsked() {
  byId("confirm").close();
  warn("refusal", null);
  say("outcome", "Swapping…");
  swapping = true;
  byId("swap").disabled = byId("move").disabled = true;
  try {
    if (byId("surgery-key").value) setSurgeryKey(byId("surgery-key").value);
    byId("surgery-key").value = "";
    say("outcome", asked.told(await change(asked.body)));
  } catch (error) {
    say("outcome", "");
    warn("refusal", error.message);
  } finally {
    swapping = false;
  }
}

function inOneLine({ id, previous, epoch, milliseconds }, slots) {
  if (id === previous) return `${id} was active already, epoch ${epoch}.`;
  if (slots && !milliseconds.pause) return `${id} in place of ${previous}, epoch ${epoch}. No token waited.`;
  const still = milliseconds.total - milliseconds.stage;
  return `${id} in place of ${previous}, epoch ${epoch}. Tokens stood still for ${Math.round(still)} ms.`;
}
