// Asking the server. Addresses are relative, so that the page works below a proxy's path.

const STATE = "v1/surgery";
const PATCHES = "v1/surgery/patches";
const METRICS = "metrics";
const WAIT_MS = 60000; // An engine in the middle of a long step answers after it. A swap takes as long as it takes.

let apiKey = ""; // Nowhere but here.
let surgeryKey = ""; // What swaps ask for. Nowhere but here.

class Refusal extends Error {
  constructor(status, message) {
    super(oneLine(message));
    this.status = status;
  }
}

function setKey(key) {
  apiKey = checked(key, "The API key");
}

function setSurgeryKey(key) {
  surgeryKey = checked(key, "The surgery key");
}

function checked(key, what) {
  if (!/^[\x20-\x7e]*$/.test(key)) throw new Refusal(0, `${what} holds a character that no header can hold.`);
  return key;
}

/** The answer to GET as text. */
async function read(path) {
  return send(path, { signal: AbortSignal.timeout(WAIT_MS) });
}

async function readJson(path) {
  return asJson(await read(path));
}

/** Asks for a swap, or another change of what is served. */
async function change(asked) {
  const body = JSON.stringify(asked);
  const headers = { "Content-Type": "application/json", ...(surgeryKey && { "X-Surgery-Key": surgeryKey }) };
  return asJson(await send(STATE, { method: "PUT", body, headers }));
}

async function send(path, options) {
  const headers = { ...options.headers, ...(apiKey && { Authorization: `Bearer ${apiKey}` }) };
  let response, text;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
    text = await response.text();
  } catch (error) {
    throw new Refusal(0, error.name === "TimeoutError" ? "No answer in time." : "The server doesn't answer.");
  }
  if (response.status === 401) throw new Refusal(401, apiKey ? "The server wants another API key." : "The server wants an API key.");
  if (!response.ok) throw new Refusal(response.status, reasonIn(text) ?? `The server answered ${response.status}.`);
  return text;
}

function asJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Refusal(0, "The server answers, but not as vllm-surgery does.");
  }
}

function reasonIn(text) {
  try {
    const { error } = JSON.parse(text);
    return typeof error === "string" ? error : error.message;
  } catch {
    return null;
  }
}

function oneLine(text) {
  const line = String(text).replace(/\s+/g, " ").trim();
  return line.length > 500 ? line.slice(0, 499) + "…" : line;
}
