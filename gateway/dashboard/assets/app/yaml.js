// YAML with numbered lines, and what is wrong with it below the line.
import { html } from "./dom.js";
import { Copy, Icon, many } from "./ui.js";

const KEY = /^(\s*(?:- )*)([^\s:#][^:#]*:)(\s.*)?$/;
const PLACE = /([^.[\]]+)|\[(\d+)\]/g;

const indentOf = (line) => line.search(/\S/);

/**
 * Find the line that a path is at (`spec.metadata[0].value`), as far as it leads; -1 = nowhere.
 *
 * @param lines YAML in block style, an item of a list no further to the left than its key.
 */
export function lineAt(lines, path) {
  const left = lines.map((line) => line);
  let from = 0;
  let to = left.length;
  let found = -1;
  for (const [, name, number] of path.matchAll(PLACE)) {
    const indent = indentOf(left[from] ?? "");
    const fits = (line) => indentOf(line) === indent && (name === undefined ? /^\s*- ?/.test(line) : keyOf(line) === name);
    const places = [];
    for (let at = from; at < to; at++) if (fits(left[at])) places.push(at);
    const at = places[name === undefined ? Number(number) : 0];
    if (at === undefined) return found;
    found = at;
    const ends = (line) => line.trim() && (indentOf(line) < indent || (indentOf(line) === indent && (name === undefined || !/^\s*- ?/.test(line))));
    let end = at + 1;
    while (end < to && !ends(left[end])) end++;
    to = end;
    if (name === undefined) {
      left[at] = left[at].replace("- ", "  "); // Its first key stands on the item's line.
      from = at;
    } else from = at + 1;
    if (from >= to) return found;
  }
  return found;
}

function keyOf(line) {
  const found = KEY.exec(line);
  return found && !found[1].includes("-") ? found[2].slice(0, -1).replace(/^(["'])(.*)\1$/, "$2") : null;
}

/**
 * @param text The YAML.
 * @param problems `[{message, path, file, line, severity}]`, the line being the file's.
 */
export function Yaml({ text, problems = [], label = "YAML" }) {
  const lines = text ? text.replace(/\n$/, "").split("\n") : [];
  const placed = Map.groupBy(problems, (each) => lineAt(lines, each.path ?? ""));
  return html`<div class="yaml">
    ${text && html`<div class="code-copy"><${Copy} text=${text} label=${`Copy: ${label}`} /></div>`}
    ${placed.get(-1)?.map((each, at) => html`<${Wrong} key=${at} problem=${each} />`)}
    ${text &&
    html`<ol class="yaml-lines" aria-label=${`${label}${problems.length ? `, ${many(problems.length, "problem")}` : ""}`} tabindex="0">
      ${lines.map((line, at) => {
        const wrong = placed.get(at);
        return html`<li key=${at} class=${wrong ? "yaml-line yaml-wrong" : "yaml-line"}>
          <span class="yaml-number" aria-hidden="true">${at + 1}</span><code>${coloured(line)}</code>
          ${wrong?.map((each, number) => html`<${Wrong} key=${number} problem=${each} />`)}
        </li>`;
      })}
    </ol>`}
  </div>`;
}

function Wrong({ problem: { message, path, file, line, severity } }) {
  const where = [path, file && `line ${line} of ${file.split("/").at(-1)}`].filter(Boolean).join(", ");
  return html`<p class=${severity === "warning" ? "yaml-problem warn" : "yaml-problem"}><${Icon} name="bad" /><span>${severity === "warning" ? "Warning: " : ""}${message} ${where && html`<span class="yaml-where">${where}</span>`}</span></p>`;
}

function coloured(line) {
  const found = KEY.exec(line);
  if (!found) return line || " ";
  return html`${found[1]}<span class="c-key">${found[2]}</span>${found[3] ?? ""}`;
}
