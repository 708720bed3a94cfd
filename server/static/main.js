// Asks the server once a second for as long as the page can be seen, and keeps the API key.

const POLL_MS = 1000;
const KEY = "pippin-api-key"; // in sessionStorage: gone with the tab

class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** A response that went well; what the server says otherwise becomes the error's message. */
async function callApi(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401 && key === sessionStorage.getItem(KEY)) askForKey(key !== null);
  const body = await response.json().catch(() => null);
  throw new ApiError(response.status, body?.error?.message ?? `The server answered ${response.status}.`);
}

function askForKey(wasRefused) {
  sessionStorage.removeItem(KEY);
  byId("key-form").hidden = false;
  if (wasRefused) setText(byId("key-error"), "The server does not know this key.");
}

const rates = new Rates();
const rateChart = new Chart(byId("rate-chart"), FORMATS.rate);
const ttftChart = new Chart(byId("ttft-chart"), FORMATS.seconds);
let timer = null;

async function poll() {
  const signal = AbortSignal.timeout(10 * POLL_MS);
  try {
    // 503 is an answer, too: it tells why.
    const [health, metrics] = await Promise.all([
      fetch("health", { signal }).then((response) => response.json()),
      fetch("metrics", { signal }).then((response) => response.text()),
    ]);
    chat.model = health.model;
    showState(health.status);
    showModel(health);
    const series = parseMetrics(metrics);
    showMetrics(series);
    showRates(rates.next(series, performance.now()), performance.now());
  } catch {
    showState(null);
  }
  await pollRequests(signal);
  clearTimeout(timer); // of another call, if the page was hidden and seen again meanwhile
  if (!document.hidden) timer = setTimeout(poll, POLL_MS);
}

function showRates({ outputPerSecond, ttft }, now) {
  rateChart.add(now, outputPerSecond);
  ttftChart.add(now, ttft);
  setText(byId("rate"), FORMATS.rate(outputPerSecond ?? NaN));
  setText(byId("ttft"), FORMATS.seconds(ttftChart.mean()));
}

async function pollRequests(signal) {
  if (!byId("key-form").hidden) return setText(byId("requests-note"), "Shown to who has a key.");
  try {
    showRequests((await (await callApi("v1/requests", { signal })).json()).data);
  } catch (error) {
    setText(byId("requests-note"), error instanceof ApiError ? error.message : "Not known.");
  }
}

byId("key-form").onsubmit = async (event) => {
  event.preventDefault();
  setText(byId("key-error"), "");
  sessionStorage.setItem(KEY, byId("key").value);
  byId("key-form").hidden = true;
  await pollRequests();
  if (byId("key-form").hidden) byId("message").focus();
  else byId("key").select();
};

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) poll();
});

startChat();
poll();
