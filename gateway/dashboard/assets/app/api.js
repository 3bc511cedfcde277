// Requests to the dashboard's server: with the token, and errors as text that says what to do next.
import { useCallback, useEffect, useRef, useState } from "./dom.js";

const KEY = "mesh-dashboard-token";
const BASE = new URL("../../api/", import.meta.url);
let token = "";
let refused = false;
let refusedListener = () => {};

/** Take the token out of the address, so that it stays in neither the history nor a copied link; answers whether one was there. */
export function takeToken() {
  const given = /^#token=([^&]+)(?:&(.*))?$/.exec(location.hash);
  if (given) {
    setToken(tokenIn(location.hash));
    history.replaceState(null, "", `#${given[2] ?? "/"}`);
    return true;
  }
  try {
    token = sessionStorage.getItem(KEY) ?? "";
  } catch {
    // Storage is switched off: there is no token but that of an address.
  }
  return false;
}

/** The token of an address that has it behind `#token=`; any other text is one itself. */
export function tokenIn(text) {
  const found = /#token=([^&\s]*)/.exec(text);
  if (!found) return text.trim();
  try {
    return decodeURIComponent(found[1]);
  } catch {
    return found[1]; // A % that encodes nothing.
  }
}

export function setToken(given) {
  token = given;
  refused = false;
  try {
    sessionStorage.setItem(KEY, given);
  } catch {
    // Storage is switched off: the token lasts as long as the page.
  }
}

/** Call `listener` when the server refuses the token, also if it has already. */
export function onRefused(listener) {
  refusedListener = listener;
  if (refused) listener();
}

/** What went wrong: `message` says it, `next` what to do about it, `status` is HTTP's (0 = no answer came). */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "", next = "" } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.next = next;
  }
}

const NEXT = {
  0: "Is mesh dashboard still running? If not, start it again, and open the address that it prints.",
  401: "Open the address that mesh dashboard prints: it has the token.",
  404: "It may have stopped or been deleted since this page was shown.",
  504: "The node did not answer in time. It may be busy, or just gone.",
};

const STEP = /(^|\/)(\.|%2e){1,2}(\/|$)/i;

const written = (query) => {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query ?? {})) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== undefined && each !== null && each !== "") search.append(name, String(each));
    }
  }
  const text = search.toString();
  return text ? `?${text}` : "";
};

async function failure(response) {
  const text = await response.text().catch(() => "");
  let code = "";
  let message = text.slice(0, 2000);
  let next = NEXT[response.status] ?? "";
  try {
    const said = JSON.parse(text);
    code = said.errorCode ?? said.error?.code ?? "";
    message = said.message ?? said.error?.message ?? message;
    next = said.next ?? next;
  } catch {
    // No JSON: its text is all there is.
  }
  return new ApiError(message || `HTTP ${response.status} ${response.statusText}`, { status: response.status, code, next });
}

/** One request, `path` being relative to `api/`; answers any status with the open Response. */
export async function open(path, { verb = "GET", query, headers = {}, body, signal } = {}) {
  // A browser would take these as steps upward, to another route than was meant; encoding them does not help.
  if (STEP.test(path.split("?", 1)[0])) throw new ApiError("Nothing is called “.” or “..”", { status: 404, next: "Check the address of this page." });
  let response;
  try {
    response = await fetch(new URL(path + written(query), BASE), {
      method: verb,
      headers: token ? { ...headers, "dashboard-token": token } : headers,
      body,
      signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The dashboard's server does not answer", { next: NEXT[0] });
  }
  if (response.status === 401) {
    refused = true;
    refusedListener();
  }
  return response;
}

/** Keep whole numbers that JavaScript would round, as they are written, where the browser can. */
const whole = (_, value, read) =>
  typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && read?.source && JSON.rawJSON ? JSON.rawJSON(read.source) : value;

/** One request; answers {status, type, headers, text, json (undefined where it is none), seconds}; raises for ≥ 400 unless `any`. */
export async function send(path, options = {}) {
  const began = performance.now();
  const response = await open(path, options);
  if (!response.ok && !options.any) throw await failure(response);
  const text = await response.text();
  const type = response.headers.get("content-type") ?? "";
  let json;
  if (text && type.includes("json")) {
    try {
      json = JSON.parse(text, whole);
    } catch {
      // Said to be JSON, and is none: it is shown as text.
    }
  }
  return { status: response.status, type, headers: [...response.headers], text, json, seconds: (performance.now() - began) / 1000 };
}

export const get = async (path, query, signal) => (await send(path, { query, signal })).json;

/** Send JSON; without a body, nothing. Answers as `send`. */
export const post = (path, value, options = {}) =>
  send(path, {
    verb: "POST",
    ...options,
    headers: { ...(value === undefined ? {} : { "content-type": "application/json" }), ...options.headers },
    body: value === undefined ? undefined : JSON.stringify(value),
  });

export const remove = (path, options = {}) => send(path, { verb: "DELETE", ...options });

const joined = (segments) => segments.map((each) => encodeURIComponent(each)).join("/");

/** The path of a node's own route: `ofNode(id, "mesh", "topics", component, topic)`. */
export const ofNode = (node, ...segments) => `nodes/${encodeURIComponent(node)}/v1.0/${joined(segments)}`;

/** The same of any ready instance of an application; "" = the dashboard itself. */
export const ofApp = (app, ...segments) =>
  app ? `apps/${encodeURIComponent(app)}/v1.0/${joined(segments)}` : `self/v1.0/${joined(segments)}`;

/**
 * Ask when the page is shown and again every `every` seconds while it can be seen (0 = not again).
 * Answers {data, error, loading, reload}; path null = ask nothing. What was there stays shown while it is asked again,
 * and an answer that takes longer than `every` is waited for.
 */
export function useGet(path, { query, every = 0 } = {}) {
  const [state, setState] = useState({ data: undefined, error: null, loading: path !== null, of: null });
  const asked = useRef(null); // What is under way.
  const key = path === null ? null : path + written(query);
  const reload = useCallback(async () => {
    asked.current?.abort();
    if (key === null) return;
    const mine = new AbortController();
    asked.current = mine;
    setState((was) => ({ ...(was.of === key ? was : { data: undefined, error: null }), loading: true, of: key }));
    try {
      const data = await get(key, undefined, mine.signal);
      if (asked.current === mine) setState({ data, error: null, loading: false, of: key });
    } catch (error) {
      if (asked.current === mine && error.name !== "AbortError") setState((was) => ({ ...was, error, loading: false }));
    }
    if (asked.current === mine) asked.current = null;
  }, [key]);
  useEffect(() => {
    reload();
    const timer = every ? setInterval(() => document.hidden || asked.current || reload(), every * 1000) : 0;
    return () => {
      clearInterval(timer);
      asked.current?.abort();
      asked.current = null;
    };
  }, [reload, every]);
  return { ...(state.of === key ? state : { data: undefined, error: null, loading: key !== null }), reload };
}

/** `useGet` of several paths at once: a list of {path, data, error}, in their order. */
export function useEach(paths, { every = 0 } = {}) {
  const key = paths.join("\n");
  const [state, setState] = useState({ key: null, rows: [] });
  useEffect(() => {
    const mine = new AbortController();
    const some = key ? key.split("\n") : [];
    let busy = false; // One that answers more slowly than it is asked is waited for.
    const ask = async () => {
      busy = true;
      const rows = await Promise.all(
        some.map((path) =>
          get(path, undefined, mine.signal).then(
            (data) => ({ path, data }),
            (error) => ({ path, error }),
          ),
        ),
      );
      busy = false;
      if (!mine.signal.aborted) setState({ key, rows });
    };
    ask();
    const timer = every ? setInterval(() => document.hidden || busy || ask(), every * 1000) : 0;
    return () => {
      clearInterval(timer);
      mine.abort();
    };
  }, [key, every]);
  return state.key === key ? state.rows : (key ? key.split("\n") : []).map((path) => ({ path }));
}
