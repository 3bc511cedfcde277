// The same question to several applications: what belongs to each is with each.
import { useCallback, useEffect, useRef, useState, html } from "./dom.js";
import { get, ofApp } from "./api.js";
import { Field, Problem } from "./ui.js";

const AT_ONCE = 6;

/** Applications beyond which a page asks only those that are chosen. */
export const MANY_APPS = 30;

/** Do `what(each)` for all, so many at once; answers what came of each, in order: {value} or {error}. */
export async function forAll(all, what) {
  const done = new Array(all.length);
  let next = 0;
  const work = async () => {
    while (next < all.length) {
      const at = next++;
      try {
        done[at] = { value: await what(all[at]) };
      } catch (error) {
        done[at] = { error };
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, all.length) }, work));
  return done;
}

/**
 * Ask each application for a list, page by page.
 *
 * `apps` are ids; `segments` the path of a route of theirs; `rowsOf(answer)` its rows, `afterOf(answer)` where its next
 * page begins. Answers {rows (each with `app`), errors: [{app, error}], loading, more (whether there are more pages),
 * loadMore, reload}; `every` seconds it is asked again, from the beginning.
 */
export function useOfApps(apps, segments, { query = {}, rowsOf, afterOf = () => undefined, every = 0 }) {
  const key = JSON.stringify([apps, segments, query]);
  const [state, setState] = useState({ of: null, rows: [], errors: [], next: [], loading: true });
  const turn = useRef(0);
  const busy = useRef(false);
  const pages = useRef(1);
  const ask = useCallback(async (asked, known, signal) => {
    const mine = ++turn.current;
    setState((was) => ({ ...(was.of === key ? was : { rows: [], errors: [], next: [] }), of: key, loading: true }));
    busy.current = true;
    const told = await forAll(asked, ({ app, after }) => get(ofApp(app, ...segments), { ...query, after }, signal));
    if (turn.current !== mine || signal?.aborted) return;
    busy.current = false;
    const rows = [...known.rows];
    const errors = [...known.errors];
    const next = [];
    told.forEach(({ value, error }, at) => {
      const { app } = asked[at];
      if (error) errors.push({ app, error });
      else {
        rows.push(...rowsOf(value).map((row) => ({ ...row, app })));
        const after = afterOf(value);
        if (after) next.push({ app, after });
      }
    });
    setState({ of: key, rows, errors, next, loading: false });
  }, [key]);
  const none = { rows: [], errors: [] };
  const reload = useCallback(() => {
    pages.current = 1;
    return ask(apps.map((app) => ({ app })), none);
  }, [ask]);
  useEffect(() => {
    const leaving = new AbortController();
    const first = () => ask(apps.map((app) => ({ app })), none, leaving.signal);
    pages.current = 1;
    first();
    // Whoever has read further keeps their place.
    const timer = every ? setInterval(() => document.hidden || busy.current || pages.current > 1 || first(), every * 1000) : 0;
    return () => {
      clearInterval(timer);
      leaving.abort();
      turn.current++;
    };
  }, [ask, every]);
  const now = state.of === key ? state : { rows: [], errors: [], next: [], loading: true };
  const loadMore = () => {
    pages.current++;
    return ask(now.next, now);
  };
  return { ...now, more: now.next.length > 0, loadMore, reload };
}

/** The applications that a page asks: the chosen one, else all of them, unless they are too many. */
export function chosenApps(mesh, chosen) {
  if (chosen) return [chosen];
  const all = (mesh?.apps ?? []).map((each) => each.id);
  return all.length <= MANY_APPS ? all : [];
}

/** The field that chooses an application; `must`: one has to be, so that "" is not all of them. */
export function AppField({ mesh, value, onChange, label = "Application", must = false }) {
  const ids = (mesh?.apps ?? []).map((each) => each.id);
  if (value && !ids.includes(value)) ids.push(value);
  const none = must || ids.length > MANY_APPS ? "Choose one…" : "All applications";
  return html`<${Field} label=${label} type="select" value=${value} options=${must && value ? ids : [["", none], ...ids]} onChange=${onChange} required=${must} />`;
}

/** What applications did not tell, once for each reason. */
export function Problems({ errors, retry, what }) {
  const grouped = new Map();
  for (const { app, error } of errors) {
    const key = `${error.status} ${error.code} ${error.message.replaceAll(app, "")}`;
    if (grouped.has(key)) grouped.get(key).apps.push(app);
    else grouped.set(key, { error, apps: [app] });
  }
  return html`${[...grouped.values()].map(({ error, apps }) => {
    const named = apps.length > 3 ? `${apps.slice(0, 3).join(", ")} and ${apps.length - 3} more` : apps.join(", ");
    return html`<${Problem} key=${named} error=${error} retry=${retry} what=${what ? `${what} (${named})` : named} />`;
  })}`;
}
