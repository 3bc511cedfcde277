// YAML with numbered lines, and what is wrong with it beside the line.
import { html } from "./dom.js";
import { Copy, Icon, many } from "./ui.js";

const KEY = /^(\s*(?:- )?)([\w./$-]+:)(\s.*)?$/;

/**
 * @param text The YAML.
 * @param first The number of its first line in its file.
 * @param problems `[{line (in the file; null = of no line), message, next}]`.
 */
export function Yaml({ text, first = 1, problems = [], label = "YAML" }) {
  const lines = text.replace(/\n$/, "").split("\n");
  const within = (line) => line >= first && line < first + lines.length;
  const byLine = Map.groupBy(problems.filter((each) => within(each.line)), (each) => each.line);
  const others = problems.filter((each) => !within(each.line));
  return html`<div class="yaml">
    <div class="code-copy"><${Copy} text=${text} label=${`Copy: ${label}`} /></div>
    ${others.map((each, at) => html`<${Wrong} key=${at} problem=${each} />`)}
    <ol class="yaml-lines" aria-label=${`${label}${problems.length ? `, ${many(problems.length, "problem")}` : ""}`} tabindex="0">
      ${lines.map((line, at) => {
        const wrong = byLine.get(first + at);
        return html`<li key=${at} class=${wrong ? "yaml-line yaml-wrong" : "yaml-line"}>
          <span class="yaml-number" aria-hidden="true">${first + at}</span><code>${coloured(line)}</code>
          ${wrong?.map((each, number) => html`<${Wrong} key=${number} problem=${each} />`)}
        </li>`;
      })}
    </ol>
  </div>`;
}

const Wrong = ({ problem }) => html`<p class=${problem.level === "warning" ? "yaml-problem warn" : "yaml-problem"}><${Icon} name="bad" /><span>${problem.message ?? String(problem)}${problem.next && html` <span class="dim">${problem.next}</span>`}</span></p>`;

function coloured(line) {
  if (/^\s*#/.test(line)) return html`<span class="c-comment">${line}</span>`;
  const found = KEY.exec(line);
  if (!found) return line || " ";
  return html`${found[1]}<span class="c-key">${found[2]}</span>${found[3] ?? ""}`;
}
