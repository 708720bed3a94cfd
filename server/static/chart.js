// The last minutes of one number. SVG that scales with its box; lines keep their width.

const SPAN_MS = 5 * 60 * 1000;
const [WIDTH, HEIGHT] = [300, 100]; // of the viewBox

class Chart {
  #points = []; // {at, value}; a value of null is a gap
  #figure;
  #format;

  constructor(figure, format) {
    this.#figure = figure;
    this.#format = format;
    this.#figure.querySelector("figcaption").append(make("span", { className: "top" }));
  }

  add(at, value) {
    this.#points.push({ at, value });
    while (this.#points[0].at < at - SPAN_MS) this.#points.shift();
    this.#draw(at);
  }

  /** Mean of what is shown. */
  mean() {
    const values = this.#values();
    return values.reduce((sum, value) => sum + value, 0) / values.length;
  }

  #values() {
    return this.#points.map((point) => point.value).filter((value) => value !== null);
  }

  #draw(now) {
    const highest = Math.max(0, ...this.#values());
    const x = (point) => (WIDTH * (1 - (now - point.at) / SPAN_MS)).toFixed(2);
    const y = (point) => (HEIGHT * (1 - point.value / (roundUp(highest) || 1))).toFixed(2);
    const [line, area] = [this.#figure.querySelector(".line"), this.#figure.querySelector(".area")];
    // With an area it is a curve, without it single events: a stem for each.
    let [curve, fill, begun] = ["", "", false];
    this.#points.forEach((point, index) => {
      if (point.value === null) return void (begun = false);
      const place = `${x(point)} ${y(point)}`;
      if (!area) return void (curve += `M${place}V${HEIGHT}`);
      const endsHere = (this.#points[index + 1]?.value ?? null) === null;
      curve += `${begun ? "L" : "M"}${place}`;
      fill += `${begun ? "L" : `M${x(point)} ${HEIGHT}L`}${place}`;
      if (endsHere) fill += `V${HEIGHT}Z`;
      begun = true;
    });
    line.setAttribute("d", curve);
    area?.setAttribute("d", fill);
    const caption = this.#figure.querySelector("figcaption");
    const top = highest ? this.#format(roundUp(highest)) : "";
    setText(caption.lastChild, top);
    const told = `${caption.firstChild.textContent}, last 5 minutes: mean ${this.#format(this.mean())}, highest ${this.#format(highest)}`;
    this.#figure.querySelector("svg").setAttribute("aria-label", told);
  }
}

/** The next number that is easily read. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return value && power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value);
}
