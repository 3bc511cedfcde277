// The last minute of every edge: what passed, what failed, and how long it took.

export const SECONDS = 60;
// Upper ends of the buckets that the tap counts in, in seconds; one more bucket has the rest.
export const BUCKETS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5];
const WINDOW = 10; // Seconds that the present is made of.
const WIDTH = BUCKETS.length + 1;

class Edge {
  constructor(told, tick) {
    this.seen = told.seen;
    this.block = told.block;
    this.from = told.from;
    this.target = told.target;
    this.app = told.app;
    this.last = tick;
    this.counts = new Uint32Array(SECONDS);
    this.errors = new Uint32Array(SECONDS);
    this.longest = new Float32Array(SECONDS);
    this.buckets = new Uint32Array(WINDOW * WIDTH);
    this.touched = tick; // When something last passed.
    // Sums over the minute, and over the present: they are asked for of each edge, each second.
    this.total = this.count = this.failed = 0;
    this.present = new Uint32Array(WIDTH);
  }

  /** Empty the places of the seconds in which nothing passed. */
  forward(tick) {
    if (tick - this.last >= SECONDS) {
      for (const each of [this.counts, this.errors, this.longest, this.buckets, this.present]) each.fill(0);
      this.total = this.count = this.failed = 0;
      this.last = tick;
    }
    while (this.last < tick) {
      const at = ++this.last;
      const gone = (at - WINDOW + SECONDS) % SECONDS;
      this.count -= this.counts[gone];
      this.failed -= this.errors[gone];
      const start = (at % WINDOW) * WIDTH;
      for (let each = 0; each < WIDTH; each++) this.present[each] -= this.buckets[start + each];
      this.buckets.fill(0, start, start + WIDTH);
      const slot = at % SECONDS;
      this.total -= this.counts[slot];
      this.counts[slot] = this.errors[slot] = this.longest[slot] = 0;
    }
  }

  add(told) {
    const slot = this.last % SECONDS;
    this.touched = this.last;
    this.counts[slot] += told.count;
    this.errors[slot] += told.errors;
    this.total += told.count;
    this.count += told.count;
    this.failed += told.errors;
    if (told.longest > this.longest[slot]) this.longest[slot] = told.longest;
    const start = (this.last % WINDOW) * WIDTH;
    for (let each = 0; each < WIDTH; each++) {
      this.buckets[start + each] += told.buckets[each];
      this.present[each] += told.buckets[each];
    }
  }
}

/** The value that the share `part` of what was counted does not exceed, in seconds; null = nothing was. */
function quantile(buckets, part, longest) {
  let all = 0;
  for (const each of buckets) all += each;
  if (!all) return null;
  let left = part * all;
  for (let at = 0; at < WIDTH; at++) {
    if (buckets[at] && left <= buckets[at]) {
      const low = at ? BUCKETS[at - 1] : 0;
      const high = Math.min(at < BUCKETS.length ? BUCKETS[at] : Infinity, Math.max(longest, low));
      return low + (high - low) * (left / buckets[at]);
    }
    left -= buckets[at];
  }
  return longest;
}

export class Rates {
  constructor() {
    this.edges = new Map();
    this.tick = 0;
    this.lengths = new Float32Array(SECONDS); // Of the ticks, in seconds.
  }

  /** Take what `event: rates` tells: {at, seconds, edges}. */
  add(told) {
    this.tick += 1;
    this.lengths[this.tick % SECONDS] = told.seconds || 1;
    for (const each of told.edges) {
      const key = `${each.seen}\n${each.block}\n${each.from}\n${each.target}\n${each.app}`;
      let edge = this.edges.get(key);
      if (!edge) this.edges.set(key, (edge = new Edge(each, this.tick)));
      edge.forward(this.tick);
      edge.add(each);
    }
    if (this.tick % 10 === 0) {
      for (const [key, edge] of this.edges) if (this.tick - edge.touched > SECONDS) this.edges.delete(key);
    }
  }

  /** The edges for which `fits(edge)`; an edge has seen, block, from, target and app. */
  where(fits) {
    const found = [];
    for (const edge of this.edges.values()) if (fits(edge)) found.push(edge);
    return found;
  }

  /** Edges by what `keyOf(edge)` says of each, null = leave it out: Map of key to edges. */
  grouped(keyOf) {
    const groups = new Map();
    for (const edge of this.edges.values()) {
      const key = keyOf(edge);
      if (key === null || key === undefined) continue;
      const group = groups.get(key);
      if (group) group.push(edge);
      else groups.set(key, [edge]);
    }
    return groups;
  }

  /** How much passes in a second now, and how it goes: {rate, errorRate, failing (0..1), p50, p95, longest, total}. */
  figures(edges) {
    const buckets = new Float64Array(WIDTH);
    let count = 0;
    let errors = 0;
    let longest = 0;
    let total = 0;
    const span = Math.min(WINDOW, this.tick);
    let seconds = 0;
    for (let back = 0; back < span; back++) seconds += this.lengths[(this.tick - back) % SECONDS];
    for (const edge of edges) {
      edge.forward(this.tick);
      total += edge.total;
      if (!edge.count) continue;
      count += edge.count;
      errors += edge.failed;
      for (let back = 0; back < span; back++) longest = Math.max(longest, edge.longest[(this.tick - back) % SECONDS]);
      for (let at = 0; at < WIDTH; at++) buckets[at] += edge.present[at];
    }
    return {
      rate: seconds ? count / seconds : 0,
      errorRate: seconds ? errors / seconds : 0,
      failing: count ? errors / count : 0,
      count,
      errors,
      p50: quantile(buckets, 0.5, longest),
      p95: quantile(buckets, 0.95, longest),
      longest,
      total,
    };
  }

  /** How many passed (or with "errors": failed) in each of the last 60 seconds, the oldest first. */
  series(edges, of = "counts") {
    const values = new Array(Math.min(SECONDS, Math.max(this.tick, 1))).fill(0);
    for (const edge of edges) {
      edge.forward(this.tick);
      for (let back = 0; back < values.length; back++) {
        values[values.length - 1 - back] += edge[of][(this.tick - back + SECONDS) % SECONDS];
      }
    }
    return values;
  }
}

// What several pages ask of an edge.
export const isTopic = (name) => (edge) => edge.block === "pubsub" && edge.target === name;
export const published = (edge) => edge.block === "pubsub" && edge.seen === "asked";
export const arrived = (edge) => edge.block === "pubsub" && edge.seen === "arrived";
