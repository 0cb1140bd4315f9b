// Making and filling elements. Text goes in as text, never as HTML; the policy that the page comes with forbids the rest.

const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function drawing(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function say(id, text) {
  const target = byId(id);
  if (target.textContent !== text) target.textContent = text; // Else a screen reader would say it at each look.
}

/** Shows `text` as a warning, or nothing where there is none. */
function warn(id, text) {
  say(id, text ?? "");
  byId(id).hidden = !text;
}

const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)}\u00a0%`);
const range = (rate) => `${(100 * rate.low).toFixed(1)} to ${percent(rate.high)}`;
const whole = (number) => number.toLocaleString("en");
const counted = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;
const clock = (time) => new Date(time).toLocaleTimeString("sv"); // Sweden writes times as ISO 8601 does.
const day = (time) => new Date(time).toLocaleString("sv");
