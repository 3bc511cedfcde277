// Small parts: buttons, badges, figures, tabs, and what stands where there is nothing yet.
import { Fragment, html, memo, newId, useEffect, useRef, useState } from "../dom.js";
import { ago, date, moment } from "./format.js";

const ICONS = {
  map: "M4 6a2 2 0 1 0 4 0 2 2 0 1 0-4 0M16 6a2 2 0 1 0 4 0 2 2 0 1 0-4 0M10 18a2 2 0 1 0 4 0 2 2 0 1 0-4 0M8 6h8M7 8l4 8M17 8l-4 8",
  apps: "M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z",
  topics: "M4 7h11M4 12h16M4 17h11M16 4l4 3-4 3M16 14l4 3-4 3",
  components: "M12 3l8 4.500v9L12 21l-8-4.500v-9zM4 7.500l8 4.500 8-4.500M12 12v9",
  actors: "M12 4a3.500 3.500 0 1 0 0 7 3.500 3.500 0 1 0 0-7M5 20c0-4 3-6 7-6s7 2 7 6",
  jobs: "M12 4a8 8 0 1 0 0 16 8 8 0 1 0 0-16M12 8v4l3 2",
  workflows: "M4 4h6v5H4zM14 15h6v5h-6zM7 9v4c0 3 2 4.500 7 4.500M14 4h6v5h-6zM10 6.500h4",
  traces: "M4 6h9M7 11h9M10 16h10M4 20h4",
  resources: "M6 3h8l4 4v14H6zM14 3v4h4M9 12h6M9 16h6",
  events: "M3 12h4l2.500-7 4 14 2.500-7H21",
  try: "M5 4l14 8-14 8z",
  search: "M10.500 4a6.500 6.500 0 1 0 0 13 6.500 6.500 0 1 0 0-13M15.500 15.500 20 20",
  menu: "M4 7h16M4 12h16M4 17h16",
  close: "M6 6l12 12M18 6 6 18",
  copy: "M9 9h11v11H9zM15 9V4H4v11h5",
  ok: "M5 12.500l4.500 4.500L19 7",
  bad: "M12 4 2.500 20h19zM12 10v5M12 17.500v.500",
  warn: "M12 4 2.500 20h19zM12 10v5M12 17.500v.500",
  info: "M12 4a8 8 0 1 0 0 16 8 8 0 1 0 0-16M12 11v5M12 8v.500",
  pause: "M8 5v14M16 5v14",
  play: "M7 4l12 8-12 8z",
  replay: "M4 12a8 8 0 1 0 3-6.200M4 4v4.500h4.500",
  refresh: "M20 12a8 8 0 1 1-3-6.200M20 4v4.500h-4.500",
  trash: "M5 7h14M10 4h4M7 7l1 13h8l1-13",
  send: "M4 12 20 4l-5 16-3-7z",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 1 0 0-8M12 2v2.500M12 19.500V22M2 12h2.500M19.500 12H22M5 5l1.700 1.700M17.300 17.300 19 19M19 5l-1.700 1.700M6.700 17.300 5 19",
  moon: "M20 14.500A8.500 8.500 0 0 1 9.500 4a8.500 8.500 0 1 0 10.500 10.500z",
  auto: "M12 4a8 8 0 1 0 0 16 8 8 0 1 0 0-16M12 4v16M12 8h6M12 12h8M12 16h6",
  keys: "M3 7h18v10H3zM6.500 10.500h.010M10 10.500h.010M14 10.500h.010M17.500 10.500h.010M8 14h8",
  link: "M10 14a4 4 0 0 0 6 0l3-3a4 4 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6 0l-3 3a4 4 0 0 0 6 6l1-1",
  out: "M14 4h6v6M20 4l-9 9M18 14v6H4V6h6",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
  down: "M5 9l7 7 7-7",
  up: "M5 15l7-7 7 7",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
};

export const Icon = memo(function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${ICONS[name] ?? ICONS.info} /></svg>`;
});

/** kind: "main", "danger" or none. Without children, `label` is what it is called; `href` makes it a link. */
export function Button({ kind = "", quiet, icon, label, href, children, class: more = "", ...rest }) {
  const names = `button ${kind} ${quiet ? "quiet" : ""} ${children ? "" : "only-icon"} ${more}`;
  const inside = html`${icon && html`<${Icon} name=${icon} />`}${children && html`<span>${children}</span>`}`;
  const common = { class: names, "aria-label": label, title: children ? undefined : label, ...rest };
  return href === undefined ? html`<button type="button" ...${common}>${inside}</button>` : html`<a href=${href} ...${common}>${inside}</a>`;
}

const MARKS = { ok: "✓", bad: "✕", warn: "!", info: "i", mute: "·" };

/** A state: kind "ok", "bad", "warn", "info" or "mute", told by a sign besides its colour. */
export const Badge = memo(function Badge({ kind = "mute", children }) {
  return html`<span class=${`badge ${kind}`}><span class="mark" aria-hidden="true">${MARKS[kind]}</span>${children}</span>`;
});

/** What a thing is: "app", "topic", "component", "actor", "workflow"; a dot of its kind before its name. */
export const Thing = memo(function Thing({ kind, name, href, note }) {
  const inside = html`<span class=${`dot ${kind}`} aria-hidden="true"></span><span class="thing-name">${name}</span>`;
  return html`<span class="thing">${href ? html`<a href=${href}>${inside}</a>` : inside}${note && html`<span class="dim"> ${note}</span>`}</span>`;
});

/** A page: its heading, a line below it, buttons beside it. `crumbs` = [[text, address]…] before it. */
export function Page({ title, kind, lead, actions, crumbs, children, wide }) {
  const heading = useRef(null);
  useEffect(() => {
    document.title = `${title} · brokermesh`;
  }, [title]);
  return html`<div class=${wide ? "page full" : "page"}>
    <header class="page-head">
      <div class="page-title">
        ${crumbs && html`<nav class="crumbs" aria-label="Where you are">${crumbs.map(([text, address]) => html`<a href=${address}>${text}</a><span aria-hidden="true">/</span>`)}</nav>`}
        <h1 ref=${heading} tabindex="-1">${kind && html`<span class=${`dot ${kind}`} aria-hidden="true"></span>`}${title}</h1>
        ${lead && html`<p class="lead">${lead}</p>`}
      </div>
      ${actions && html`<div class="actions">${actions}</div>`}
    </header>
    ${children}
  </div>`;
}

/** A part of a page with a heading. */
export function Section({ title, note, actions, children, flush }) {
  const id = useRef(newId("section")).current;
  return html`<section class=${flush ? "card flush" : "card"} aria-labelledby=${id}>
    <header class="card-head"><h2 id=${id}>${title}</h2>${note && html`<span class="dim">${note}</span>`}${actions && html`<div class="actions">${actions}</div>`}</header>
    ${children}
  </section>`;
}

/** Nothing here: says so, and how there would be. `command` can be copied. */
export function Empty({ title, children, command, icon = "info" }) {
  return html`<div class="empty">
    <${Icon} name=${icon} />
    <p class="empty-title">${title}</p>
    ${children && html`<div class="empty-text">${children}</div>`}
    ${command && html`<div class="command"><code>${command}</code><${Copy} text=${command} /></div>`}
  </div>`;
}

/** What went wrong and what to do next; `error` as of api.js, `retry` a function. */
export function Problem({ error, retry, what }) {
  return html`<div class="problem" role="alert">
    <${Icon} name="bad" />
    <div>
      <p class="problem-title">${what ? `${what}: ` : ""}${error.message}</p>
      ${error.next && html`<p>${error.next}</p>`}
      ${error.code && html`<p class="dim"><code>${error.code}</code></p>`}
    </div>
    ${retry && html`<${Button} icon="refresh" onClick=${retry}>Try again<//>`}
  </div>`;
}

export const Loading = ({ what = "Asking the mesh" }) => html`<p class="loading" role="status"><span class="spin" aria-hidden="true"></span>${what}…</p>`;

/** Shows what `useGet` answered: its error, that it is on its way, or `children(data)`. */
export function Asked({ of, what, children }) {
  if (of.data !== undefined) return html`${of.error && html`<${Problem} error=${of.error} retry=${of.reload} what=${what} />`}${children(of.data)}`;
  if (of.error) return html`<${Problem} error=${of.error} retry=${of.reload} what=${what} />`;
  return html`<${Loading} what=${what} />`;
}

const COPIED = { "": "copy", Copied: "ok", "The browser did not let it be copied": "bad" };

export function Copy({ text, label = "Copy" }) {
  const [said, setSaid] = useState("");
  const copy = async (event) => {
    const given = typeof text === "function" ? text() : text;
    try {
      // Browsers give a clipboard to pages of this machine or of HTTPS; of others the old way is all there is.
      if (navigator.clipboard) await navigator.clipboard.writeText(given);
      else if (!copyBySelecting(given, event.currentTarget)) throw new Error("not allowed");
      setSaid("Copied");
    } catch {
      setSaid("The browser did not let it be copied");
    }
    setTimeout(() => setSaid(""), 3000);
  };
  return html`<${Button} quiet icon=${COPIED[said]} label=${said || label} onClick=${copy} /><span class="hidden" role="status">${said}</span>`;
}

/** Copy from a field that is beside `button`, as a dialog leaves nothing outside it to be selected. */
function copyBySelecting(text, button) {
  const field = document.createElement("textarea");
  field.className = "hidden";
  field.value = text;
  button.after(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  button.focus();
  return done;
}

/** The time since, kept up to date; the whole date as its title. */
export function Ago({ at }) {
  const [, draw] = useState(0);
  const value = moment(at);
  const young = value !== null && Math.abs(Date.now() - value) < 120_000;
  useEffect(() => {
    if (value === null) return undefined;
    const timer = setInterval(() => document.hidden || draw((turn) => turn + 1), young ? 1000 : 20_000);
    return () => clearInterval(timer);
  }, [value, young]);
  if (value === null) return html`<span>–</span>`;
  return html`<time datetime=${new Date(value).toISOString()} title=${date(at)}>${ago(at)}</time>`;
}

/** A line of the last values; `marks` = the same of what failed, drawn over it. */
export const Spark = memo(function Spark({ values, marks, label, width = 120, height = 28 }) {
  const top = Math.max(1, ...values);
  const step = values.length > 1 ? width / (values.length - 1) : width;
  const point = (value, at) => `${(at * step).toFixed(1)},${(height - 2 - (value / top) * (height - 4)).toFixed(1)}`;
  const line = values.map(point).join(" ");
  return html`<svg class="spark" viewBox=${`0 0 ${width} ${height}`} preserveAspectRatio="none" role=${label ? "img" : undefined} aria-label=${label} aria-hidden=${label ? undefined : "true"}>
    <polygon class="spark-area" points=${`0,${height} ${line} ${width},${height}`} />
    <polyline class="spark-line" points=${line} />
    ${marks && marks.some(Boolean) && html`<polyline class="spark-bad" points=${marks.map(point).join(" ")} />`}
  </svg>`;
});

/** Figures side by side: [{label, value, note, kind, spark, marks}…]. */
export function Figures({ of }) {
  return html`<dl class="figures">
    ${of.filter(Boolean).map(
      (each) => html`<div key=${each.label} class=${`figure ${each.kind ?? ""}`}>
        <dt>${each.label}</dt>
        <dd><span class="figure-value">${each.value}</span>${each.note && html`<span class="dim"> ${each.note}</span>`}${each.spark && html`<${Spark} values=${each.spark} marks=${each.marks} />`}</dd>
      </div>`,
    )}
  </dl>`;
}

/** Names and values: rows = [[name, value]…]; empty values are left out. */
export function Facts({ rows }) {
  const said = rows.filter(([, value]) => value !== undefined && value !== null && value !== "" && value !== false);
  return html`<dl class="facts">${said.map(([name, value]) => html`<${Fragment} key=${name}><dt>${name}</dt><dd>${value}</dd><//>`)}</dl>`;
}

/** Tabs: [{id, label, count}…]; `at` is the shown one's id. Arrow keys go from one to the next. */
export function Tabs({ label, tabs, at, onChange, children }) {
  const base = useRef(newId("tabs")).current;
  const key = (event) => {
    const now = tabs.findIndex((each) => each.id === at);
    const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const there = tabs[(next + tabs.length) % tabs.length];
    onChange(there.id);
    document.getElementById(`${base}-${there.id}`)?.focus();
  };
  return html`<div class="tabs">
    <div class="tab-row" role="tablist" aria-label=${label} onKeyDown=${key}>
      ${tabs.map(
        (each) => html`<button key=${each.id} id=${`${base}-${each.id}`} type="button" role="tab" class="tab" aria-selected=${each.id === at ? "true" : "false"} aria-controls=${`${base}-panel`} tabindex=${each.id === at ? 0 : -1} onClick=${() => onChange(each.id)}>
          ${each.label}${each.count !== undefined && html` <span class="tab-count">${each.count}</span>`}
        </button>`,
      )}
    </div>
    <div id=${`${base}-panel`} class="tab-panel" role="tabpanel" aria-labelledby=${`${base}-${at}`} tabindex="0">${children}</div>
  </div>`;
}

/** A label, and the field it names: type "text", "number", "select" (options = [value | [value, text]…]), "area", "check". */
export function Field({ label, type = "text", value, onChange, options, hint, error, class: more = "", ...rest }) {
  const id = useRef(newId("field")).current;
  const said = hint || error ? `${id}-hint` : undefined;
  const set = (event) => onChange(type === "check" ? event.target.checked : event.target.value);
  const common = { id, "aria-describedby": said, "aria-invalid": error ? "true" : undefined, ...rest };
  let field;
  if (type === "select") {
    field = html`<select ...${common} value=${value} onChange=${set}>
      ${options.map((each) => (Array.isArray(each) ? each : [each, each])).map(([key, text]) => html`<option key=${key} value=${key} selected=${key === value}>${text}</option>`)}
    </select>`;
  } else if (type === "area") field = html`<textarea ...${common} value=${value} spellcheck="false" onInput=${set}></textarea>`;
  else if (type === "check") {
    return html`<div class=${`field check ${more}`}><input type="checkbox" ...${common} checked=${value} onChange=${set} /><label for=${id}>${label}</label>${hint && html`<span id=${said} class="hint">${hint}</span>`}</div>`;
  } else field = html`<input type=${type} ...${common} value=${value} spellcheck="false" autocomplete="off" onInput=${set} />`;
  return html`<div class=${`field ${more}`}><label for=${id}>${label}</label>${field}${said && html`<span id=${said} class=${error ? "hint bad" : "hint"}>${error || hint}</span>`}</div>`;
}
