// The text of /metrics, read; every number on the page is one of these or made of them.

/** Series such as `pippin_kv_blocks{state="used"}` to their values. */
function parseMetrics(text) {
  const series = new Map();
  for (const line of text.split("\n")) {
    const cut = line.lastIndexOf(" ");
    if (cut > 0 && line[0] !== "#") series.set(line.slice(0, cut), Number(line.slice(cut + 1)));
  }
  return series;
}

/** The value of a series; of the first with labels if a bare name has none without. */
function valueOf(series, name) {
  if (series.has(name)) return series.get(name);
  for (const [key, value] of series) if (key.startsWith(`${name}{`)) return value;
  return undefined;
}

/** Rates between two readings; `null` where there is none to tell. */
class Rates {
  #last = null;

  /** Takes the next reading; `at` is in milliseconds. */
  next(series, at) {
    const now = {
      at,
      output: valueOf(series, "pippin_output_tokens_total"),
      ttftSum: valueOf(series, "pippin_ttft_seconds_sum"),
      ttftCount: valueOf(series, "pippin_ttft_seconds_count"),
    };
    const last = this.#last;
    this.#last = now;
    // After a pause the mean would hide what went on, after a restart it is below zero.
    const isUsable = last && at - last.at < 5000 && now.output >= last.output;
    if (!isUsable) return { outputPerSecond: null, ttft: null };
    const numFirst = now.ttftCount - last.ttftCount;
    return {
      outputPerSecond: (1000 * (now.output - last.output)) / (at - last.at),
      ttft: numFirst > 0 ? (now.ttftSum - last.ttftSum) / numFirst : null,
    };
  }
}
