// The picture of a trace: a bar for each thing that was seen, below what it lay within.
import { html, newId, useState } from "./dom.js";
import { failedSight } from "./traces.js";
import { useWidth } from "./timeline.js";
import { many, ms } from "./ui.js";

const MOST_ROWS = 100;
const HEIGHT = 24;

/** What a span did, as one line. */
export function saidOf({ data: { block, method, target, details } }) {
  const more = block === "invocation" ? details.path : block === "actors" ? (details.method ?? details.name) : block === "jobs" ? details.job : undefined;
  return `${block}.${method} ${target}${more ? ` ${more}` : ""}`;
}

export function Waterfall({ trace }) {
  const [place, width] = useWidth();
  const [id] = useState(() => newId("waterfall"));
  const length = trace.until - trace.since || 0.001;
  const narrow = width < 560;
  const left = narrow ? 2 : Math.min(320, Math.round(width * 0.36));
  const right = width - 4;
  const x = (at) => left + ((at - trace.since) / length) * (right - left);
  const spans = trace.spans.slice(0, MOST_ROWS);
  const height = narrow ? 38 : HEIGHT;
  return html`<figure class="timeline">
    <p id=${id} class="timeline-says">${many(trace.spans.length, "step")} in ${ms(trace.until - trace.since)}${trace.failed ? `, ${trace.failed} failed` : ""}; applications: ${trace.apps.join(", ")}</p>
    <div ref=${place}>
      ${width > 0 &&
      html`<svg class="timeline-picture" width=${width} height=${spans.length * height + 4} role="img" aria-labelledby=${id}>
        ${spans.map((span, number) => {
          const y = number * height;
          const bad = failedSight(span.data);
          const from = x(span.from);
          const wide = Math.max(x(span.to) - from, 3);
          const name = `${narrow ? "" : "\u00a0".repeat(Math.min(span.depth, 8) * 2)}${saidOf(span)}`;
          const most = Math.floor((narrow ? right : left - 10) / 7);
          const text = `${bad ? `✗ ${span.data.outcome} ` : ""}${ms(span.data.seconds)}`;
          const before = from - left > text.length * 7;
          const fits = right - (from + wide) > text.length * 7;
          return html`<g key=${span.event.id} class="lane">
            <rect class="row-ground" x="0" y=${y} width=${width} height=${height} />
            <text class="row-name" x="2" y=${y + (narrow ? 14 : 16)}>${name.length > most ? `${name.slice(0, most - 1)}…` : name}</text>
            <g class=${bad ? "bar-failed" : `bar-done bar-${span.data.seen}`}>
              <rect class="bar" x=${from} y=${y + (narrow ? 19 : 5)} width=${wide} height="14" rx="3" />
              <text class="bar-text" x=${fits ? from + wide + 5 : before ? from - 5 : from + 6} y=${y + (narrow ? 30 : 16)} text-anchor=${fits || !before ? "start" : "end"}>${text}</text>
            </g>
            <title>${`${saidOf(span)}: ${span.data.outcome}, ${ms(span.data.seconds)}, at ${span.data.app}`}</title>
          </g>`;
        })}
      </svg>`}
    </div>
    ${trace.spans.length > MOST_ROWS && html`<p class="note">${trace.spans.length - MOST_ROWS} more steps are in the table below.</p>`}
  </figure>`;
}

/** The same as small as a line of text; the row that it stands in has the words. */
export function Small({ trace }) {
  const length = trace.until - trace.since || 0.001;
  const spans = trace.spans.slice(0, 6);
  const each = 20 / spans.length;
  return html`<svg class="small-waterfall" viewBox="0 0 140 20" aria-hidden="true">
    ${spans.map((span, at) => html`<rect key=${span.event.id} class=${failedSight(span.data) ? "small-bad" : `small-bar small-${span.data.seen}`}
      x=${((span.from - trace.since) / length) * 138} width=${Math.max(((span.to - span.from) / length) * 138, 2)} y=${at * each} height=${Math.min(each - 1, 6)} />`)}
  </svg>`;
}
