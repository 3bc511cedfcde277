// Actors: who hosts which types and how their partitions are shared; a look at one of them.
import { html, useEffect, useRef, useState } from "../dom.js";
import { get, ofApp, remove, useGet } from "../api.js";
import { useMesh } from "../live.js";
import { links, setQuery } from "../router.js";
import { Asked, Badge, Button, Empty, Facts, Field, Json, Loading, Page, Problem, Section, Table, Thing, confirm, count, many, toast } from "../ui.js";

const REMINDERS_PAGE = 100;
const STANDING = { ready: "ok", waiting: "warn", leaving: "warn" };

export default function Actors({ query }) {
  const mesh = useMesh();
  // Every node knows all types; one that hosts some is asked, as it has heard of the others for the longest.
  const asked = mesh?.apps.find((each) => each.actors.length) ?? mesh?.apps[0];
  const of = useGet(asked ? ofApp(asked.id, "mesh", "actors") : null, { every: 5 });
  return html`<${Page} title="Actors" kind="actor" lead="Objects with an id and state, each in one place at a time. The partitions of a type are shared among those that host it.">
    ${!mesh
      ? html`<${Loading} />`
      : !asked
        ? html`<${Empty} icon="apps" title="No application is on the mesh" command="mesh run --app-id shop -- python app.py" />`
        : html`<${Asked} of=${of} what="Types of actors">${(types) => html`<${Types} types=${types} query=${query} />`}<//>`}
  <//>`;
}

function Types({ types, query }) {
  if (!types.length) {
    return html`<${Empty} icon="actors" title="No application hosts actors" command=${`curl http://localhost:3000/dapr/config`}>
      An application hosts the types that its answer to <code>GET /dapr/config</code> names: <code>${`{"entities": ["cart"]}`}</code>. The guide has a whole one: docs/actors.md.
    <//>`;
  }
  const [at, setAt] = useState({ type: query.get("type") ?? types[0].type, id: query.get("id") ?? "", values: false, turn: query.get("id") ? 1 : 0 });
  const look = (type, id, values = at.values) => {
    setQuery({ type, id });
    setAt((was) => ({ type, id, values, turn: was.turn + 1 }));
  };
  return html`${types.map((type) => html`<${Type} key=${type.type} type=${type} />`)}
    <${Look} key=${at.turn} types=${types} at=${at} onLook=${look} />
    <${Reminders} types=${types} onLook=${look} />`;
}

function Type({ type }) {
  const active = type.hosts.reduce((sum, each) => sum + (each.active ?? 0), 0);
  const note = `${many(type.partitions, "partition")}, ${many(active, "active actor")}`;
  return html`<${Section} title=${html`<span class="dot actor" aria-hidden="true"></span> ${type.type}`} note=${note} flush>
    ${type.unowned > 0 && html`<p class="note part-gap">${many(type.unowned, "partition")} ${type.unowned === 1 ? "has" : "have"} no owner: calls of those actors wait until one is there. That passes within 12 seconds while an application hosts the type.</p>`}
    <${Shares} type=${type} />
    <${Table} caption=${`Hosts of ${type.type}`} noun="host" rows=${type.hosts} keyOf=${(row) => row.node} sortBy="app" columns=${HOSTS}
      empty=${html`<${Empty} icon="actors" title="Nobody hosts it now">Its actors wait for an application that does; their state is kept.<//>`} />
  <//>`;
}

/** How the partitions are shared; the table below says the same. */
function Shares({ type }) {
  const owned = type.hosts.filter((each) => each.partitions);
  let at = 0;
  const parts = [...owned.map((each) => ({ size: each.partitions })), { size: type.unowned, nobody: true }].map((each) => {
    const from = at;
    at += each.size / type.partitions;
    return { ...each, from, width: each.size / type.partitions };
  });
  return html`<svg class="shares" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">
    ${parts.map((each, number) => html`<rect key=${number} class=${each.nobody ? "share-nobody" : number % 2 ? "share share-odd" : "share"} x=${each.from * 1000} width=${Math.max(each.width * 1000 - 1, 0)} y="0" height="10" />`)}
  </svg>`;
}

const HOSTS = [
  { key: "app", label: "Application", value: (row) => row.appID, render: (row) => html`<${Thing} kind="app" name=${row.appID} href=${links.app(row.appID)} />` },
  { key: "node", label: "Node", value: (row) => row.node, render: (row) => html`<code>${row.node}</code>` },
  { key: "standing", label: "Standing", value: (row) => row.standing, render: (row) => html`<${Badge} kind=${STANDING[row.standing] ?? "mute"}>${row.standing}<//>` },
  { key: "partitions", label: "Partitions", end: true, value: (row) => row.partitions },
  { key: "active", label: "Active actors", end: true, value: (row) => row.active, render: (row) => count(row.active) },
];

function Look({ types, at, onLook }) {
  const [type, setType] = useState(at.type);
  const [id, setId] = useState(at.id);
  const [values, setValues] = useState(at.values);
  const [state, setState] = useState({ told: null, error: null, loading: false });
  const hosts = hostsOf(types, at.type);
  const place = useRef(null);
  const look = async () => {
    setState((was) => ({ ...was, loading: true }));
    try {
      setState({ told: await actor(hosts, at.type, at.id, values), error: null, loading: false });
    } catch (error) {
      setState({ told: null, error, loading: false });
    }
  };
  useEffect(() => {
    if (!at.turn) return;
    look();
    place.current.scrollIntoView({ block: "nearest" });
  }, []);
  const deactivate = async () => {
    const named = `${at.type}/${at.id}`;
    const sure = await confirm({ title: `Deactivate ${named}?`, text: "Its application lets go of it once its turn has ended: what it holds in memory alone is lost, its state and reminders stay. The next call activates it again.", action: "Deactivate it", danger: true });
    if (!sure) return;
    try {
      const { json } = await remove(ofApp(state.told.appID ?? hosts[0], "mesh", "actors", at.type, at.id));
      toast(json.active ? `${named} is deactivated` : `${named} was not active`, json.active ? "ok" : "info");
      look();
    } catch (error) {
      toast(`${named} was not deactivated: ${error.message}`, "bad");
    }
  };
  const asked = (event) => {
    event.preventDefault();
    if (type === at.type && id === at.id && at.turn) look();
    else onLook(type, id, values);
  };
  return html`<div ref=${place}><${Section} title="Look at one">
    <form class="stack" onSubmit=${asked}>
      <div class="fields">
        <${Field} label="Type" type="select" value=${type} options=${types.map((each) => each.type)} onChange=${setType} />
        <${Field} label="Id" value=${id} onChange=${setId} required placeholder="17" />
        <${Field} label="Values of its state too" type="check" value=${values} onChange=${setValues} hint="Only where its application allows it" />
      </div>
      <div class="actions"><button type="submit" class="button main" disabled=${!id || !hostsOf(types, type).length}><span>Look at it</span></button></div>
    </form>
    ${state.error && html`<div class="part-top"><${Problem} error=${state.error} retry=${look} /></div>`}
    ${state.told ? html`<${Actor} told=${state.told} onDeactivate=${deactivate} />` : state.loading && html`<${Loading} what="Looking" />`}
  <//></div>`;
}

const hostsOf = (types, type) => [...new Set(types.find((each) => each.type === type)?.hosts.map((each) => each.appID))];

/** The reminders of all actors of a type; one who hosts the type knows them. */
function Reminders({ types, onLook }) {
  const [type, setType] = useState(types[0].type);
  const [from, setFrom] = useState(0);
  const [host] = hostsOf(types, type);
  const of = useGet(host ? ofApp(host, "mesh", "reminders", type) : null, { query: { limit: REMINDERS_PAGE, offset: from }, every: 10 });
  const columns = [
    { key: "id", label: "Actor", value: (row) => row.id, render: (row) => html`<button type="button" class="link-button" onClick=${() => onLook(type, row.id)}>${row.id}</button>` },
    ...REMINDERS,
  ];
  const choose = (chosen) => {
    setType(chosen);
    setFrom(0);
  };
  return html`<${Section} title="Reminders" flush>
    <div class="fields part-pad"><${Field} label="Of type" type="select" value=${type} options=${types.map((each) => each.type)} onChange=${choose} /></div>
    ${!host
      ? html`<${Empty} icon="actors" title="Nobody hosts this type now">Its reminders are kept, and come once an application hosts it again.<//>`
      : html`<${Asked} of=${of} what="Reminders">${(told) => html`
          <${Table} caption=${`Reminders of ${type}`} noun="reminder" rows=${told.reminders} keyOf=${(row) => `${row.id}\n${row.name}`} columns=${columns}
            empty=${html`<${Empty} icon="jobs" title="No actor of this type has a reminder">An actor sets one at its gateway: <code>POST /v1.0/actors/${type}/ID/reminders/NAME</code>.<//>`} />
          ${told.total > REMINDERS_PAGE && html`<nav class="pager" aria-label="Pages of reminders">
            <${Button} disabled=${!from} onClick=${() => setFrom(from - REMINDERS_PAGE)}>Previous<//>
            <span>${count(from + 1)}–${count(from + told.reminders.length)} of ${count(told.total)}</span>
            <${Button} disabled=${from + REMINDERS_PAGE >= told.total} onClick=${() => setFrom(from + REMINDERS_PAGE)}>Next<//>
          </nav>`}`}<//>`}
  <//>`;
}

/** Ask a host of the type; state is read where the actor's owner is, so that one is asked where it is another. */
async function actor(hosts, type, id, values) {
  const query = values ? { values: "true" } : {};
  const told = await get(ofApp(hosts[0], "mesh", "actors", type, id), query);
  return told.appID && told.appID !== hosts[0] ? get(ofApp(told.appID, "mesh", "actors", type, id), query) : told;
}

function Actor({ told, onDeactivate }) {
  const reminders = Object.entries(told.reminders ?? {}).map(([name, each]) => ({ name, ...each }));
  const keys = Array.isArray(told.state);
  const empty = !told.state || !Object.keys(told.state).length;
  return html`<div class="stack part-top" role="region" aria-label=${`Actor ${told.type}/${told.id}`}>
    <div class="row"><h3>${told.type}/${told.id}</h3><${Button} class="small" onClick=${onDeactivate}>Deactivate…<//></div>
    <${Facts} rows=${[
      ["Owner", told.appID ? html`<a href=${links.app(told.appID)}>${told.appID}</a>, node <code>${told.node}</code>` : "nobody now"],
      ["Partition", `${told.partition}, in epoch ${told.epoch}`],
    ]} />
    <h3>State</h3>
    ${told.state === null
      ? html`<p class="dim">This store does not list keys.</p>`
      : empty
        ? html`<p class="dim">It has none.</p>`
        : keys
          ? html`<ul class="chips" aria-label="Keys of its state">${told.state.map((key) => html`<li key=${key} class="chip mono">${key}</li>`)}</ul>`
          : html`<${Json} value=${told.state} label="State" />`}
    <h3>Reminders</h3>
    <${Table} caption="Reminders" noun="reminder" rows=${reminders} keyOf=${(row) => row.name} sortBy="name" columns=${REMINDERS} empty=${html`<p class="dim">It has none.</p>`} />
  </div>`;
}

const REMINDERS = [
  { key: "name", label: "Name", value: (row) => row.name },
  { key: "due", label: "Due", value: (row) => row.dueTime || null },
  { key: "period", label: "Again", value: (row) => row.period || null },
  { key: "ttl", label: "Ends", value: (row) => row.ttl || null },
];
