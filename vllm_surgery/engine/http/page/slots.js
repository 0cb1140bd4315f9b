// The slots: who uses them, and moving the default of requests that choose none.

let rowsFor = ""; // Of which offer the rows are: a look in between leaves what a person has typed.

/** What requests get that choose nothing. */
function inShares(shares) {
  const drawn = Object.entries(shares).filter(([, share]) => share > 0);
  return drawn.length === 1 ? drawn[0][0] : drawn.map(([name, share]) => `${name} ${percent(share)}`).join(", ");
}

function showSlots({ slots, epoch }) {
  byId("slots-card").hidden = !slots;
  byId("mode-row").hidden = Boolean(slots);
  if (!slots) return;
  say("slots-more", `${whole(new Set(slots.patches.map((patch) => patch.id)).size)} of ${counted(slots.count, "slot")} filled. Requests that choose no patch get ${inShares(slots.default)}.`);
  const rows = [{ name: "none", id: "", users: slots.unpatched, leaving: false }, ...slots.patches];
  const offer = JSON.stringify([epoch, rows.map((row) => [row.name, row.leaving])]);
  if (offer !== rowsFor) byId("slots").tBodies[0].replaceChildren(...rows.map((row) => slotRow(row, slots.default)));
  rowsFor = offer;
  [...byId("slots").tBodies[0].rows].forEach((row, place) => (row.cells[1].textContent = whole(rows[place].users)));
  checkShares();
}

function slotRow({ name, id, leaving }, shares) {
  const label = leaving ? `${id} · leaves with its requests` : id;
  const choose = leaving ? [] : [shareBox(name, shares[name] ?? 0), " ", onlyButton(name)];
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, name, element("small", {}, label)),
    element("td", { className: "number" }),
    element("td", { className: "number" }, ...choose),
  );
}

function shareBox(name, share) {
  const value = Number((100 * share).toFixed(4));
  const box = element("input", { type: "number", min: 0, max: 100, step: "any", value, name, oninput: checkShares });
  box.setAttribute("aria-label", `Share of ${name} in percent`);
  return box;
}

function onlyButton(name) {
  const onclick = () => {
    for (const box of shareBoxes()) box.value = box.name === name ? 100 : 0;
    checkShares();
  };
  return element("button", { type: "button", ariaLabel: `${name} for all requests`, onclick }, "All");
}

const shareBoxes = () => [...document.querySelectorAll("#slots input")];

/** Says what is wrong with the shares that were typed, and allows no move until it is right. */
function checkShares() {
  const total = shareBoxes().reduce((sum, box) => sum + Number(box.value), 0);
  const whole = Math.abs(total - 100) < 1e-3;
  say("shares-sum", whole ? "" : `The shares add up to ${Number(total.toFixed(3))} %, not 100 %.`);
  byId("move").disabled = swapping || !whole;
}

function askToMove(state) {
  const shares = Object.fromEntries(shareBoxes().map((box) => [box.name, Number(box.value) / 100]));
  askAbout({
    body: { default: shares, if_epoch: state.epoch },
    from: inShares(state.slots.default),
    to: inShares(shares),
    mode: "end as they began",
    told: ({ slots, epoch }) => `Requests that choose no patch get ${inShares(slots.default)}, epoch ${epoch}. No token waited.`,
  });
}
