// What stands around every page: navigation, search, the state of the connection, theme, and keys.
import { Component, html, useEffect, useRef, useState } from "./dom.js";
import { onRefused, setToken, tokenIn } from "./api.js";
import { start, useMesh, useStatus } from "./live.js";
import { go, useRoute } from "./router.js";
import { Search } from "./search.js";
import { Badge, Button, Dialog, Empty, Field, Icon, Loading, Notices, Page as Frame, Problem, announce } from "./ui.js";

const PLACES = [
  ["Watch", [["m", "map", "", "Map"], ["e", "events", "events", "Live"], ["x", "traces", "traces", "Traces"]]],
  ["Mesh", [["a", "apps", "apps", "Applications"], ["t", "topics", "topics", "Topics"], ["c", "components", "components", "Components"], ["o", "actors", "actors", "Actors"]]],
  ["Work", [["w", "workflows", "workflows", "Workflows"], ["j", "jobs", "jobs", "Jobs"]]],
  ["Set up", [["r", "resources", "resources", "Resources"], ["y", "try", "try", "Try it out"]]],
];
const KEYS = new Map(PLACES.flatMap(([, places]) => places.map(([key, , path]) => [key, `#/${path}`])));
const THEMES = [["", "auto", "as the system has it"], ["light", "sun", "light"], ["dark", "moon", "dark"]];

function useTheme() {
  const [theme, setTheme] = useState(() => document.documentElement.dataset.theme ?? "");
  const next = () => {
    const then = THEMES[(THEMES.findIndex(([name]) => name === theme) + 1) % THEMES.length][0];
    if (then) document.documentElement.dataset.theme = then;
    else delete document.documentElement.dataset.theme;
    try {
      if (then) localStorage.setItem("mesh-theme", then);
      else localStorage.removeItem("mesh-theme");
    } catch {
      // Storage is switched off: the theme lasts as long as the page.
    }
    setTheme(then);
    announce(`Theme: ${THEMES.find(([name]) => name === then)[2]}`);
  };
  return [THEMES.find(([name]) => name === theme) ?? THEMES[0], next];
}

/** Whether keys without Ctrl do something: who speaks to the machine, or whose hand slips, may switch them off. */
function keysAreOn() {
  try {
    return localStorage.getItem("mesh-keys") !== "off";
  } catch {
    return true; // Storage is switched off: nothing was chosen.
  }
}

/** Keys: `/` searches, `g` and a letter goes to a page, `?` lists them; none of them while something is typed. */
function useKeys(showKeys) {
  useEffect(() => {
    let before = 0;
    const pressed = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
      if (event.target.closest("input, textarea, select, [contenteditable], dialog") || !keysAreOn()) return;
      if (event.key === "/") {
        event.preventDefault();
        document.getElementById("search")?.focus();
      } else if (event.key === "?") showKeys();
      else if (event.key === "g") before = event.timeStamp;
      else if (event.timeStamp - before < 1500 && KEYS.has(event.key)) {
        before = 0;
        go(KEYS.get(event.key));
      }
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, [showKeys]);
}

function Keys({ onClose }) {
  const [on, setOn] = useState(keysAreOn);
  const toggle = () => {
    try {
      localStorage.setItem("mesh-keys", on ? "off" : "on");
    } catch {
      // Storage is switched off: they stay as they are.
    }
    setOn(keysAreOn());
  };
  return html`<${Dialog} title="Keys" onClose=${onClose}>
    <label class="row"><input type="checkbox" checked=${on} onChange=${toggle} /> Keys do something outside of fields and windows</label>
    <dl class="keys">
      <dt><kbd>/</kbd></dt><dd>Search applications, topics, components</dd>
      <dt><kbd>?</kbd></dt><dd>This list</dd>
      <dt><kbd>Esc</kbd></dt><dd>Close what is open</dd>
      ${PLACES.flatMap(([, places]) => places).map(([key, , , label]) => html`<dt><kbd>g</kbd> <kbd>${key}</kbd></dt><dd>${label}</dd>`)}
    </dl>
  <//>`;
}

function SignIn({ again, onDone }) {
  const [given, setGiven] = useState("");
  const enter = (event) => {
    event.preventDefault();
    setToken(tokenIn(given)); // The whole address is pasted as easily as what follows `#token=`.
    start();
    onDone();
  };
  return html`<main class="sign-in"><form onSubmit=${enter}>
    <h1>This dashboard asks for its token</h1>
    <p>The command <code>mesh dashboard</code> printed an address that has it. Open that address, or paste it here.</p>
    <${Field} label="Token or address" value=${given} onChange=${setGiven} error=${again && !given ? "That is not the token of the dashboard that runs now" : ""} autofocus required />
    <button class="button main" type="submit"><span>Open the dashboard</span></button>
  </form></main>`;
}

function Connection() {
  const { status, error } = useStatus();
  if (status === "live") return html`<span class="connection live"><span class="beat" aria-hidden="true"></span>Live</span>`;
  const text = status === "refused" ? "Refused" : "Connecting…";
  return html`<span class="connection" title=${error?.message ?? ""}><${Badge} kind="warn">${text}<//></span>`;
}

/** Says that what is shown is old, and what to do; not for a stream that begins anew at once. */
function Lost() {
  const { status, error } = useStatus();
  const [late, setLate] = useState(false);
  useEffect(() => {
    setLate(false);
    if (status === "live") return undefined;
    const timer = setTimeout(() => setLate(true), 2500);
    return () => clearTimeout(timer);
  }, [status]);
  return html`<div role="status">${late && error && html`<p class="lost"><${Icon} name="warn" /><span><b>${error.message}.</b> ${error.next} ${status === "waiting" && "What is shown may be old; trying again."}</span></p>`}</div>`;
}

function Nav({ page, open, onGo }) {
  const mesh = useMesh();
  const counts = mesh && { apps: mesh.apps.length, topics: mesh.topics.length, components: mesh.components.length };
  const here = { app: "apps", topic: "topics", component: "components", workflow: "workflows" }[page] ?? page;
  return html`<nav id="nav" class=${open ? "nav open" : "nav"} aria-label="Pages">
    ${PLACES.map(
      ([group, places]) => html`<div key=${group} class="nav-group">
        <p class="nav-head" id=${`nav-${group}`}>${group}</p>
        <ul aria-labelledby=${`nav-${group}`}>
          ${places.map(
            ([, icon, path, label]) => html`<li key=${path}><a href=${`#/${path}`} aria-current=${here === icon ? "page" : undefined} onClick=${onGo}><${Icon} name=${icon} /><span>${label}</span>${counts?.[icon] !== undefined && html`<span class="nav-count">${counts[icon]}</span>`}</a></li>`,
          )}
        </ul>
      </div>`,
    )}
  </nav>`;
}

/** The module of a page, once it is there: {Page, error}. */
function usePage(name) {
  const [loaded, setLoaded] = useState({});
  useEffect(() => {
    if (!name) return undefined;
    let wanted = true;
    import(`./pages/${name}.js`).then(
      (module) => wanted && setLoaded({ name, Page: module.default }),
      (error) => wanted && setLoaded({ name, error }),
    );
    return () => {
      wanted = false;
    };
  }, [name]);
  return loaded.name === name ? loaded : {};
}

/** A page that cannot be drawn says so; all around it goes on. */
class Guard extends Component {
  static getDerivedStateFromError(error) {
    return { error };
  }

  componentDidCatch(error) {
    console.error(error);
  }

  render({ children }, { error }) {
    return error ? html`<${Broken} title="This page cannot be shown" error=${{ message: error.message, next: "Load it again. If it stays so, please report it with what the browser's console says." }} />` : children;
  }
}

const Broken = ({ title, error }) => html`<div class="page"><h1 tabindex="-1">${title}</h1><${Problem} error=${error} retry=${() => location.reload()} /></div>`;

export function Shell() {
  const route = useRoute();
  const mesh = useMesh();
  const { Page, error } = usePage(route.page);
  const [[, themeIcon, themeText], nextTheme] = useTheme();
  const [open, setOpen] = useState(false);
  const [keys, setKeys] = useState(false);
  const [refused, setRefused] = useState(false);
  const [tried, setTried] = useState(false);
  const shown = useRef(null);
  useKeys(useRef(() => setKeys(true)).current);
  useEffect(() => onRefused(() => setRefused(true)), []);
  useEffect(() => {
    setOpen(false);
    if (!Page) return;
    // Whoever goes to a page by keyboard or by ear begins at its heading; whoever opens the first one, before everything.
    if (shown.current !== null && shown.current !== route.path) requestAnimationFrame(() => document.querySelector("main h1")?.focus({ preventScroll: true }));
    shown.current = route.path;
    document.getElementById("main")?.scrollTo(0, 0);
  }, [route.turn, Page]);
  useEffect(() => {
    if (!open) return undefined;
    const away = (event) => {
      if (event.type === "keydown" ? event.key !== "Escape" : event.target.closest("#nav, .menu")) return;
      setOpen(false);
      if (event.type === "keydown") document.querySelector(".menu").focus();
    };
    addEventListener("keydown", away);
    addEventListener("pointerdown", away);
    return () => {
      removeEventListener("keydown", away);
      removeEventListener("pointerdown", away);
    };
  }, [open]);
  if (refused) return html`<${SignIn} again=${tried} onDone=${() => { setTried(true); setRefused(false); }} />`;
  const skip = (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  };
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the page</a>
    <header class="top">
      <${Button} quiet icon="menu" label="Pages" class="menu" aria-expanded=${open ? "true" : "false"} aria-controls="nav" onClick=${() => setOpen(!open)} />
      <a class="brand" href="#/"><img src="assets/favicon.svg" alt="" width="26" height="26" /><span>brokermesh</span></a>
      ${mesh && html`<span class="space" title="Namespace and backbone">${mesh.namespace}<span class="dim"> · ${mesh.backbone.replace(/:$/, "")}</span></span>`}
      <${Search} />
      <${Connection} />
      <${Button} quiet icon=${themeIcon} label=${`Theme: ${themeText}`} onClick=${nextTheme} />
      <${Button} quiet icon="keys" label="Keys" class="keys-button" onClick=${() => setKeys(true)} />
    </header>
    <${Nav} page=${route.page} open=${open} onGo=${() => setOpen(false)} />
    <main id="main" tabindex="-1">
      <${Lost} />
      ${route.page === null
        ? html`<${Frame} title="No such page"><${Empty} title="Nothing is at this address"><a href="#/">To the map</a><//><//>`
        : error
          ? html`<${Broken} title="This page did not load" error=${error} />`
          : Page
            ? html`<${Guard} key=${route.turn}><${Page} params=${route.params} query=${route.query} /><//>`
            : html`<${Loading} what="Opening" />`}
    </main>
    ${keys && html`<${Keys} onClose=${() => setKeys(false)} />`}
    <${Notices} />
  `;
}
