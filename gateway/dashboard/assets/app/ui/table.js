// Tables: sorted by any column, searched, a page at a time, rows that can be chosen; cards on a narrow screen.
import { html, newId, useEffect, useMemo, useRef, useState } from "../dom.js";
import { Button, Empty, Icon } from "./parts.js";
import { count, many } from "./format.js";

const PAGE = 100;

function compare(one, other) {
  if (one === other) return 0;
  if (one === null || one === undefined || one === "") return 1;
  if (other === null || other === undefined || other === "") return -1;
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), "en", { numeric: true });
}

/**
 * columns: [{key, label, value(row) (sorted by, searched), render(row) (shown; else the value), end (numbers: right-aligned),
 * sort: false, wide (on a phone: over the whole width), hideLabel}]; the first column heads its row.
 * keyOf(row): its key; search: what the field is called (undefined = no field); sortBy, descending: at first;
 * chosen: Set of keys and onChosen(Set) put a box before each row; empty: shown when there are no rows;
 * onRow(row): a click on the row besides its links; current: key of the row that is open beside the table.
 */
export function Table({ caption, columns, rows, keyOf, search, sortBy, descending = false, chosen, onChosen, empty, onRow, current, noun = "row", nouns, tools }) {
  const [order, setOrder] = useState({ by: sortBy, down: descending });
  const [sought, setSought] = useState("");
  const [page, setPage] = useState(0);
  const id = useRef(newId("table")).current;
  const body = useRef(null);
  const before = useRef({ order, sought, places: new Map() });
  const column = columns.find((each) => each.key === order.by);
  const found = useMemo(() => {
    const words = sought.toLowerCase().split(/\s+/).filter(Boolean);
    let some = rows;
    if (words.length) {
      some = rows.filter((row) => {
        const text = columns.map((each) => String(each.value?.(row) ?? "")).join("\n").toLowerCase();
        return words.every((word) => text.includes(word));
      });
    }
    if (!column) return some;
    const keyed = some.map((row) => [column.value(row), row]);
    keyed.sort(([one], [other]) => {
      const is = compare(one, other);
      const missing = [one, other].some((each) => each === null || each === undefined || each === "");
      return order.down && !missing ? -is : is;
    });
    const sorted = keyed.map(([, row]) => row);
    // Rows hold still under the pointer and the keyboard, also if their figures change.
    const { places } = before.current;
    const held = before.current.order === order && before.current.sought === sought && body.current && (body.current.matches(":hover") || body.current.contains(document.activeElement));
    if (held) sorted.sort((one, other) => (places.get(keyOf(one)) ?? Infinity) - (places.get(keyOf(other)) ?? Infinity) || 0);
    before.current = { order, sought, places: new Map(sorted.map((row, at) => [keyOf(row), at])) };
    return sorted;
  }, [rows, columns, sought, order]);
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  const at = Math.min(page, pages - 1);
  const part = found.slice(at * PAGE, (at + 1) * PAGE);
  useEffect(() => setPage(0), [sought, order]);
  const sort = (key) => setOrder(({ by, down }) => ({ by: key, down: by === key ? !down : false }));
  const all = chosen && found.length > 0 && found.every((row) => chosen.has(keyOf(row)));
  const choose = (keys, on) => {
    const next = new Set(chosen);
    for (const key of keys) on ? next.add(key) : next.delete(key);
    onChosen(next);
  };
  if (!rows.length && empty) return empty;
  return html`<div class="table-part">
    ${(search || tools) &&
    html`<div class="table-tools">
      ${search &&
      html`<div class="search-field"><${Icon} name="search" /><input type="search" aria-label=${search} placeholder=${search} value=${sought} onInput=${(event) => setSought(event.target.value)} aria-controls=${id} spellcheck="false" autocomplete="off" /></div>`}
      ${tools}
      <span class="dim table-count" role=${sought ? "status" : undefined}>${sought ? `${count(found.length)} of ${many(rows.length, noun, nouns)}` : many(rows.length, noun, nouns)}</span>
    </div>`}
    <div class="table-scroll">
      <table id=${id}>
        <caption class="hidden">${caption}</caption>
        <thead>
          <tr>
            ${chosen && html`<th scope="col" class="pick"><input type="checkbox" aria-label=${`Choose all ${nouns ?? `${noun}s`}`} checked=${all} onChange=${(event) => choose(found.map(keyOf), event.target.checked)} /></th>`}
            ${columns.map((each) => {
              const sorted = each.key === order.by ? (order.down ? "descending" : "ascending") : undefined;
              const label = each.hideLabel ? html`<span class="hidden">${each.label}</span>` : each.label;
              return html`<th key=${each.key} scope="col" class=${each.end ? "end" : ""} aria-sort=${sorted}>
                ${each.sort === false || !each.value ? label : html`<button type="button" class="sort" onClick=${() => sort(each.key)}>${label}<${Icon} name=${sorted === "descending" ? "down" : "up"} /></button>`}
              </th>`;
            })}
          </tr>
        </thead>
        <tbody ref=${body}>
          ${part.map((row) => {
            const key = keyOf(row);
            const click = onRow && ((event) => event.target.closest("a, button, input, label") || getSelection().toString() || onRow(row));
            return html`<tr key=${key} class=${`${onRow ? "can-open" : ""} ${current === key ? "current" : ""}`} onClick=${click}>
              ${chosen && html`<td class="pick"><input type="checkbox" aria-label=${`Choose ${key}`} checked=${chosen.has(key)} onChange=${(event) => choose([key], event.target.checked)} /></td>`}
              ${columns.map((each, place) => {
                const inside = each.render ? each.render(row) : (each.value(row) ?? "–");
                const names = `${each.end ? "end" : ""} ${each.wide ? "wide" : ""}`;
                return place === 0
                  ? html`<th key=${each.key} scope="row" class=${names}>${inside}</th>`
                  : html`<td key=${each.key} class=${names} data-label=${each.hideLabel ? undefined : each.label}>${inside}</td>`;
              })}
            </tr>`;
          })}
        </tbody>
      </table>
      ${!part.length && html`<${Empty} icon="search" title=${sought ? `Nothing here is called “${sought}”` : `No ${nouns ?? `${noun}s`}`} />`}
    </div>
    ${pages > 1 &&
    html`<nav class="pager" aria-label=${`Pages of: ${caption}`}>
      <${Button} disabled=${at === 0} onClick=${() => setPage(at - 1)}>Previous<//>
      <span>${count(at * PAGE + 1)}–${count(at * PAGE + part.length)} of ${count(found.length)}</span>
      <${Button} disabled=${at === pages - 1} onClick=${() => setPage(at + 1)}>Next<//>
    </nav>`}
  </div>`;
}
