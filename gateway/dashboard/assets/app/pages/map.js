// The mesh as a picture: who sends what to whom, how much of it, and how it goes; and the same as a table.
import { html, memo, useCallback, useEffect, useMemo, useReducer, useRef, useState } from "../dom.js";
import { useMesh, useRates, useSights, useStatus } from "../live.js";
import { KINDS, arrowOf, byArrow, graph, nodeOf, part, verb } from "../map/graph.js";
import { HEIGHT, WIDTH, layout } from "../map/layout.js";
import { Flows, NOTHING } from "../map/flows.js";
import { links, setQuery } from "../router.js";
import { Side, SightDetail, SightLine, Untold } from "../sights.js";
import { Badge, Button, Empty, Figures, Icon, Loading, Page as Frame, Section, Thing, count, many, ms, percent, perSecond } from "../ui.js";

const MOST = 60; // Nodes that a picture can hold.
const PULSES = 36; // Moving dots in all.

function heldStill() {
  try {
    return localStorage.getItem("mesh-motion") === "off";
  } catch {
    return false; // Storage is switched off: nothing was chosen.
  }
}

function useMotion() {
  const query = useRef(matchMedia("(prefers-reduced-motion: reduce)")).current;
  const [still, setStill] = useState(() => query.matches || heldStill());
  useEffect(() => {
    const changed = () => setStill(query.matches || heldStill());
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, []);
  const toggle = () => {
    try {
      localStorage.setItem("mesh-motion", still ? "on" : "off");
    } catch {
      // Storage is switched off: it holds as long as the page.
    }
    setStill(!still);
  };
  return [!still, toggle];
}

const thickness = (rate) => (rate ? Math.min(5, 1.4 + Math.log10(1 + rate) * 1.3) : 1.1);

const Arrow = memo(function Arrow({ id, path, width, state, dead, dots, open, onOpen }) {
  const seconds = 2.4;
  return html`<g class=${`arrow ${state} ${dead ? "dead" : ""} ${open ? "open" : ""}`}>
    <path class="arrow-hit" d=${path} onClick=${() => onOpen(id)} />
    <path class="arrow-line" d=${path} stroke-width=${width} marker-end=${`url(#head-${open ? "open" : state})`} />
    ${Array.from({ length: dots }, (_, at) => html`<circle key=${at} class="pulse" r=${state === "bad" ? 4 : 3.2}><animateMotion dur=${`${seconds}s`} begin=${`${(-at * seconds) / dots}s`} repeatCount="indefinite" path=${path} /></circle>`)}
  </g>`;
});

const Label = memo(function Label({ id, x, y, text, failing, said, open, onOpen }) {
  return html`<button type="button" class=${`arrow-label ${failing ? "bad" : ""}`} style=${{ left: `${x}px`, top: `${y}px` }} aria-pressed=${open ? "true" : "false"} onClick=${() => onOpen(id)}>
    <span class="hidden">${said} </span>${failing && html`<b><span aria-hidden="true">✕</span> ${failing}</b> `}${text}
  </button>`;
});

const Node = memo(function Node({ id, kind, label, name, note, x, y, state, open, faint, onOpen }) {
  return html`<button type="button" class=${`node ${kind} ${state} ${faint ? "faint" : ""}`} style=${{ left: `${x}px`, top: `${y}px`, width: `${WIDTH}px`, height: `${HEIGHT}px` }} title=${name} aria-pressed=${open ? "true" : "false"} onClick=${() => onOpen(id)}>
    <span class=${`dot ${kind}`} aria-hidden="true"></span>
    <span class="node-text"><span class="node-name"><span class="hidden">${KINDS[kind]} </span>${label}</span>${note && html`<span class="node-note">${note}</span>`}</span>
    ${state && html`<span class="node-mark"><span aria-hidden="true">✕</span><span class="hidden">, failing</span></span>`}
  </button>`;
});

/** The picture itself. */
function Picture({ shown, figures, troubled, at, onOpen, motion }) {
  const frame = useRef(null);
  const [room, setRoom] = useState(0);
  const [zoom, setZoom] = useState(0); // 0 = as large as fits.
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => setRoom(entry.contentRect.width));
    watch.observe(frame.current);
    return () => watch.disconnect();
  }, []);
  const across = useMemo(() => layout(shown), [shown]);
  const down = useMemo(() => (room && across.width > room / 0.82 ? layout(shown, true) : null), [shown, room && across.width > room / 0.82]);
  // A deep flow is drawn from top to bottom, if it can be read better that way.
  const placed = down && room / down.width > room / across.width ? down : across;
  const fit = room ? Math.min(1.1, Math.max(room < 600 ? 0.58 : 0.68, room / placed.width)) : 1;
  const scale = zoom || fit;
  useEffect(() => {
    // What is wider than its place begins with its beginning: at the left, or of a flow from top to bottom in the middle.
    frame.current.scrollLeft = placed === down ? (frame.current.scrollWidth - frame.current.clientWidth) / 2 : 0;
  }, [placed, room]);
  let left = PULSES;
  const flows = [...shown.arrows.values()].map((each) => ({ ...each, ...placed.arrows.get(each.id), now: figures.get(each.id) ?? NOTHING }));
  const near = useMemo(() => {
    if (!at || at.includes("\n")) return null;
    const ids = new Set([at]);
    for (const { from, target } of shown.arrows.values()) {
      if (from === at) ids.add(target);
      if (target === at) ids.add(from);
    }
    return ids;
  }, [shown, at]);
  // Their order in the page stays as it is, so that nobody who goes through them by keyboard loses his place.
  const dotsOf = new Map();
  for (const { id, now } of [...flows].sort((one, other) => other.now.rate - one.now.rate)) {
    const dots = motion && now.rate ? Math.min(left, Math.max(1, Math.min(4, Math.round(Math.log2(1 + now.rate))))) : 0;
    left -= dots;
    dotsOf.set(id, dots);
  }
  return html`<div class="map">
    <div class="map-frame" ref=${frame} tabindex="0" role="region" aria-label="Map of the mesh. The table below it says the same.">
      <div class="map-size" style=${{ width: `${placed.width * scale}px`, height: `${placed.height * scale}px` }}>
        <div class="map-canvas" style=${{ width: `${placed.width}px`, height: `${placed.height}px`, transform: `scale(${scale})` }}>
          <svg class="arrows" width=${placed.width} height=${placed.height} aria-hidden="true">
            <defs>
              ${["idle", "fine", "bad", "open"].map((state) => html`<marker id=${`head-${state}`} class=${`head ${state}`} viewBox="0 0 10 10" refX="8" refY="5" markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 10 5 0 10z" /></marker>`)}
            </defs>
            ${flows.map(({ id, path, now, deadLetters }) => path && html`<${Arrow} key=${id} id=${id} path=${path} width=${thickness(now.rate).toFixed(1)} state=${now.errors ? "bad" : now.rate ? "fine" : "idle"} dead=${deadLetters} dots=${dotsOf.get(id)} open=${id === at} onOpen=${onOpen} />`)}
          </svg>
          ${[...shown.nodes.values()].map((each) => html`<${Node} key=${each.id} ...${each} ...${placed.nodes.get(each.id)} state=${troubled.has(each.id) ? "bad" : ""} open=${each.id === at} faint=${near !== null && !near.has(each.id)} onOpen=${onOpen} />`)}
          ${flows.map(({ id, from, target, now, label, verb: does }) => now.rate > 0 && label && html`<${Label} key=${id} id=${id} x=${label.x} y=${label.y} text=${now.p95 === null ? perSecond(now.rate) : `${perSecond(now.rate)} · ${ms(now.p95)}`} failing=${now.errors ? percent(now.failing) : ""} said=${`${nodeOf(from).name} ${does} ${nodeOf(target).name}, ${now.errors ? "failing" : "rate and p95"}:`} open=${id === at} onOpen=${onOpen} />`)}
        </div>
      </div>
    </div>
    <div class="map-zoom" role="group" aria-label="Size of the map">
      <${Button} icon="minus" label="Smaller" onClick=${() => setZoom(Math.max(0.3, scale / 1.2))} />
      <${Button} icon="plus" label="Larger" onClick=${() => setZoom(Math.min(2, scale * 1.2))} />
      <${Button} icon="fit" label="Fit to the page" onClick=${() => setZoom(0)} />
    </div>
  </div>`;
}

/** The last sights of an arrow or a node, and the one that is open. */
function LastSights({ filter, fits }) {
  const { sights, state, error, refused } = useSights(filter, { keep: 200 });
  const [open, setOpen] = useState(null);
  const some = sights.filter(({ data }) => fits(data)).slice(0, 12);
  if (open) return html`<div class="stack"><${Button} class="small start" icon="left" onClick=${() => setOpen(null)}>Back to the last ones<//><${SightDetail} event=${open} /></div>`;
  return html`<div class="sights narrow" aria-busy=${state === "live" ? "false" : "true"}>
    ${some.map((each) => html`<${SightLine} key=${each.id} event=${each} onOpen=${setOpen} />`)}
    ${!some.length && html`<p class="dim">${error ? error.message : "Waiting for the next one…"}</p>`}
    <${Untold} refused=${refused} />
  </div>`;
}

/** What to watch to see what passes an arrow, and perhaps more. */
function filterOf(from, target) {
  const topic = [from, target].find((each) => each.kind === "topic");
  if (topic) return { topic: topic.name, block: "pubsub", values: "true" };
  const block = { app: "invocation", actor: "actors", workflow: "workflows", job: "jobs" }[from.kind === "app" ? target.kind : from.kind];
  return { app: from.kind === "app" ? from.name : target.name, block, values: "true" };
}

function ArrowDetails({ id, arrow, rates, edges, onClose }) {
  const [from, target] = id.split("\n").map(nodeOf);
  const now = rates.figures(edges);
  const topic = [from, target].find((each) => each.kind === "topic");
  const component = [from, target].find((each) => each.kind === "component");
  const filter = filterOf(from, target);
  const fits = useCallback((data) => arrowOf(data) === id, [id]);
  return html`<${Side} title=${`${from.label} → ${target.label}`} onClose=${onClose}>
    <p><${Thing} kind=${from.kind} name=${from.label} href=${from.href} /> <span class="dim">${arrow?.verb ?? verb(from.id, target.id)}</span> <${Thing} kind=${target.kind} name=${target.label} href=${target.href} /></p>
    <${Figures} of=${[
      { label: "Rate", value: perSecond(now.rate), spark: rates.series(edges), marks: rates.series(edges, "errors") },
      { label: "p95", value: ms(now.p95), note: `median ${ms(now.p50)}` },
      { label: "Failing", value: percent(now.failing), kind: now.errors ? "bad" : "", note: now.errors ? `${count(now.errors)} in 10 s` : "" },
    ]} />
    <h3>Last ones</h3>
    <${LastSights} filter=${filter} fits=${fits} />
    <p class="row">
      <${Button} icon="events" href=${links.events(filter)}>Watch all of them<//>
      ${topic && html`<${Button} icon="topics" href=${topic.href}>Topic<//>`}
      ${component && html`<${Button} icon="components" href=${component.href}>Component<//>`}
    </p>
  <//>`;
}

function NodeDetails({ node, rates, groups, arrows, problems, onClose, onOpen }) {
  const mine = [...arrows.values()].filter(({ from, target }) => from === node.id || target === node.id);
  const edges = mine.flatMap(({ id }) => groups.get(id) ?? []);
  const now = rates.figures(edges);
  const filter = node.kind === "topic" ? { topic: node.name, values: "true" } : node.kind === "app" ? { app: node.name, values: "true" } : null;
  const fits = useCallback(() => true, []);
  return html`<${Side} title=${node.label} kind=${node.kind} onClose=${onClose}>
    <p class="row"><span class="dim">${KINDS[node.kind]}${node.note && `, ${node.note}`}</span> <${Button} class="small" href=${node.href} icon="right">Open its page<//></p>
    ${problems.map((each) => html`<p class="note"><${Badge} kind="bad">${each.state}<//> ${each.target} at ${each.node}</p>`)}
    <${Figures} of=${[
      { label: "Rate", value: perSecond(now.rate), spark: rates.series(edges), marks: rates.series(edges, "errors") },
      { label: "Failing", value: percent(now.failing), kind: now.errors ? "bad" : "" },
    ]} />
    <h3>Arrows</h3>
    <ul class="arrow-list">
      ${mine.map(({ id, from, target, verb: does }) => {
        const flow = groups.has(id) ? rates.figures(groups.get(id)) : NOTHING;
        const [first, last] = [from, target].map(nodeOf);
        return html`<li key=${id}><button type="button" class="as-link" onClick=${() => onOpen(id)}><span>${first.id === node.id ? "" : first.label} ${does} ${last.id === node.id ? "" : last.label}</span><span class="dim mono">${perSecond(flow.rate)}</span>${flow.errors > 0 && html`<${Badge} kind="bad">${percent(flow.failing)}<//>`}</button></li>`;
      })}
    </ul>
    ${filter && html`<h3>Last ones</h3><${LastSights} filter=${filter} fits=${fits} />`}
  <//>`;
}

// What was seen since the dashboard was opened stays on the map, unless that is too much: then what was seen long ago goes.
const everSeen = new Set();
const MOST_SEEN = 5000; // Arrows.
let newSeen = 0;

function see(groups) {
  for (const id of groups.keys()) {
    if (everSeen.has(id)) continue;
    everSeen.add(id);
    newSeen += 1;
  }
  for (const id of everSeen) {
    if (everSeen.size <= MOST_SEEN) break;
    if (!groups.has(id)) everSeen.delete(id);
  }
}

/** What the graph is drawn from changes seldom; the same object as long as it is the same. */
function useGraph(mesh, groups) {
  const kept = useRef({});
  if (!mesh) return null;
  see(groups);
  const seen = newSeen;
  if (kept.current.mesh !== mesh || kept.current.seen !== seen) {
    const made = graph(mesh, everSeen);
    const form = JSON.stringify([[...made.nodes.values()], [...made.arrows.keys()]]);
    kept.current = form === kept.current.form ? { ...kept.current, mesh, seen } : { mesh, seen, form, whole: made };
  }
  return kept.current.whole;
}

export default function Page({ query }) {
  const mesh = useMesh();
  const { tick, rates } = useRates();
  const { refused } = useStatus();
  const [sought, setSought] = useState(query.get("q") ?? "");
  const [at, setAt] = useState(query.get("at") ?? "");
  const [motion, toggleMotion] = useMotion();
  const [turn, again] = useReducer((turns) => turns + 1, 0);
  const groups = useMemo(() => byArrow(rates), [tick]);
  const whole = useGraph(mesh, groups);
  const large = whole !== null && whole.nodes.size > MOST;
  // The busiest of many are chosen when the page opens and when somebody asks, so that the picture holds still.
  const began = tick >= 2;
  const shown = useMemo(() => (whole ? part(whole, sought, (id) => (groups.has(id) ? rates.figures(groups.get(id)).rate : 0), MOST) : null), [whole, sought, turn, large && began]);
  const figures = useMemo(() => {
    const found = new Map();
    if (shown) for (const id of shown.arrows.keys()) if (groups.has(id)) found.set(id, rates.figures(groups.get(id)));
    return found;
  }, [shown, groups]);
  const open = useCallback((id) => setAt((was) => (was === id ? "" : id)), []);
  const close = useCallback(() => setAt(""), []);
  useEffect(() => setQuery({ q: sought, at }), [sought, at]);
  const all = useMemo(() => ({ events: rates.figures(rates.where((edge) => edge.block === "pubsub" && edge.seen === "arrived")), calls: rates.figures(rates.where((edge) => edge.block !== "pubsub" && edge.seen === "asked")), failing: rates.series(rates.where((edge) => edge.seen !== "hosted"), "errors"), passed: rates.where((edge) => edge.seen !== "hosted") }), [tick]);
  if (!mesh || !whole) return html`<${Frame} title="Map"><${Loading} /><//>`;
  if (!mesh.apps.length && !whole.nodes.size) {
    return html`<${Frame} title="Map" lead=${`Namespace ${mesh.namespace} on ${mesh.backbone}`}><${Section} title="Nothing here yet">
      <${Empty} icon="apps" title="No applications yet. Start one:" command="mesh run --app-id hello --app-port 3000 -- python3 app.py">As soon as one starts, it appears here; no need to reload the page.<//>
    <//><//>`;
  }
  const troubled = new Set(mesh.problems.map((each) => `app:${each.app}`));
  const failing = [...groups].map(([id, edges]) => [id, rates.figures(edges)]).filter(([, now]) => now.errors);
  const total = rates.figures(all.passed);
  const [first, last] = at.split("\n");
  return html`<${Frame} title="Map" wide lead=${`${many(mesh.apps.length, "application")}, ${many(mesh.topics.length, "topic")}, ${many(mesh.components.length, "component")} in ${mesh.namespace}`}>
    <${Figures} of=${[
      { label: "Events delivered", value: perSecond(all.events.rate), note: `p95 ${ms(all.events.p95)}`, spark: rates.series(rates.where((edge) => edge.block === "pubsub" && edge.seen === "arrived")) },
      { label: "Calls and operations", value: perSecond(all.calls.rate), note: `p95 ${ms(all.calls.p95)}`, spark: rates.series(rates.where((edge) => edge.block !== "pubsub" && edge.seen === "asked")) },
      { label: "Failing", value: percent(total.failing), kind: total.errors ? "bad" : "", note: total.errors ? `${count(total.errors)} in 10 s` : "nothing fails", spark: all.failing, marks: all.failing },
    ]} />
    <div class="hidden" aria-live="polite">${failing.length ? `Failing: ${failing.map(([id]) => id.split("\n").map((each) => nodeOf(each).label).join(" to ")).slice(0, 5).join(", ")}` : "Nothing fails"}</div>
    ${(failing.length > 0 || mesh.problems.length > 0) && html`<div class="alerts">
      ${failing.slice(0, 6).map(([id, now]) => html`<button key=${id} type="button" class="alert" onClick=${() => setAt(id)}><${Icon} name="bad" /><b>${id.split("\n").map((each) => nodeOf(each).label).join(" → ")}</b> ${percent(now.failing)} fail</button>`)}
      ${failing.length > 6 && html`<span class="dim">and ${failing.length - 6} more, in the table below</span>`}
      ${mesh.problems.slice(0, 6).map((each) => html`<a key=${`${each.node} ${each.target}`} class="alert" href=${links.app(each.app)}><${Icon} name="bad" /><b>${each.app}</b> ${each.target}: ${each.state}</a>`)}
      ${mesh.problems.length > 6 && html`<span class="dim">and ${mesh.problems.length - 6} more, on the pages of their applications</span>`}
    </div>`}
    <${Untold} refused=${refused} />
    <div class=${at ? "with-side open" : "with-side"}>
      <section class="card flush map-card" aria-label="Picture">
        <div class="table-tools map-tools">
          <div class="search-field"><${Icon} name="search" /><input type="search" aria-label="Show what is called, and its neighbours" placeholder="Show only…" value=${sought} onInput=${(event) => setSought(event.target.value)} spellcheck="false" autocomplete="off" /></div>
          ${large && !sought && html`<span class="dim">The ${shown.nodes.size} busiest of ${count(whole.nodes.size)}</span><${Button} class="small" icon="refresh" onClick=${again}>Choose anew<//>`}
          <span class="legend" aria-hidden="true">${["app", "topic", "component", "actor", "workflow"].map((kind) => html`<span><span class=${`dot ${kind}`}></span> ${KINDS[kind]}</span>`)}<span class="bad-key">✕ failing</span></span>
          <${Button} class="small" icon=${motion ? "pause" : "play"} onClick=${toggleMotion}>${motion ? "Hold still" : "Move"}<//>
        </div>
        ${shown.nodes.size ? html`<${Picture} shown=${shown} figures=${figures} troubled=${troubled} at=${at} onOpen=${open} motion=${motion} />` : html`<${Empty} icon="search" title=${`Nothing is called “${sought}”`}>Search for a part of the name of an application, a topic or a component.<//>`}
      </section>
      ${at && (last ? html`<${ArrowDetails} key=${at} id=${at} arrow=${whole.arrows.get(at)} rates=${rates} edges=${groups.get(at) ?? []} onClose=${close} />` : html`<${NodeDetails} key=${at} node=${whole.nodes.get(first) ?? nodeOf(first)} rates=${rates} groups=${groups} arrows=${whole.arrows} problems=${mesh.problems.filter((each) => `app:${each.app}` === at)} onClose=${close} onOpen=${open} />`)}
    </div>
    <${Section} title="Everything that flows" note="the map as a table" flush><${Flows} whole=${whole} onOpen=${open} at=${at} /><//>
  <//>`;
}
