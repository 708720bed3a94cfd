// The table of running requests, and the button that cancels one.

/** Shows the rows of GET /v1/requests. Rows stay the same elements, so that focus stays put. */
function showRequests(requests) {
  const body = byId("requests").tBodies[0];
  const old = new Map([...body.rows].map((row) => [row.dataset.id, row]));
  for (const request of requests) {
    const row = old.get(request.id) ?? body.appendChild(makeRow(request));
    old.delete(request.id);
    const texts = [
      request.state,
      FORMATS.seconds(request.age_s),
      FORMATS.count(request.prompt_tokens),
      FORMATS.count(request.cached_tokens ?? NaN),
      FORMATS.count(request.output_tokens),
      FORMATS.rate(request.output_tokens_per_s ?? NaN),
    ];
    texts.forEach((text, index) => setText(row.cells[index + 1], text));
  }
  for (const row of old.values()) removeRow(row);
  byId("requests").parentNode.hidden = !requests.length;
  setText(byId("requests-note"), requests.length ? "" : "None.");
}

function makeRow({ id, endpoint }) {
  const button = make("button", { type: "button", "aria-label": `Cancel ${id}`, className: "quiet" }, "Cancel");
  button.onclick = () => cancelRequest(id, button);
  const name = make("th", { scope: "row", title: `${id}, ${endpoint}` }, make("code", {}, id));
  const cells = ["State", "Age", "Prompt", "Cached", "Output", "Tokens/s"].map((label) => {
    const cell = make("td");
    cell.dataset.label = label; // for where the table has no room for its head
    return cell;
  });
  const row = make("tr", {}, name, ...cells, make("td", {}, button));
  row.dataset.id = id;
  return row;
}

/** Whoever is on a row that ends goes on from the next one. */
function removeRow(row) {
  if (row.contains(document.activeElement)) {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    (next?.querySelector("button") ?? byId("requests-title")).focus();
  }
  row.remove();
}

async function cancelRequest(id, button) {
  setText(button, "Cancelling"); // not disabled: it would lose the focus
  try {
    await callApi(`v1/requests/${encodeURIComponent(id)}/cancel`, { method: "POST" });
  } catch (error) {
    if (error.status === 404) return; // it has ended by itself
    setText(button, "Cancel");
    setText(byId("requests-note"), error.message);
  }
}
