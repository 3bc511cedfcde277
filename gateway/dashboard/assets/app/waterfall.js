// The picture of a trace: a bar for each thing that was seen, below what it lay within.
import { html, newId, useState } from "./dom.js";
import { failedSight } from "./traces.js";
import { useWidth } from "./timeline.js";
import { many, ms } from "./ui.js";

const MOST_ROWS = 100;
const HEIGHT = 24;

/** What a span did, as one line. */
export const saidOf = ({ data }) => `${data.block}.${data.method} ${data.target}`;

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
          const fits = right - (from + wide) > text.length * 7;
          return html`<g key=${span.event.id} class="lane">
            <rect class="row-ground" x="0" y=${y} width=${width} height=${height} />
            <text class="row-name" x="2" y=${y + (narrow ? 14 : 16)}>${name.length > most ? `${name.slice(0, most - 1)}…` : name}</text>
            <g class=${bad ? "bar-failed" : `bar-done bar-${span.data.seen}`}>
              <rect class="bar" x=${from} y=${y + (narrow ? 19 : 5)} width=${wide} height="14" rx="3" />
              <text class="bar-text" x=${fits ? from + wide + 5 : Math.max(from - 5, left)} y=${y + (narrow ? 30 : 16)} text-anchor=${fits ? "start" : from - 5 > left + text.length * 7 ? "end" : "start"}>${text}</text>
            </g>
            <title>${`${saidOf(span)}: ${span.data.outcome}, ${ms(span.data.seconds)}, at ${span.data.app}`}</title>
          </g>`;
        })}
      </svg>`}
    </div>
    ${trace.spans.length > MOST_ROWS && html`<p class="note">${trace.spans.length - MOST_ROWS} more steps are in the table below.</p>`}
  </figure>`;
}
