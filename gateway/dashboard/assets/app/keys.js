// Keys of a state store, as far as an application has them: listed by their beginning, their values on demand.
import { html, useEffect, useRef, useState } from "./dom.js";
import { get, ofApp, send } from "./api.js";
import { AppField } from "./each.js";
import { Button, Code, Dialog, Empty, Facts, Field, Json, Loading, Problem, Section, Table, bytes } from "./ui.js";

const LIMIT = 100;

export function Keys({ name, apps }) {
  const [app, setApp] = useState(apps[0] ?? "");
  const [typed, setTyped] = useState("");
  const [prefix, setPrefix] = useState("");
  const [open, setOpen] = useState(null);
  useEffect(() => {
    const timer = setTimeout(() => setPrefix(typed), 300);
    return () => clearTimeout(timer);
  }, [typed]);
  const told = useKeys(app, name, prefix);
  return html`<${Section} title="Keys" note="of one application, as it names them" flush>
    <div class="fields part-pad">
      <${AppField} mesh=${{ apps: apps.map((id) => ({ id })) }} value=${app} onChange=${setApp} must />
      <${Field} label="Begin with" value=${typed} onChange=${setTyped} placeholder="order-" />
    </div>
    ${told.error
      ? html`<div class="part-pad"><${Problem} error=${told.error} retry=${told.reload} /></div>`
      : told.loading && !told.rows.length
        ? html`<${Loading} what="Listing keys" />`
        : html`<${Table} caption=${`Keys of ${app} in ${name}`} noun="key" rows=${told.rows} keyOf=${(row) => row.key} onRow=${(row) => setOpen(row.key)} columns=${columns(setOpen)}
            empty=${html`<${Empty} icon="search" title=${prefix ? "No key begins so" : `${app} has no keys in it`}>${prefix ? "Keys are compared as they are written: large and small letters differ." : "What the application stores appears here."}<//>`} />`}
    ${told.after && html`<div class="part-pad"><${Button} disabled=${told.loading} onClick=${told.more}>More keys<//></div>`}
    ${open !== null && html`<${Value} app=${app} store=${name} name=${open} onClose=${() => setOpen(null)} />`}
  <//>`;
}

const columns = (onOpen) => [
  { key: "key", label: "Key", value: (row) => row.key, wide: true, render: (row) => html`<button type="button" class="link-button mono" onClick=${() => onOpen(row.key)}>${row.key}</button>` },
];

function useKeys(app, store, prefix) {
  const [state, setState] = useState({ rows: [], after: "", error: null, loading: true });
  const turn = useRef(0);
  const ask = async (after, known) => {
    const mine = ++turn.current;
    setState((was) => ({ ...was, rows: known, loading: true }));
    try {
      const told = await get(ofApp(app, "mesh", "components", store, "keys"), { prefix, limit: LIMIT, after });
      if (mine !== turn.current) return;
      const rows = [...known, ...told.keys.map((key) => ({ key }))];
      setState({ rows, after: told.after ?? "", error: null, loading: false });
    } catch (error) {
      if (mine === turn.current) setState({ rows: known, after: "", error, loading: false });
    }
  };
  useEffect(() => {
    if (app) ask("", []);
    return () => {
      turn.current++;
    };
  }, [app, store, prefix]);
  return { ...state, more: () => ask(state.after, state.rows), reload: () => ask("", []) };
}

function Value({ app, store, name, onClose }) {
  const [state, setState] = useState({ told: null, error: null });
  const ask = async () => {
    try {
      setState({ told: await send(ofApp(app, "mesh", "components", store, "keys", name)), error: null });
    } catch (error) {
      setState({ told: null, error });
    }
  };
  useEffect(() => {
    ask();
  }, [name]);
  const { told, error } = state;
  return html`<${Dialog} title=${name} onClose=${onClose} wide>
    ${error && html`<${Problem} error=${error} retry=${ask} />`}
    ${!told && !error && html`<${Loading} what="Reading it" />`}
    ${told && html`<${Shown} told=${told} />`}
  <//>`;
}

function Shown({ told: { status, json, text, type, headers } }) {
  const etag = new Map(headers).get("etag");
  if (status === 204) return html`<${Empty} icon="info" title="It is gone">It was deleted, or its time was over, since it was listed.<//>`;
  return html`<${Facts} rows=${[["ETag", etag && html`<code>${etag}</code>`], ["Type", type], ["Size", bytes(new Blob([text]).size)]]} />
    ${json === undefined ? html`<${Code} text=${text} label="Value" tall />` : html`<${Json} value=${json} label="Value" tall />`}`;
}
