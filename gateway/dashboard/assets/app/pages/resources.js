// Resources as they are loaded: the YAML of each, and its problems beside the lines.
import { html, useEffect, useMemo, useRef, useState } from "../dom.js";
import { useMesh } from "../live.js";
import { links, setQuery } from "../router.js";
import { AppField, Problems, chosenApps, useOfApps } from "../each.js";
import { Yaml } from "../yaml.js";
import { Badge, Button, Empty, Facts, Loading, Page, Section, Table, many } from "../ui.js";

export default function Resources({ query }) {
  const mesh = useMesh();
  const [app, setApp] = useState(query.get("app") ?? "");
  const apps = chosenApps(mesh, app);
  const of = useOfApps(apps, ["mesh", "resources"], { rowsOf: (told) => told.resources, every: 10 });
  const rows = useMemo(() => together(of.rows), [of.rows]);
  const wanted = `${query.get("kind") ?? ""}\n${query.get("name") ?? ""}`;
  const [open, setOpen] = useState(null);
  const shown = rows.find((row) => (open ? row.key === open : `${row.kind}\n${row.name}` === wanted));
  const choose = (row) => {
    setOpen(row.key);
    setQuery({ app, kind: row.kind, name: row.name });
  };
  const columns = useMemo(() => columnsOf(choose), [app]);
  const wrong = rows.filter((row) => row.problems.length).length;
  return html`<${Page} title="Resources" lead="The YAML that applications have loaded, as their gateways understood it. Comments and secrets are left out.">
    <div class="fields"><${AppField} mesh=${mesh} value=${app} onChange=${setApp} /></div>
    <${Problems} errors=${of.errors} retry=${of.reload} what="Resources" />
    ${wrong > 0 && html`<p class="note" role="status">${many(wrong, "resource")} ${wrong === 1 ? "has a problem" : "have problems"}.</p>`}
    <${Section} title="Resources" flush>
      ${!mesh || (of.loading && !rows.length)
        ? html`<${Loading} what="Asking for resources" />`
        : html`<${Table} caption="Resources" search="Find a resource" noun="resource" rows=${rows} keyOf=${(row) => row.key} sortBy="kind" columns=${columns} onRow=${choose} current=${shown?.key}
            empty=${html`<${None} asked=${apps.length} failed=${of.errors.length} />`} />`}
    <//>
    ${shown && html`<${Resource} of=${shown} asked=${open !== null} onClose=${() => { setOpen("-"); setQuery({ app }); }} />`}
  <//>`;
}

function None({ asked, failed }) {
  if (!asked) return html`<${Empty} icon="resources" title="Choose an application">There are too many to ask all of them.<//>`;
  if (failed) return html`<${Empty} icon="resources" title="No resources were told">Why stands above.<//>`;
  return html`<${Empty} icon="resources" title="No resources are loaded" command="mesh run --app-id shop --resources-path ./resources -- python app.py">Without any, an application has calls, actors, jobs and workflows of the mesh, and no components.<//>`;
}

/** What a file is called that gave no resource is its own name. */
const titleOf = ({ name, file }) => name || file.split("/").at(-1);

/** What several applications have of the same place is one row. */
function together(rows) {
  const made = new Map();
  for (const row of rows) {
    const key = [row.kind, row.name, row.file, row.line, row.yaml].join("\n");
    if (made.has(key)) made.get(key).apps.push(row.app);
    else made.set(key, { ...row, key, apps: [row.app] });
  }
  return [...made.values()];
}

const kindOf = (row) => (row.problems.some((each) => each.severity === "error") ? "bad" : "warn");

const columnsOf = (choose) => [
  { key: "name", label: "Name", value: (row) => titleOf(row), render: (row) => html`<button type="button" class="link-button" onClick=${() => choose(row)}>${titleOf(row)}</button>` },
  { key: "kind", label: "Kind", value: (row) => row.kind },
  { key: "apps", label: "Loaded by", value: (row) => row.apps.join(", ") },
  { key: "file", label: "File", value: (row) => row.file, wide: true, render: (row) => html`<code>${row.file ? `${row.file}:${row.line}` : "–"}</code>` },
  { key: "problems", label: "Problems", end: true, value: (row) => row.problems.length, render: (row) => (row.problems.length ? html`<${Badge} kind=${kindOf(row)}>${row.problems.length}<//>` : "none") },
];

function Resource({ of, asked, onClose }) {
  const place = useRef(null);
  useEffect(() => {
    if (asked) place.current.scrollIntoView({ block: "nearest" });
  }, [of.key]);
  return html`<div ref=${place}><${Section} title=${`${of.kind} ${titleOf(of)}`.trim()} actions=${html`${of.kind === "Component" && html`<${Button} href=${links.component(of.name)} icon="components">Go to the component<//>`}<${Button} quiet icon="close" label="Close it" onClick=${onClose} />`}>
    <${Facts} rows=${[["File", of.file ? html`<code>${of.file}:${of.line}</code>` : "none: it is built in"], ["Loaded by", of.apps.join(", ")], ["For", of.scopes.length ? of.scopes.join(", ") : "all applications"]]} />
    <div class="part-top"><${Yaml} text=${of.yaml} problems=${of.problems} label=${`${of.kind} ${titleOf(of)}`.trim()} /></div>
  <//></div>`;
}
