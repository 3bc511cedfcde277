// All components: who uses them, how they are, and what passes them.
import { html, useMemo } from "../dom.js";
import { useMesh, useSlowRates } from "../live.js";
import { links } from "../router.js";
import { blockOf, componentOf } from "../flows.js";
import { Badge, Empty, Loading, Page, Section, Table, Thing, ms, percent, perSecond } from "../ui.js";

export default function Components() {
  const mesh = useMesh();
  const held = useSlowRates((mesh?.components.length ?? 0) > 200 ? 3 : 1);
  const rows = useMemo(() => {
    const edges = held.rates.grouped((edge) => (edge.seen === "asked" || edge.seen === "arrived" ? componentOf(edge) : null));
    const problems = Map.groupBy(mesh?.problems ?? [], (each) => each.target.replace(/^component /, ""));
    return (mesh?.components ?? []).map((each) => ({
      ...each,
      key: `${each.name}\n${each.type}`,
      problems: problems.get(each.name) ?? [],
      now: held.rates.figures(edges.get(each.name) ?? []),
    }));
  }, [mesh, held]);
  if (!mesh) return html`<${Page} title="Components" kind="component"><${Loading} /><//>`;
  return html`<${Page} title="Components" kind="component" lead="Brokers, stores and other systems behind the building blocks, with what passes them now.">
    <${Section} title="All components" flush>
      <${Table}
        caption="Components"
        search="Find a component"
        noun="component"
        rows=${rows}
        keyOf=${(row) => row.key}
        sortBy="name"
        columns=${COLUMNS}
        empty=${html`<${Empty} icon="components" title="No application has a component" command="mesh components"><p>A component is a YAML file of the kind Component in an application's resources folder. This command lists the types that there are.</p><//>`}
      />
    <//>
  <//>`;
}

const COLUMNS = [
  { key: "name", label: "Name", value: (row) => row.name, render: (row) => html`<${Thing} kind="component" name=${row.name} href=${links.component(row.name)} />` },
  { key: "type", label: "Type", value: (row) => row.type, render: (row) => html`<code>${row.type}</code>` },
  { key: "block", label: "Block", value: (row) => blockOf(row.type) },
  { key: "apps", label: "Used by", value: (row) => row.apps.length, render: (row) => html`<${Users} apps=${row.apps} />`, wide: true },
  { key: "health", label: "State", value: (row) => row.problems.length, render: (row) => html`<${State} problems=${row.problems} />` },
  { key: "rate", label: "Now", end: true, value: (row) => row.now.rate, render: (row) => perSecond(row.now.rate) },
  { key: "failing", label: "Failing", end: true, value: (row) => row.now.failing, render: (row) => (row.now.failing ? html`<${Badge} kind="bad">${percent(row.now.failing)}<//>` : row.now.count ? "0 %" : "–") },
  { key: "p95", label: "p95", end: true, value: (row) => row.now.p95, render: (row) => ms(row.now.p95) },
];

function Users({ apps }) {
  const shown = apps.slice(0, 3);
  return html`<span class="chips">${shown.map((id) => html`<a key=${id} class="chip" href=${links.app(id)}>${id}</a>`)}${apps.length > 3 && html`<span class="dim">and ${apps.length - 3} more</span>`}</span>`;
}

const State = ({ problems }) =>
  problems.length ? html`<span title=${problems.map((each) => `${each.app}: ${each.state}`).join("\n")}><${Badge} kind="bad">${problems[0].state.split(":", 1)[0]}<//></span>` : html`<${Badge} kind="ok">ok<//>`;
