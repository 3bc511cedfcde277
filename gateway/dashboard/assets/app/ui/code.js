// Text as it is: JSON, YAML, logs. Nothing of it is ever taken as HTML.
import { html, memo } from "../dom.js";
import { Copy } from "./parts.js";

const TOKEN = /("(?:\\.|[^"\\])*")(\s*:)?|\b(true|false|null)\b|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)/g;
const LONGEST = 200_000;

function coloured(text) {
  const parts = [];
  let at = 0;
  for (const found of text.matchAll(TOKEN)) {
    if (found.index > at) parts.push(text.slice(at, found.index));
    const kind = found[1] ? (found[2] ? "c-key" : "c-text") : found[3] ? "c-word" : "c-number";
    parts.push(html`<span class=${kind}>${found[1] ?? found[0]}</span>`);
    if (found[2]) parts.push(found[2]);
    at = found.index + found[0].length;
  }
  parts.push(text.slice(at));
  return parts;
}

/** A block of text that can be copied; `json` colours it, `label` names it for a screen reader. */
export const Code = memo(function Code({ text, json, label = "Text", wrap = true, tall }) {
  const shown = text.length > LONGEST ? `${text.slice(0, LONGEST)}\n… (${text.length - LONGEST} characters more: copy it to have them)` : text;
  return html`<div class=${`code ${tall ? "tall" : ""}`}>
    <div class="code-copy"><${Copy} text=${text} label=${`Copy: ${label}`} /></div>
    <pre class=${wrap ? "wrap" : ""} tabindex="0" role="region" aria-label=${label}>${json && shown.length < 50_000 ? coloured(shown) : shown}</pre>
  </div>`;
});

export const Json = ({ value, label = "JSON", tall }) => html`<${Code} text=${JSON.stringify(value, null, 2) ?? ""} json label=${label} tall=${tall} />`;
