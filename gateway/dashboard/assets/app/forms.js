// Forms that publish and call, with what came of it.
import { html, useEffect, useState } from "./dom.js";
import { ofApp, send } from "./api.js";
import { useMesh } from "./live.js";
import { links } from "./router.js";
import { Badge, Code, Facts, Field, Json, Problem, ms } from "./ui.js";

const VERBS = ["POST", "GET", "PUT", "PATCH", "DELETE", "HEAD"];

/** What a form was filled with, kept as long as the browser's tab; `first` overrides it. */
function useDraft(name, standard, first = {}) {
  const [draft, setDraft] = useState(() => {
    let kept = {};
    try {
      kept = JSON.parse(sessionStorage.getItem(`mesh-draft-${name}`) ?? "{}");
    } catch {
      // None is kept, or it is no JSON: the standard one it is.
    }
    return { ...standard, ...kept, ...first };
  });
  useEffect(() => {
    try {
      sessionStorage.setItem(`mesh-draft-${name}`, JSON.stringify(draft));
    } catch {
      // Storage is switched off or full: it lasts as long as the page.
    }
  }, [name, draft]);
  return [draft, (field) => (value) => setDraft((was) => ({ ...was, [field]: value }))];
}

/** What is wrong with a text as JSON; "" = nothing. */
function jsonProblem(text) {
  if (!text.trim()) return "";
  try {
    JSON.parse(text);
    return "";
  } catch (error) {
    return `No JSON: ${error.message}`;
  }
}

/** Read lines of `name: value`; raises for others. */
function pairs(text, what) {
  return text
    .split("\n")
    .filter((line) => line.trim())
    .map((line) => {
      const at = line.search(/[:=]/);
      if (at < 1) throw new Error(`${what}: “${line}” is not name: value`);
      return [line.slice(0, at).trim(), line.slice(at + 1).trim()];
    });
}

/** A path with its query: {pathname, search: {name: [value…]}}. */
function pathOf(text) {
  const [, pathname, rest] = /^\/?([^?]*)\??(.*)$/s.exec(text.trim());
  const search = Object.groupBy(new URLSearchParams(rest), ([name]) => name);
  return { pathname, search: Object.fromEntries(Object.entries(search).map(([name, some]) => [name, some.map(([, value]) => value)])) };
}

function useSending() {
  const [state, setState] = useState({});
  const run = async (act) => {
    setState({ busy: true });
    try {
      setState({ result: await act() });
    } catch (error) {
      setState({ error });
    }
  };
  return [state, run];
}

function Result({ of, children }) {
  return html`<div aria-live="polite" class="stack">
    ${of.error && html`<${Problem} error=${of.error} />`}
    ${of.result &&
    html`<section class="content" aria-label="What came of it">
      <p class="row"><${Badge} kind=${of.result.status < 400 ? "ok" : "bad"}>${of.result.status}<//> <span>${ms(of.result.seconds)}</span> ${children}</p>
      ${of.result.json !== undefined ? html`<${Json} value=${of.result.json} label="Answer" />` : of.result.text ? html`<${Code} text=${of.result.text} label="Answer" />` : html`<p class="dim">The answer has no body.</p>`}
      ${of.result.headers.length > 0 && html`<details><summary>${of.result.headers.length} headers</summary><${Facts} rows=${of.result.headers} /></details>`}
    </section>`}
  </div>`;
}

const As = ({ value, onChange, apps }) =>
  html`<${Field} label="As" type="select" value=${value} onChange=${onChange} options=${[["", "the dashboard"], ...apps]} hint="Whose gateway does it: its components, its rights." />`;

/** Publishes to a topic; with `topic` to that one, as one of those that have its component. */
export function PublishForm({ component = "", topic = "", data, as }) {
  const mesh = useMesh();
  const fixed = topic !== "";
  const [draft, set] = useDraft(fixed ? `publish ${component}/${topic}` : "publish", { as: "", component: "", topic: "", type: "application/json", data: "{\n  \"orderId\": 1\n}", metadata: "" }, { ...(component ? { component } : {}), ...(topic ? { topic } : {}), ...(data ? { data } : {}), ...(as === undefined ? {} : { as }) });
  const [state, run] = useSending();
  const pubsubs = mesh?.components.filter((each) => each.type.startsWith("pubsub.")) ?? [];
  const chosen = draft.component || pubsubs[0]?.name || "";
  const apps = pubsubs.find((each) => each.name === chosen)?.apps ?? mesh?.apps.map((each) => each.id) ?? [];
  const wrong = draft.type.includes("json") ? jsonProblem(draft.data) : "";
  const publish = (event) => {
    event.preventDefault();
    run(() => {
      const query = Object.fromEntries(pairs(draft.metadata, "Metadata").map(([name, value]) => [`metadata.${name}`, value]));
      return send(ofApp(draft.as, "publish", chosen, draft.topic.trim()), { verb: "POST", query, headers: { "content-type": draft.type }, body: draft.data });
    });
  };
  return html`<form class="stack" onSubmit=${publish}>
    <div class="fields">
      ${!fixed && html`<${Field} label="Component" type="select" value=${chosen} onChange=${set("component")} options=${pubsubs.map((each) => each.name)} />`}
      ${!fixed && html`<${Field} label="Topic" value=${draft.topic} onChange=${set("topic")} required list="topics-to" />`}
      <${As} value=${draft.as} onChange=${set("as")} apps=${apps} />
      <${Field} label="Content type" value=${draft.type} onChange=${set("type")} list="types" hint="application/cloudevents+json for a whole event." />
    </div>
    <datalist id="topics-to">${mesh?.topics.filter((each) => each.component === chosen).slice(0, 300).map((each) => html`<option key=${each.topic} value=${each.topic} />`)}</datalist>
    <datalist id="types"><option value="application/json" /><option value="text/plain" /><option value="application/cloudevents+json" /></datalist>
    <${Field} label="Data" type="area" value=${draft.data} onChange=${set("data")} error=${wrong} />
    <${Field} label="Metadata" type="area" class="low" value=${draft.metadata} onChange=${set("metadata")} placeholder="ttlInSeconds: 60" hint="One a line, name: value." />
    <p class="row"><button class="button main" type="submit" disabled=${state.busy || Boolean(wrong) || !draft.topic.trim()}><span>${state.busy ? "Publishing…" : "Publish"}</span></button></p>
    <${Result} of=${state}>${state.result?.status < 300 && html`<span>Published.</span> <a href=${links.events({ topic: `${chosen}/${draft.topic}` })}>Watch where it goes</a>`}<//>
  </form>`;
}

/** Calls a method of an application. */
export function InvokeForm({ app = "", path = "", verb }) {
  const mesh = useMesh();
  const [draft, set] = useDraft("invoke", { as: "", app: "", path: "", verb: "GET", body: "", headers: "content-type: application/json" }, { ...(app ? { app } : {}), ...(path ? { path } : {}), ...(verb ? { verb } : {}) });
  const [state, run] = useSending();
  const ids = mesh?.apps.map((each) => each.id) ?? [];
  const methods = mesh?.apps.find((each) => each.id === draft.app)?.methods ?? [];
  const bodiless = ["GET", "HEAD"].includes(draft.verb);
  const call = (event) => {
    event.preventDefault();
    run(() => {
      const { pathname: method, search } = pathOf(draft.path);
      const target = ofApp(draft.as, "invoke", draft.app.trim(), "method", ...method.split("/").map(decodeURIComponent));
      const headers = Object.fromEntries(pairs(draft.headers, "Headers"));
      if (bodiless || !draft.body) for (const name of Object.keys(headers)) if (name.toLowerCase() === "content-type") delete headers[name];
      return send(target, { verb: draft.verb, query: search, headers, body: bodiless ? undefined : draft.body, any: true });
    });
  };
  return html`<form class="stack" onSubmit=${call}>
    <div class="fields">
      <${Field} label="Application" value=${draft.app} onChange=${set("app")} required list="apps-to" />
      <${Field} label="Verb" type="select" value=${draft.verb} onChange=${set("verb")} options=${VERBS} />
      <${Field} label="Method, with its query" value=${draft.path} onChange=${set("path")} placeholder="orders/17?full=true" list="methods" />
      <${As} value=${draft.as} onChange=${set("as")} apps=${ids} />
    </div>
    <datalist id="apps-to">${ids.slice(0, 300).map((id) => html`<option key=${id} value=${id} />`)}</datalist>
    <datalist id="methods">${methods.map((name) => html`<option key=${name} value=${name} />`)}</datalist>
    ${!bodiless && html`<${Field} label="Body" type="area" value=${draft.body} onChange=${set("body")} />`}
    <${Field} label="Headers" type="area" class="low" value=${draft.headers} onChange=${set("headers")} hint="One a line, name: value." />
    <p class="row"><button class="button main" type="submit" disabled=${state.busy || !draft.app.trim()}><span>${state.busy ? "Calling…" : "Call"}</span></button></p>
    <${Result} of=${state} />
  </form>`;
}
