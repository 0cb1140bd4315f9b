// Prometheus's text format, as far as this plugin's own metrics need it.

const PREFIX = "vllm_surgery_";
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)",?/y;
const ESCAPES = { n: "\n", '"': '"', "\\": "\\" };

/** Samples as {name, labels, value}, without the prefix. vLLM's own, which are hundreds of kilobytes, are passed over. */
function parseMetrics(text) {
  return text.split("\n").filter((line) => line.startsWith(PREFIX)).map(parseSample);
}

function parseSample(line) {
  const name = /^\w+/.exec(line)[0];
  const { labels, end } = parseLabels(line, name.length);
  const value = Number(line.slice(end).trim().split(" ")[0]);
  if (end < 0 || !Number.isFinite(value)) throw new Refusal(0, "/metrics is not in Prometheus's text format.");
  return { name: name.slice(PREFIX.length), labels, value };
}

function parseLabels(line, start) {
  const labels = new Map();
  if (line[start] !== "{") return { labels, end: start };
  let end = start + 1;
  for (;;) {
    LABEL.lastIndex = end;
    const found = LABEL.exec(line);
    if (!found) break;
    labels.set(found[1], found[2].replace(/\\(.)/g, (_, escaped) => ESCAPES[escaped] ?? "\\" + escaped));
    end = LABEL.lastIndex;
  }
  return { labels, end: line[end] === "}" ? end + 1 : -1 };
}
