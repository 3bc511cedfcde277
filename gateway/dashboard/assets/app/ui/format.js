// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en");
const dates = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });

export const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));

/** 1 event, 2 events. */
export const many = (value, one, more = `${one}s`) => `${count(value)} ${value === 1 ? one : more}`;

export function bytes(value) {
  if (value === null || value === undefined || value < 0) return "–";
  if (value < 1024) return `${value} B`;
  const step = Math.min(4, Math.floor(Math.log2(value) / 10));
  const scaled = value / 1024 ** step;
  return `${scaled >= 100 ? scaled.toFixed(0) : scaled.toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB"][step]}`;
}

/** A length of time, given in seconds. */
export function ms(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  if (seconds === 0) return "0 ms";
  if (seconds < 0.01) return `${(seconds * 1000).toFixed(seconds < 0.001 ? 2 : 1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 100) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return lasting(seconds);
}

/** A long time in its two greatest units: 3 d 4 h. */
export function lasting(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const left = Math.max(0, Math.round(seconds));
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => left >= size);
  if (first < 0) return "0 s";
  const [name, size] = units[first];
  const rest = units[first + 1];
  const more = rest ? Math.floor((left % size) / rest[1]) : 0;
  return `${Math.floor(left / size)} ${name}${more ? ` ${more} ${rest[0]}` : ""}`;
}

/** How many in a second. */
export function perSecond(value) {
  if (!value) return "0/s";
  if (value < 0.1) return `${Math.max(1, Math.round(value * 60))}/min`;
  if (value < 10) return `${value.toFixed(1)}/s`;
  if (value < 10_000) return `${Math.round(value)}/s`;
  return `${(value / 1000).toFixed(value < 100_000 ? 1 : 0)}k/s`;
}

export const percent = (part) => (part === 0 ? "0 %" : part < 0.001 ? "<0.1 %" : part > 0.99 && part < 1 ? ">99 %" : `${(part * 100).toFixed(part < 0.1 ? 1 : 0)} %`);

/** The moment as milliseconds; takes ISO text, Unix seconds or a Date. */
export function moment(at) {
  if (at === null || at === undefined || at === "") return null;
  const value = typeof at === "number" ? at * 1000 : at instanceof Date ? at.getTime() : Date.parse(at);
  return Number.isNaN(value) ? null : value;
}

export function ago(at, now = Date.now()) {
  const value = moment(at);
  if (value === null) return "–";
  const seconds = (now - value) / 1000;
  if (Math.abs(seconds) < 1.5) return "now";
  return seconds < 0 ? `in ${lasting(-seconds)}` : `${lasting(seconds)} ago`;
}

export const date = (at) => (moment(at) === null ? "–" : dates.format(moment(at)));
export const time = (at) => (moment(at) === null ? "–" : clock.format(moment(at)));
