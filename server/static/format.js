// Numbers as people read them; what is not known is a dash.

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const RATE = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];

const known = (format) => (value) => (Number.isFinite(value) ? format(value) : "–");

const FORMATS = {
  count: known((value) => NUMBER.format(value)),
  rate: known((value) => (value < 100 ? RATE : NUMBER).format(value)),
  compact: known((value) => COMPACT.format(value)),
  percent: known((value) => `${(100 * value).toFixed(1)}%`),
  factor: known((value) => `${value.toFixed(2)}×`),
  yes: known((value) => (value ? "yes" : "no")),
  bytes: known((value) => {
    const power = value < 1 ? 0 : Math.min(Math.floor(Math.log2(value) / 10), UNITS.length - 1);
    const scaled = value / 1024 ** power;
    return `${power && scaled < 100 ? scaled.toPrecision(3) : Math.round(scaled)} ${UNITS[power]}`;
  }),
  seconds: known((value) => {
    if (value < 1) return `${RATE.format(1000 * value)} ms`;
    if (value < 100) return `${value.toPrecision(3)} s`;
    const minutes = Math.floor(value / 60);
    return minutes < 100 ? `${minutes} min` : `${Math.floor(minutes / 60)} h`;
  }),
};
