// What /health and /metrics say, put where page.html has a place for it.

/** Fills the elements that name a series: the number, and exactly that on hovering. */
function showMetrics(series) {
  const read = (name) => valueOf(series, name);
  for (const element of document.querySelectorAll("[data-metric]")) {
    const { metric, per, as } = element.dataset;
    // A counter with labels is not there before its first event.
    const value = read(metric) ?? (as === "count" ? 0 : NaN);
    setText(element, FORMATS[as](per ? value / read(per) : value));
    element.title = per ? `${value} of ${read(per)}` : String(value);
  }
  for (const element of document.querySelectorAll("[data-grow]")) {
    element.style.flexGrow = read(element.dataset.grow) ?? 0;
  }
  for (const element of document.querySelectorAll("[data-needs]")) {
    element.hidden = read(element.dataset.needs) === undefined;
  }
  for (const element of document.querySelectorAll("[data-lacks]")) {
    element.hidden = read(element.dataset.lacks) !== undefined;
  }
}

const STATES = { ok: "Ready", draining: "Shutting down", unhealthy: "Engine stopped" };

/** `status` is that of /health; without one there is no connection. */
function showState(status) {
  const element = byId("state");
  setText(element, STATES[status] ?? "No connection");
  element.dataset.status = status ?? "gone";
}

const FACTS = {
  model_type: ["Architecture"],
  num_parameters: ["Parameters", FORMATS.compact],
  weight_bytes: ["Weights", FORMATS.bytes],
  quantization: ["Quantisation", (value) => plainly(value) || "none"],
  dtype: ["Data type"],
  device: ["Device"],
  blas: ["BLAS"],
  layers: ["Layers"],
  attention: ["Attention"],
  attention_kernel: ["Attention kernel"],
  linear_layers: ["Linear layers"],
  speculation: ["Speculation"],
  draft_tokens: ["Tokens per draft"],
  tool_parser: ["Tool calls"],
  reasoning_parser: ["Reasoning"],
  max_num_seqs: ["Answers at once"],
  kv_capacity_tokens: ["Tokens the cache holds", FORMATS.count],
  paging_problem: ["Not paged, because"],
};

/** Everything that /health says of the model; facts that this page has no words for, too. */
function showModel(health) {
  document.title = `${health.model} – pippin`;
  setText(byId("version"), health.version);
  setText(byId("model-name"), health.model);
  const rows = [
    ["Name", health.model],
    ["Also answers to", health.aliases.join(", ")],
    ["Context", `${FORMATS.count(health.max_model_len)} tokens`],
  ];
  for (const [key, value] of Object.entries(health.details)) {
    const [label, format] = FACTS[key] ?? [key.replaceAll("_", " ")];
    const isIdle = key === "draft_tokens" && health.details.speculation === "off";
    if (!isIdle) rows.push([label, format ? format(value) : plainly(value)]);
  }
  const shown = rows.filter(([, text]) => text !== "");
  const list = byId("model");
  const key = JSON.stringify(shown);
  if (list.shown === key) return; // so that a selection stays
  list.shown = key;
  const row = ([label, text]) => make("div", {}, make("dt", {}, label), make("dd", {}, text));
  list.replaceChildren(...shown.map(row));
}

/** JSON in as few signs as possible. */
function plainly(value) {
  if (value === null) return "";
  if (Array.isArray(value)) return value.map(plainly).join(", ");
  if (typeof value !== "object") return String(value);
  return Object.entries(value).map(([key, it]) => `${key.replaceAll("_", " ")} ${plainly(it)}`).join(", ");
}
