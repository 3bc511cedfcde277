// Arrows as a table: who sends what to whom, how much of it, and how it goes.
import { html, useMemo } from "../dom.js";
import { useSlowRates } from "../live.js";
import { Badge, Table, Thing, ms, percent, perSecond } from "../ui.js";
import { byArrow, nodeOf, verb } from "./graph.js";

export const NOTHING = { rate: 0, errorRate: 0, failing: 0, p50: null, p95: null, longest: 0, count: 0, errors: 0, total: 0 };

const COLUMNS = [
  { key: "from", label: "From", value: (row) => row.first.name, render: (row) => html`<${Thing} kind=${row.first.kind} name=${row.first.name} href=${row.first.href} />` },
  { key: "does", label: "Does", value: (row) => row.verb, render: (row) => html`<span class="dim">${row.verb}</span>` },
  { key: "target", label: "To", value: (row) => row.last.name, render: (row) => html`<${Thing} kind=${row.last.kind} name=${row.last.name} href=${row.last.href} />` },
  { key: "rate", label: "Rate", end: true, value: (row) => row.now.rate, render: (row) => perSecond(row.now.rate) },
  { key: "p95", label: "p95", end: true, value: (row) => row.now.p95, render: (row) => ms(row.now.p95) },
  { key: "failing", label: "Failing", end: true, value: (row) => row.now.failing, render: (row) => (row.now.errors ? html`<${Badge} kind="bad">${percent(row.now.failing)}<//>` : html`<span class="dim">–</span>`) },
];

/** Every arrow of a graph, also those that a picture has no room for; `at` is the one that is open. */
export function Flows({ whole, onOpen, at }) {
  const { tick, rates } = useSlowRates(whole.arrows.size > 500 ? 5 : 2);
  const rows = useMemo(() => {
    const groups = byArrow(rates);
    return [...whole.arrows.values()].map((each) => ({ ...each, first: nodeOf(each.from), last: nodeOf(each.target), now: groups.has(each.id) ? rates.figures(groups.get(each.id)) : NOTHING }));
  }, [whole, tick]);
  return html`<${Table} caption="Who sends to whom, with rate, 95th percentile and failures" columns=${COLUMNS} rows=${rows} keyOf=${(row) => row.id} search="Search connections" sortBy="rate" descending noun="connection" onRow=${onOpen && ((row) => onOpen(row.id))} current=${at} />`;
}

/** What flows at one node of the mesh within the last minute: `id` as of graph.js (`app:checkout`). */
export function FlowsOf({ id, empty }) {
  const { tick, rates } = useSlowRates(1);
  const rows = useMemo(
    () =>
      [...byArrow(rates)]
        .filter(([key]) => key.split("\n").includes(id))
        .map(([key, edges]) => {
          const [from, target] = key.split("\n");
          return { id: key, verb: verb(from, target), first: nodeOf(from), last: nodeOf(target), now: rates.figures(edges) };
        }),
    [id, tick],
  );
  return html`<${Table} caption="What flows here: who sends to whom, with rate, 95th percentile and failures" columns=${COLUMNS} rows=${rows} keyOf=${(row) => row.id} sortBy="rate" descending noun="connection" empty=${empty} />`;
}
