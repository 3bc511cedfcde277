// One sight: its line in a list, and all that is told of it, with replay.
import { html, memo, useEffect, useRef, useState } from "./dom.js";
import { post } from "./api.js";
import { useMesh } from "./live.js";
import { links } from "./router.js";
import { health, traceAddress, traceOf } from "./traces.js";
import { Badge, Button, Code, Copy, Facts, Field, Json, Problem, bytes, confirm, ms, time } from "./ui.js";

/** How a sight went; the last attempt of an event is more than a retry. */
function outcomeOf({ outcome, details }) {
  return outcome === "retry" && details?.settlement ? details.settlement : outcome;
}

const Outcome = ({ data }) => html`<${Badge} kind=${health(outcomeOf(data))}>${outcomeOf(data)}<//>`;

/** A line that says what happened: checkout published to orders. */
export function Said({ data }) {
  const who = data.from || data.app;
  const target = data.target;
  if (data.block === "pubsub" && data.seen === "arrived") return html`<b>${target}</b> → <b>${data.app}</b>${who && who !== data.app && html` <span class="dim">from ${who}</span>`}`;
  if (data.seen === "turn" || data.seen === "step") return html`<b>${target}</b> <span class="dim">in</span> <b>${data.app}</b>`;
  if (data.seen === "hosted") return html`<b>${data.app}</b> <span class="dim">for ${who || "another node"}</span> → <b>${target}</b>`;
  return html`<b>${who || "?"}</b> → <b>${target}</b>`;
}

/** One line of a list of sights. */
export const SightLine = memo(function SightLine({ event, current, onOpen }) {
  const { data } = event;
  return html`<button type="button" class=${`sight ${health(outcomeOf(data))}`} aria-pressed=${current ? "true" : "false"} onClick=${() => onOpen(event)}>
    <time class="mono dim">${time(event.time)}</time>
    <span class="sight-what"><${Said} data=${data} /></span>
    <span class="dim sight-op">${data.block}.${data.method}</span>
    <span class="mono end">${ms(data.seconds)}</span>
    <${Outcome} data=${data} />
  </button>`;
});

/** A request, a reply, an event: its headers and body; `hidden` = they may not be seen. */
function Content({ name, content, hidden }) {
  if (!content) return null;
  const said = [content.contentType, content.size >= 0 ? bytes(content.size) : "streamed", content.cut && "cut off"].filter(Boolean).join(" · ");
  const shown = content.json !== undefined || content.text !== undefined || content.base64 !== undefined;
  return html`<section class="content">
    <h3>${name} <span class="dim">${said}</span></h3>
    ${content.headers?.length > 0 && html`<details><summary>${content.headers.length} headers</summary><${Facts} rows=${content.headers} /></details>`}
    ${content.json !== undefined
      ? html`<${Json} value=${content.json} label=${name} />`
      : content.text !== undefined
        ? html`<${Code} text=${content.text} label=${name} />`
        : content.base64 !== undefined && html`<${Code} text=${content.base64} label=${`${name}, base64`} />`}
    ${!shown && content.size !== 0 && html`<p class="dim">${hidden ? "Hidden: this node does not tell values to the dashboard." : "Switch on “Values” to see what it holds."}</p>`}
  </section>`;
}

const shownReply = (reply) => (reply && typeof reply === "object" && ("json" in reply || "text" in reply || "base64" in reply || "size" in reply) ? html`<${Content} name="Answer" content=${reply} />` : reply !== undefined && reply !== null && html`<${Json} value=${reply} label="Answer" />`);

function Differences({ result }) {
  const { differences = [], uncompared } = result;
  if (uncompared) return html`<p class="note info">Bodies could not be compared: ${uncompared}</p>`;
  if (!differences.length) return html`<p>The answer is the same as when it was seen.</p>`;
  const said = (value) => (value === undefined ? html`<span class="dim">not there</span>` : html`<code>${JSON.stringify(value)}</code>`);
  return html`<table class="small-table">
    <caption>What differs from when it was seen</caption>
    <thead><tr><th scope="col">Where</th><th scope="col">Then</th><th scope="col">Now</th></tr></thead>
    <tbody>
      ${differences.map((each) => html`<tr key=${each.path}><th scope="row"><code>${each.path}</code></th><td data-label="Then">${said(each.recorded)}</td><td data-label="Now">${said(each.replayed)}</td></tr>`)}
    </tbody>
  </table>`;
}

const canReplay = ({ data }) => (data.block === "pubsub" && (data.seen === "arrived" || data.method.startsWith("publish"))) || (["invocation", "durable"].includes(data.block) && data.seen !== "hosted");

/** Sends a sight again and shows what comes of it. */
function Replay({ event }) {
  const mesh = useMesh();
  const first = event.data.seen === "arrived" ? event.data.app : "";
  const [app, setApp] = useState(first);
  const [state, setState] = useState({});
  const request = event.data.request;
  if (!canReplay(event)) return null;
  const without = request && request.size !== 0 && request.json === undefined && request.text === undefined && request.base64 === undefined;
  const send = async () => {
    const sure = await confirm({
      title: "Send it again?",
      text: app ? `${app} gets it once more, and does again whatever it does with it.` : "It goes where it went then, to everyone who gets it there, and does again whatever it does.",
      action: "Send again",
    });
    if (!sure) return;
    setState({ busy: true });
    try {
      setState({ result: (await post("replay", { event, ...(app ? { to: app } : {}) })).json });
    } catch (error) {
      setState({ error });
    }
  };
  const ids = [...new Set([...(app ? [app] : []), ...(mesh?.apps.map((each) => each.id) ?? [])])].sort();
  return html`<section class="content" aria-label="Replay">
    <h3>Replay</h3>
    ${without
      ? html`<p class="dim">Its values are not here, so it cannot be sent again. Switch on “Values” and wait for the next one${event.data.hidden ? "; this node has to allow them" : ""}.</p>`
      : html`<div class="row bottom">
          <${Field} label="Send to" type="select" value=${app} onChange=${setApp} options=${[["", "where it went"], ...ids]} />
          <${Button} kind="main" icon="replay" disabled=${state.busy} onClick=${send}>${state.busy ? "Sending…" : "Send again"}<//>
        </div>`}
    <div aria-live="polite">
      ${state.error && html`<${Problem} error=${state.error} />`}
      ${state.result &&
      html`<div class="stack">
        <p class="row"><${Badge} kind=${(state.result.status ?? 200) < 400 && health(state.result.outcome ?? "ok") === "ok" ? "ok" : "bad"}>${[state.result.status, state.result.outcome].filter(Boolean).join(" ")}<//> <span class="dim">${state.result.title ?? ""}${state.result.seconds === undefined ? "" : `, ${ms(state.result.seconds)}`}</span></p>
        ${shownReply(state.result.reply)}
        <${Differences} result=${state.result} />
      </div>`}
    </div>
  </section>`;
}

/** All that is told of a sight. */
export function SightDetail({ event }) {
  const mesh = useMesh();
  const { data } = event;
  const trace = traceOf(event.traceparent)?.trace;
  const address = trace && traceAddress(mesh?.tracesURL, trace);
  const [component, ...topic] = data.target.split("/");
  const details = Object.entries(data.details ?? {}).filter(([name]) => !["reason", "pubsub", "topic"].includes(name));
  return html`<div class="stack">
    <p class="row"><${Outcome} data=${data} /> <span>${ms(data.seconds)}</span> <span class="dim">${time(event.time)}</span></p>
    ${data.details?.reason && html`<p class="note">${data.details.reason}</p>`}
    <${Facts} rows=${[
      ["What", html`<code>${data.block}.${data.method}</code> <span class="dim">${data.seen}</span>`],
      ["From", data.from && html`<a href=${links.app(data.from)}>${data.from}</a>`],
      ["Target", data.block === "pubsub" ? html`<a href=${links.topic(component, topic.join("/"))}>${data.target}</a>` : data.target],
      ["Seen at", html`<a href=${links.app(data.app)}>${data.app}</a> <span class="dim mono">${data.node}</span>`],
      ...details.map(([name, value]) => [name, String(value)]),
      ["Trace", trace && html`${address ? html`<a href=${address} target="_blank" rel="noreferrer">${trace}</a>` : html`<code>${trace}</code>`}`],
    ]} />
    <${Content} name=${data.block === "pubsub" ? "Event" : "Request"} content=${data.request} hidden=${data.hidden} />
    <${Content} name="Answer" content=${data.reply} hidden=${data.hidden} />
    <${Replay} key=${event.id} event=${event} />
    <p class="row dim">The whole as a CloudEvent <${Copy} text=${() => JSON.stringify(event, null, 2)} label="Copy as JSON" /></p>
  </div>`;
}

/** What stands beside a list or a picture while something of it is open; on a narrow screen it comes from below. */
export function Side({ title, kind, onClose, children }) {
  const heading = useRef(null);
  useEffect(() => {
    // Whoever opened it goes on in it, and comes back to where he was.
    const before = document.activeElement;
    heading.current.focus({ preventScroll: true });
    return () => before?.isConnected && before.focus({ preventScroll: true });
  }, []);
  useEffect(() => {
    const key = (event) => event.key === "Escape" && !document.querySelector("dialog[open]") && onClose();
    addEventListener("keydown", key);
    return () => removeEventListener("keydown", key);
  }, [onClose]);
  return html`<aside class="side" aria-label=${`Details: ${title}`}>
    <header class="side-head"><h2 ref=${heading} tabindex="-1">${kind && html`<span class=${`dot ${kind}`} aria-hidden="true"></span>`} ${title}</h2><${Button} quiet icon="close" label="Close details" onClick=${onClose} /></header>
    <div class="side-body">${children}</div>
  </aside>`;
}

/** Nodes that do not tell what is asked, or not all of it, and what would allow it. */
export function Untold({ refused }) {
  if (!refused.length) return null;
  const who = refused.length === 1 ? `${refused[0].app} does` : `${refused.length} nodes do`;
  return html`<details class="note"><summary>${who} not tell everything</summary>${refused.map((each) => html`<p key=${each.node}><b>${each.app}</b>: ${each.reason}</p>`)}</details>`;
}
