// Addresses: what stands behind the `#`. A page is a module in pages/, loaded when it is first asked for.
import { useEffect, useState } from "./dom.js";

const PAGES = [
  ["", "map"],
  ["apps", "apps"],
  ["apps/:id", "app"],
  ["topics", "topics"],
  ["topics/:component/:topic", "topic"],
  ["components", "components"],
  ["components/:name", "component"],
  ["actors", "actors"],
  ["jobs", "jobs"],
  ["workflows", "workflows"],
  ["workflows/:app/:id", "workflow"],
  ["traces", "traces"],
  ["resources", "resources"],
  ["events", "events"],
  ["try", "try"],
].map(([pattern, page]) => ({ parts: pattern.split("/"), page }));

/** `#/…` of path segments and a query; segments are encoded here, and empty query values left out. */
export function to(segments, query = {}) {
  const path = segments.map(encodeURIComponent).join("/");
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const each of Array.isArray(value) ? value : [value]) if (each !== undefined && each !== "") search.append(name, each);
  }
  const text = search.toString();
  return `#/${path}${text ? `?${text}` : ""}`;
}

export const links = {
  app: (id) => to(["apps", id]),
  topic: (component, topic) => to(["topics", component, topic]),
  component: (name) => to(["components", name]),
  workflow: (app, id) => to(["workflows", app, id]),
  events: (query) => to(["events"], query),
  tryOut: (query) => to(["try"], query),
};

/** What an address asks for: {page, params, query (URLSearchParams), path}; page is null for one that there is not. */
export function read(hash) {
  const [path, search = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const parts = path.split("/");
  const query = new URLSearchParams(search);
  for (const { parts: pattern, page } of PAGES) {
    if (pattern.length !== parts.length) continue;
    const params = {};
    try {
      const fits = pattern.every((part, at) => {
        if (!part.startsWith(":")) return part === parts[at];
        params[part.slice(1)] = decodeURIComponent(parts[at]);
        return parts[at] !== "";
      });
      if (fits) return { page, params, query, path };
    } catch {
      break; // A % that encodes nothing.
    }
  }
  return { page: null, params: {}, query, path };
}

export const go = (address) => {
  location.hash = address.replace(/^#/, "");
};

/** Change the query of the page that is shown; the change is no step of its own in the history. */
export function setQuery(query) {
  const { path } = read(location.hash);
  history.replaceState(null, "", to(path.split("/").map(decodeURIComponent), query));
}

/** Where one is: as `read`, and `turn`, another number after each step. */
export function useRoute() {
  const [route, setRoute] = useState(() => ({ ...read(location.hash), turn: 0 }));
  useEffect(() => {
    const changed = () => setRoute(({ turn }) => ({ ...read(location.hash), turn: turn + 1 }));
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}
