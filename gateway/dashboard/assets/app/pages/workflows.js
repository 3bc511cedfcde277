// Instances of workflows: found by application, status, name and age; started, and steered many at once.
import { html, useEffect, useMemo, useState } from "../dom.js";
import { post } from "../api.js";
import { useMesh } from "../live.js";
import { go, links, setQuery } from "../router.js";
import { AppField, Problems, chosenApps, forAll, useOfApps } from "../each.js";
import { ENDED, PurgeMany, STATUSES, Start, kindOf, route } from "../workflow_actions.js";
import { Ago, Badge, Button, Empty, Field, Loading, Page, Section, Table, Thing, confirm, many, toast } from "../ui.js";

const COMMAND = `mesh workflow start order -x '{"total": 7}'`;
const AGES = [["", "any time"], ["10m", "the last 10 minutes"], ["1h", "the last hour"], ["24h", "the last day"], ["168h", "the last week"]];
const ASKED = [["", "any status"], ["RUNNING,PENDING,SUSPENDED,STALLED", "not ended"], ...STATUSES.map((each) => [each, each.toLowerCase()])];

export default function Workflows({ query }) {
  const mesh = useMesh();
  const [wanted, setWanted] = useState({ app: query.get("app") ?? "", status: query.get("status") ?? "", name: query.get("name") ?? "", since: query.get("since") ?? "" });
  const [typed, setTyped] = useState(wanted.name);
  const [chosen, setChosen] = useState(new Set());
  const [window_, setWindow] = useState("");
  const set = (name) => (value) => setWanted((was) => ({ ...was, [name]: value }));
  useEffect(() => setQuery(wanted), [wanted]);
  useEffect(() => {
    const timer = setTimeout(() => wanted.name === typed.trim() || set("name")(typed.trim()), 400);
    return () => clearTimeout(timer);
  }, [typed]);
  const { app, status, name, since } = wanted;
  const apps = chosenApps(mesh, app);
  const of = useOfApps(apps, ["mesh", "workflows"], { query: { status, name, since, limit: 100 }, rowsOf: (told) => told.workflows, afterOf: (told) => told.after, every: 5 });
  const rows = useMemo(() => of.rows.map((row) => ({ ...row, key: `${row.app}/${row.instanceID}` })), [of.rows]);
  const some = rows.filter((row) => chosen.has(row.key));
  const names = useMemo(() => [...new Set(rows.map((row) => row.workflowName))].sort(), [rows]);
  const filtered = status || name || since;
  const done = () => {
    setChosen(new Set());
    of.reload();
  };
  return html`<${Page} title="Workflows" kind="workflow" lead="Code that takes its time: each instance with what it does and waits for."
    actions=${html`<${Button} icon="trash" onClick=${() => setWindow("purge")}>Delete ended…<//><${Button} kind="main" icon="play" onClick=${() => setWindow("start")}>Start one…<//>`}>
    <div class="fields" role="search" aria-label="Filter workflows">
      <${AppField} mesh=${mesh} value=${app} onChange=${set("app")} />
      <${Field} label="Status" type="select" value=${status} options=${ASKED} onChange=${set("status")} />
      <${Field} label="Name of the workflow" value=${typed} onChange=${setTyped} list="names" placeholder="order" />
      <datalist id="names">${names.map((each) => html`<option key=${each} value=${each} />`)}</datalist>
      <${Field} label="Started within" type="select" value=${since} options=${AGES} onChange=${set("since")} />
    </div>
    <${Problems} errors=${of.errors} retry=${of.reload} what="Workflows" />
    <${Section} title="Instances" flush>
      ${!mesh || (of.loading && !rows.length)
        ? html`<${Loading} what="Asking for workflows" />`
        : html`<${Table} caption="Workflows" search="Find an instance" noun="workflow" rows=${rows} keyOf=${(row) => row.key} sortBy="created" descending columns=${COLUMNS}
            chosen=${chosen} onChosen=${setChosen} tools=${some.length > 0 && html`<${Together} rows=${some} onDone=${done} />`}
            empty=${html`<${Nothing} asked=${apps.length} failed=${of.errors.length} filtered=${filtered} />`} />`}
      ${of.more && html`<div class="part-pad"><${Button} disabled=${of.loading} onClick=${of.loadMore}>More workflows<//> <span class="dim">Sorted and found among those that are loaded</span></div>`}
    <//>
    ${window_ === "start" && html`<${Start} mesh=${mesh} app=${app || (apps.length === 1 ? apps[0] : (rows[0]?.app ?? ""))} names=${names} onClose=${() => setWindow("")} onStarted=${(of_, id) => go(links.workflow(of_, id))} />`}
    ${window_ === "purge" && html`<${PurgeMany} mesh=${mesh} app=${app || (rows[0]?.app ?? "")} onClose=${() => setWindow("")} onDone=${done} />`}
  <//>`;
}

function Nothing({ asked, failed, filtered }) {
  if (failed) return html`<${Empty} icon="workflows" title=${failed === asked ? "No application tells of its workflows" : "Those that tell have none"}>Why stands above.<//>`;
  if (!asked) return html`<${Empty} icon="workflows" title="Choose an application">There are too many to ask all of them.<//>`;
  if (filtered) return html`<${Empty} icon="search" title="No workflow is like that">Choose another status, name or time.<//>`;
  return html`<${Empty} icon="workflows" title="No workflow was started" command=${COMMAND}>An application that has the code of one can start it; so can this command, and the button above. Its guide has a whole one: docs/workflows.md.<//>`;
}

const waiting = ({ waitingFor = {}, waitsForEvents = [] }) =>
  [
    waitingFor.activities && many(waitingFor.activities, "activity", "activities"),
    waitingFor.children && many(waitingFor.children, "child", "children"),
    ...waitsForEvents.map((each) => `event ${each.name}`),
    !waitsForEvents.length && !waitingFor.activities && !waitingFor.children && waitingFor.nextDue && "a time",
  ].filter(Boolean).join(", ");

const COLUMNS = [
  { key: "id", label: "Id", value: (row) => row.instanceID, render: (row) => html`<${Thing} kind="workflow" name=${row.instanceID} href=${links.workflow(row.app, row.instanceID)} />` },
  { key: "workflow", label: "Workflow", value: (row) => row.workflowName },
  { key: "app", label: "Application", value: (row) => row.app, render: (row) => html`<a href=${links.app(row.app)}>${row.app}</a>` },
  { key: "status", label: "Status", value: (row) => row.runtimeStatus, render: (row) => html`<${Badge} kind=${kindOf(row.runtimeStatus)}>${row.runtimeStatus.toLowerCase()}<//>` },
  { key: "waits", label: "Waits for", value: (row) => waiting(row) || null, wide: true, render: (row) => (waiting(row) ? html`${waiting(row)}${row.waitingFor?.nextDue && html` <span class="dim">(<${Ago} at=${row.waitingFor.nextDue} />)</span>`}` : null) },
  { key: "created", label: "Started", value: (row) => Date.parse(row.createdAt), render: (row) => html`<${Ago} at=${row.createdAt} />` },
  { key: "updated", label: "Last change", value: (row) => Date.parse(row.lastUpdatedAt), render: (row) => html`<${Ago} at=${row.lastUpdatedAt} />` },
];

const TOGETHER = [
  { what: "suspend", label: "Suspend", said: "suspended", fits: (row) => !ENDED.has(row.runtimeStatus) && row.runtimeStatus !== "SUSPENDED" },
  { what: "resume", label: "Resume", said: "resumed", fits: (row) => row.runtimeStatus === "SUSPENDED" },
  { what: "terminate", label: "Terminate…", said: "terminated", fits: (row) => !ENDED.has(row.runtimeStatus), danger: "They end where they are, with their children, and cannot go on." },
  { what: "purge", label: "Delete…", said: "deleted", fits: (row) => ENDED.has(row.runtimeStatus), danger: "History, input and output of each are deleted, and those of their children. Nothing brings them back." },
];

/** What can be done to all rows that are chosen. */
function Together({ rows, onDone }) {
  const act = async ({ what, label, said, fits, danger }) => {
    const some = rows.filter(fits);
    const verb = label.replace("…", "");
    if (danger && !(await confirm({ title: `${verb} ${many(some.length, "workflow")}?`, text: danger, action: `${verb} them`, danger: true }))) return;
    const told = await forAll(some, (row) => post(route(row.app, row.instanceID, what), {}));
    const failed = told.filter((each) => each.error);
    if (failed.length) toast(`${failed.length} of ${some.length} were not ${said}: ${failed[0].error.message}`, "bad");
    else toast(`${many(some.length, "workflow")} ${some.length === 1 ? "is" : "are"} ${said}`);
    onDone();
  };
  return html`<div class="row" role="group" aria-label="What is done to those that are chosen">
    ${TOGETHER.map((each) => {
      const count = rows.filter(each.fits).length;
      return count > 0 && html`<${Button} key=${each.what} class="small" onClick=${() => act(each)}>${each.label} (${count})<//>`;
    })}
  </div>`;
}
