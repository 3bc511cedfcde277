// What the server tells while the page is open: the mesh, the rates of the last minute, and sights on demand.
import { useEffect, useMemo, useReducer, useRef, useState } from "./dom.js";
import { ApiError, open } from "./api.js";
import { Rates } from "./rates.js";

const KEPT_SIGHTS = 500;
const SLOWEST_RETRY = 15_000;

/** Read server-sent events off a Response until it ends: calls `on(name, data)`, data being parsed JSON. */
async function readEvents(response, on) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const ends = rest.lastIndexOf("\n\n");
    if (ends < 0) continue;
    const whole = rest.slice(0, ends);
    rest = rest.slice(ends + 2);
    for (const block of whole.split("\n\n")) {
      let name = "message";
      const data = [];
      for (const line of block.split("\n")) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      }
      if (data.length) on(name, JSON.parse(data.join("\n")));
    }
  }
}

/**
 * Keep a stream of `api/live` open, with back-off when it breaks.
 *
 * `on(name, data)` gets its events; `state(is, error)` is told "live", "waiting" or "refused".
 * Answers a function that closes it.
 */
export function stream(query, on, state = () => {}) {
  const closing = new AbortController();
  let timer = 0;
  let tries = 0;
  const begin = async () => {
    try {
      const response = await open("live", { query, headers: { accept: "text/event-stream" }, signal: closing.signal });
      if (!response.ok) {
        const said = await response.json().catch(() => ({}));
        throw new ApiError(said.message ?? `HTTP ${response.status}`, { status: response.status, next: said.next });
      }
      tries = 0;
      state("live");
      await readEvents(response, on);
      throw new ApiError("The dashboard's server ended the stream", { next: "It may be restarting." });
    } catch (error) {
      if (closing.signal.aborted) return;
      if (error.status >= 400 && error.status < 500 && error.status !== 429) {
        state("refused", error);
        return;
      }
      state("waiting", error);
      timer = setTimeout(begin, Math.min(SLOWEST_RETRY, 500 * 2 ** tries++) * (0.75 + Math.random() / 2));
    }
  };
  begin();
  return () => {
    closing.abort();
    clearTimeout(timer);
  };
}

// What pages draw: replaced as a whole, at most once a second, just before a frame.
const shown = { mesh: null, tick: 0, standing: { status: "waiting", error: null, refused: [] } };
const listeners = new Set();
const rates = new Rates();
let waiting = false;

function changed() {
  if (waiting) return;
  waiting = true;
  const flush = () => {
    waiting = false;
    for (const listener of [...listeners]) listener();
  };
  // No frame comes while the page is hidden, and nobody looks.
  requestAnimationFrame(flush);
}

let close = null;

/** Begin with what all pages share: the mesh and its rates. Again after a token was entered. */
export function start() {
  close?.();
  close = stream(
    {},
    (name, data) => {
      if (name === "mesh") shown.mesh = data;
      else if (name === "rates") {
        rates.add(data);
        shown.tick += 1;
      } else if (name === "refused") {
        const said = data.data ?? data;
        const refused = [...shown.standing.refused.filter((each) => each.node !== said.node), said].slice(-50);
        shown.standing = { ...shown.standing, refused };
      } else return;
      changed();
    },
    (status, error = null) => {
      shown.standing = { ...shown.standing, status, error };
      changed();
    },
  );
}

/** What `pick` takes of what is shown; drawn anew when that is another value. */
function useShown(pick) {
  const [, draw] = useReducer((count) => count + 1, 0);
  const now = pick(shown);
  const held = useRef();
  held.current = { pick, now };
  useEffect(() => {
    const listener = () => held.current.pick(shown) !== held.current.now && draw();
    listeners.add(listener);
    listener(); // Something may have come since this was drawn first, before it listened.
    return () => listeners.delete(listener);
  }, []);
  return now;
}

/** The mesh as `api/mesh` tells it; null until it came. The same object until it changed. */
export const useMesh = () => useShown(({ mesh }) => mesh);

/** {status: "live" | "waiting" | "refused", error, refused: [{app, node, reason}]}. */
export const useStatus = () => useShown(({ standing }) => standing);

/** The rates of the last minute, drawn anew each second: see rates.js. `tick` tells that they changed. */
export function useRates() {
  return useSlowRates(1);
}

/** `useRates`, held back: `every` seconds, for pages with thousands of rows. */
export function useSlowRates(every) {
  const turn = useShown(({ tick }) => Math.floor(tick / every));
  return useMemo(() => ({ tick: shown.tick, rates }), [turn]);
}

/**
 * Watch sights as they pass, the newest first: {sights, dropped, refused, state, error, clear}.
 *
 * `filter` has app, topic, block, where, values as `api/live`; null = watch nothing. `paused` keeps what is shown.
 * Drawn at most once a second; the last 500 are kept.
 */
export function useSights(filter, { paused = false, keep = KEPT_SIGHTS } = {}) {
  const key = filter === null ? null : JSON.stringify(filter);
  const [drawn, setDrawn] = useState({ sights: [], dropped: 0, refused: [], seen: 0, state: "waiting", error: null });
  const held = useRef(null);
  const stopped = useRef(paused);
  stopped.current = paused;
  useEffect(() => {
    const mine = { sights: [], dropped: 0, refused: [], seen: 0, state: "waiting", error: null };
    held.current = mine;
    setDrawn({ ...mine });
    if (key === null) return undefined;
    let timer = 0;
    let last = -1000;
    const draw = () => {
      timer = 0;
      last = performance.now();
      setDrawn({ ...mine, sights: mine.sights.slice() });
    };
    const soon = () => {
      if (!timer) timer = setTimeout(draw, Math.max(30, last + 1000 - performance.now()));
    };
    const end = stream(
      { ...JSON.parse(key), sights: 1, mesh: 0, rates: 0 },
      (name, data) => {
        if (name === "sight") {
          mine.seen += 1;
          if (stopped.current) return;
          mine.sights.unshift(data);
          if (mine.sights.length > keep) mine.sights.length = keep;
        } else if (name === "dropped") mine.dropped += (data.data ?? data).count ?? 0;
        else if (name === "refused") {
          const said = data.data ?? data;
          mine.refused = [...mine.refused.filter((each) => each.node !== said.node), said].slice(-50);
        } else return;
        soon();
      },
      (state, error = null) => {
        mine.state = state;
        mine.error = error;
        soon();
      },
    );
    return () => {
      end();
      clearTimeout(timer);
    };
  }, [key, keep]);
  const clear = () => {
    if (held.current) Object.assign(held.current, { sights: [], dropped: 0, seen: 0 });
    setDrawn((was) => ({ ...was, sights: [], dropped: 0, seen: 0 }));
  };
  return { ...drawn, clear };
}
