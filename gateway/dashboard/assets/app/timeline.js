// The picture of a workflow's history. A screen reader is told what it shows, and has the table beside it.
import { html, newId, useEffect, useMemo, useRef, useState } from "./dom.js";
import { Button, many, ms } from "./ui.js";
import { isUneven, layOut, scaleOf } from "./history.js";

const FIRST_ROWS = 60;
const MOST_ROWS = 600;
const NARROW = 560;
const GROWS = 12;
const STEPS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400, 172800, 604800, 2592000, 31536000];
const SIGN = { done: "✓", failed: "✗", dropped: "–", open: "…", paused: "❚❚" };
const SAID = { done: "done", failed: "failed", dropped: "let go as it ended", open: "not over", paused: "suspended" };

const cut = (text, most) => (text.length <= most ? text : `${text.slice(0, Math.max(most - 1, 1))}…`);

/** How wide an element is: [what it takes as its `ref`, its width in pixels, 0 until it is known]. */
export function useWidth() {
  const place = useRef(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    const watched = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    watched.observe(place.current);
    return () => watched.disconnect();
  }, []);
  return [place, width];
}

/**
 * @param told The instance with `events`, as `layOut` wants it; one at least.
 * @param chosen The number of the task that is pointed at, or null; `onChoose(task)` when another one is.
 */
export function Timeline({ told, chosen = null, onChoose = () => {} }) {
  const [place, width] = useWidth();
  const [id] = useState(() => newId("timeline"));
  const laid = useMemo(() => layOut(told), [told]);
  const [asked, setEven] = useState(null);
  const even = asked ?? isUneven(laid);
  const [most, setMost] = useState(FIRST_ROWS);
  const more = Math.min(laid.rows.length, MOST_ROWS) - most;
  return html`<figure class="timeline">
    <div class="timeline-head">
      <p id=${id} class="timeline-says">${saysOf(laid, told)}</p>
      <fieldset class="choice">
        <legend class="hidden">Width of the steps</legend>
        ${[[false, "To scale"], [true, "Step by step"]].map(
          ([value, text]) => html`<label><input type="radio" name=${id} checked=${even === value} onChange=${() => setEven(value)} /> ${text}</label>`,
        )}
      </fieldset>
    </div>
    <div ref=${place}>${width > 0 && html`<${Picture} laid=${laid} even=${even} width=${width} most=${most} label=${id} chosen=${chosen} onChoose=${onChoose} />`}</div>
    ${more > 0 && html`<p class="timeline-more"><${Button} class="small" icon="down" onClick=${() => setMost(MOST_ROWS)}>${many(more, "more step")}<//></p>`}
    ${more <= 0 && laid.rows.length > most && html`<p class="note">${many(laid.rows.length - most, "more step")}: they are in the table below.</p>`}
    <figcaption class="timeline-key">
      ${["done", "failed", "open", "paused"].map((state) => html`<span><${Sample} state=${state} /> ${SAID[state]}</span>`)}
      <span><span class="mark-raised" aria-hidden="true">◆</span> event</span>
      <span><span class="mark-turn" aria-hidden="true">│</span> turn of the code</span>
    </figcaption>
  </figure>`;
}

const Sample = ({ state }) => html`<svg class="sample" width="26" height="12" aria-hidden="true" focusable="false">
  <rect x="1" y="1" width="24" height="10" rx="3" class=${`bar bar-${state}`} />
  ${state === "failed" && html`<rect x="1" y="1" width="24" height="10" rx="3" fill="url(#timeline-hatch)" />`}
</svg>`;

function saysOf(laid, told) {
  const bars = laid.rows.slice(1).flatMap((row) => row.bars);
  const count = (state) => bars.filter((bar) => bar.state === state).length;
  const parts = [many(laid.rows.length - 1, "step")];
  if (count("failed")) parts.push(`${count("failed")} failed`);
  if (laid.open && count("open")) parts.push(`${count("open")} not over`);
  return `${told.workflowName}, ${told.runtimeStatus.toLowerCase()}: ${parts.join(", ")}; ${laid.open ? "so far" : "took"} ${ms(laid.until - laid.since)}`;
}

function Picture({ laid, even, width, most, label, chosen, onChoose }) {
  const narrow = width < NARROW;
  const left = narrow ? 2 : Math.min(240, Math.round(width * 0.28));
  const right = width - 4;
  const height = narrow ? 38 : 24;
  const top = 24;
  const rows = laid.rows.slice(0, most);
  const share = scaleOf(laid, even);
  const x = (at) => left + share(at) * (right - left);
  const whole = top + rows.length * height + 4;
  return html`
    <svg class="timeline-picture" width=${width} height=${whole} viewBox=${`0 0 ${width} ${whole}`} role="img" aria-labelledby=${label}>
      <defs>
        <pattern id="timeline-hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><line class="hatch" x1="3" x2="3" y1="0" y2="6" /></pattern>
      </defs>
      <${Axis} laid=${laid} even=${even} x=${x} left=${left} right=${right} bottom=${whole} />
      ${rows.map(
        (row, at) => html`<${Row} key=${at} row=${row} x=${x} y=${top + at * height} height=${height} left=${left} right=${right} narrow=${narrow}
          chosen=${chosen !== null && row.task === chosen} onChoose=${onChoose} />`,
      )}
    </svg>
  `;
}

function Axis({ laid, even, x, left, right, bottom }) {
  const length = laid.until - laid.since;
  const ticks = [];
  if (even) {
    const room = Math.max(Math.floor((right - left) / 90), 1);
    const each = Math.max(Math.ceil(laid.moments.length / room), 1);
    for (let at = 0; at < laid.moments.length; at += each) ticks.push(laid.moments[at]);
  } else {
    const step = STEPS.find((size) => length / size <= Math.max((right - left) / 90, 2)) ?? length;
    for (let at = 0; at <= length + step / 1e6 && ticks.length < 50; at += step) ticks.push(laid.since + at);
  }
  return html`<g class="axis">
    ${ticks.map((at, number) => {
      const place = Math.round(x(at)) + 0.5;
      const last = place > right - 60;
      const free = !last || !number || place - x(ticks[number - 1]) > 125; // Its text goes to the left.
      return html`<g>
        <line x1=${place} x2=${place} y1="16" y2=${bottom} />
        ${free && html`<text x=${place + (last ? -3 : 3)} y="12" text-anchor=${last ? "end" : "start"}>+${ms(at - laid.since)}</text>`}
      </g>`;
    })}
  </g>`;
}

function Row({ row, x, y, height, left, right, narrow, chosen, onChoose }) {
  const name = row.task === undefined ? row.label : `${row.label} #${row.task}`;
  const thick = 14;
  const at = y + (narrow ? 19 : (height - thick) / 2);
  const most = Math.floor((narrow ? right : left - 12) / 7);
  return html`<g class=${`lane row-${row.kind}${chosen ? " row-chosen" : ""}`} onClick=${() => row.task !== undefined && onChoose(row.task)}>
    <rect class="row-ground" x="0" y=${y} width=${right + 4} height=${height} />
    <text class="row-name" x=${narrow ? left : left - 8} y=${narrow ? y + 14 : y + height / 2 + 4} text-anchor=${narrow ? "start" : "end"}>${cut(name, most)}</text>
    ${row.bars.map((bar) => html`<${Bar} bar=${bar} x=${x} y=${at} height=${thick} left=${left} right=${right} named=${row.kind !== "workflow"} late=${row.marks.length > 0} />`)}
    ${row.marks.map((mark) =>
      mark.state === "turn"
        ? html`<line class="mark-turn" x1=${x(mark.at)} x2=${x(mark.at)} y1=${at} y2=${at + thick}><title>turn</title></line>`
        : html`<text class=${`mark mark-${mark.state}`} x=${x(mark.at)} y=${at + thick - 2} text-anchor="middle">${mark.state === "failed" ? "✗" : "◆"}<title>${mark.text}</title></text>`,
    )}
    <title>${name}</title>
  </g>`;
}

/** `late`: what it says stands at its end, as marks are at its beginning. */
function Bar({ bar, x, y, height, left, right, named, late }) {
  const from = x(bar.from);
  const width = Math.max(x(bar.to) - from, 3);
  const text = bar.to === null ? SIGN.open : `${SIGN[bar.state]} ${ms(bar.to - bar.from)}`;
  const room = text.length * 6.5 + GROWS;
  const inside = width > room;
  const after = right - (from + width) > room;
  const end = inside && late;
  const place = end ? from + width - 6 : inside ? from + 6 : after ? from + width + 5 : from - 5;
  return html`<g class=${`bar-${bar.state}`}>
    <rect class="bar" x=${from} y=${y} width=${width} height=${height} rx="3" />
    ${bar.state === "failed" && html`<rect x=${from} y=${y} width=${width} height=${height} rx="3" fill="url(#timeline-hatch)" />`}
    ${named && (inside || after || from - room > left) && html`<text class=${inside ? "bar-text bar-inside" : "bar-text"} x=${place} y=${y + height - 3} text-anchor=${!end && (inside || after) ? "start" : "end"}>${text}</text>`}
    <title>${SAID[bar.state]}${bar.to === null ? "" : `, ${ms(bar.to - bar.from)}`}</title>
  </g>`;
}
