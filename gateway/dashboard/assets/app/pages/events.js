// What passes, as it passes: a live list that can be narrowed, with all that is told of each, and replay.
import { html, useCallback, useEffect, useMemo, useRef, useState } from "../dom.js";
import { open as request } from "../api.js";
import { useMesh, useSights } from "../live.js";
import { setQuery } from "../router.js";
import { Side, SightDetail, SightLine, Untold } from "../sights.js";
import { Badge, Button, Empty, Field, Page as Frame, Problem, Section, bytes, count, toast } from "../ui.js";

const BLOCKS = ["pubsub", "invocation", "state", "bindings", "actors", "workflows", "jobs", "durable", "configuration", "secrets", "crypto", "lock", "conversation"];
const FAILED = '!(event.data.outcome in ["ok", "success"])';
const MOST = 32 * 1024 * 1024; // Bytes of a recording.

function useHeld(value, wait) {
  const [held, setHeld] = useState(value);
  const text = JSON.stringify(value);
  useEffect(() => {
    const timer = setTimeout(() => setHeld(JSON.parse(text)), wait);
    return () => clearTimeout(timer);
  }, [text, wait]);
  return held;
}

/** Records what flows until it is ended, and saves it as a file that `mesh replay` reads. */
function useRecording(filter) {
  const [size, setSize] = useState(null);
  const running = useRef(null);
  useEffect(() => () => running.current?.abort(), []);
  const begin = async () => {
    const mine = new AbortController();
    running.current = mine;
    const parts = [];
    let kept = 0;
    let full = false;
    setSize(0);
    try {
      const response = await request("recording", { query: filter, signal: mine.signal });
      if (!response.ok) throw new Error((await response.json().catch(() => ({}))).message ?? `HTTP ${response.status}`);
      const reader = response.body.getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        full = kept + value.length > MOST;
        if (full) break;
        parts.push(value);
        kept += value.length;
        setSize(kept);
      }
    } catch (error) {
      if (error.name !== "AbortError") toast(`Recording: ${error.message}`, "bad");
    }
    mine.abort();
    running.current = null;
    setSize(null);
    if (!kept) {
      toast("Nothing passed while it was recorded, so no file is saved", "info");
      return;
    }
    const text = await new Blob(parts).text();
    // What was cut off in the middle of a line is left out.
    const whole = text.slice(0, text.lastIndexOf("\n") + 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([whole], { type: "application/x-ndjson" }));
    link.download = `mesh-${new Date().toISOString().slice(0, 19).replace(/:/g, "-")}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    toast(`${full ? `A recording ends at ${bytes(MOST)}. ` : ""}Saved ${link.download}. Send it again with: mesh replay ${link.download}`, full ? "info" : "ok");
  };
  return { size, begin, end: () => running.current?.abort() };
}

export default function Page({ query }) {
  const mesh = useMesh();
  const [given, setGiven] = useState({
    app: query.get("app") ?? "",
    topic: query.get("topic") ?? "",
    block: query.get("block") ?? "",
    where: query.get("where") ?? "",
    failed: query.get("failed") === "true",
    values: query.get("values") !== "false",
  });
  const [paused, setPaused] = useState(false);
  const [shown, setShown] = useState(null);
  const set = (name) => (value) => setGiven((was) => ({ ...was, [name]: value }));
  const asked = useHeld(given, 500);
  useEffect(() => setQuery({ ...given, failed: given.failed || "", values: given.values ? "" : "false" }), [given]);
  const filter = useMemo(() => {
    const where = asked.where.trim();
    const several = (text) => text.split(/[,\s]+/).filter(Boolean);
    return { app: several(asked.app), topic: several(asked.topic), block: asked.block, values: asked.values ? "true" : "", where: asked.failed ? (where ? `(${where}) && ${FAILED}` : FAILED) : where };
  }, [asked]);
  const { sights, dropped, refused, state, error, seen, clear } = useSights(filter, { paused });
  const recording = useRecording({ ...filter, values: undefined });
  const close = useCallback(() => setShown(null), []);
  return html`<${Frame} title="Live" wide lead="Every call, event, operation, actor's turn and workflow's step, as it passes.">
    <form class="card filters" onSubmit=${(event) => event.preventDefault()} aria-label="What to watch">
      <${Field} label="Application" value=${given.app} onChange=${set("app")} placeholder="any, * stands for anything" list="apps-known" />
      <${Field} label="Topic" value=${given.topic} onChange=${set("topic")} placeholder="orders or pubsub/orders" list="topics-known" />
      <${Field} label="Block" type="select" value=${given.block} onChange=${set("block")} options=${[["", "all"], ...BLOCKS]} />
      <${Field} label="Where (CEL)" class="grow" value=${given.where} onChange=${set("where")} placeholder="event.data.seconds > 0.1" error=${state === "refused" && given.where ? error?.message : ""} />
      <div class="stack tight">
        <${Field} label="Only failures" type="check" value=${given.failed} onChange=${set("failed")} />
        <${Field} label="Values" type="check" value=${given.values} onChange=${set("values")} title="Headers and bodies, where the nodes allow it" />
      </div>
      <datalist id="apps-known">${mesh?.apps.slice(0, 300).map((each) => html`<option key=${each.id} value=${each.id} />`)}</datalist>
      <datalist id="topics-known">${mesh?.topics.slice(0, 300).map((each) => html`<option key=${`${each.component}/${each.topic}`} value=${`${each.component}/${each.topic}`} />`)}</datalist>
    </form>
    ${state === "refused" && !given.where && html`<${Problem} error=${error} />`}
    <${Untold} refused=${refused} />
    <div class=${shown ? "with-side open" : "with-side"}>
      <${Section}
        title="Passing now" flush
        note=${`${count(sights.length)} shown of ${count(seen)} seen${dropped ? `, ${count(dropped)} dropped as they came too fast` : ""}`}
        actions=${html`
          ${paused && html`<${Badge} kind="warn">paused<//>`}
          <${Button} icon=${paused ? "play" : "pause"} onClick=${() => setPaused(!paused)} aria-pressed=${paused ? "true" : "false"}>${paused ? "Go on" : "Pause"}<//>
          <${Button} icon="trash" onClick=${clear} disabled=${!sights.length}>Clear<//>
          ${recording.size === null
            ? html`<${Button} icon="download" onClick=${recording.begin}>Record<//>`
            : html`<${Button} kind="main" icon="download" onClick=${recording.end}>Stop and save (${bytes(recording.size)})<//>`}`}
      >
        <ol class=${shown ? "sights beside" : "sights"} aria-label="What passed, the newest first">
          ${sights.map((each) => html`<li key=${each.id}><${SightLine} event=${each} current=${shown?.id === each.id} onOpen=${setShown} /></li>`)}
        </ol>
        ${!sights.length && html`<${Empty} icon="events" title=${state === "waiting" ? "Connecting to the mesh…" : "Nothing has passed yet"}>Leave this open: whatever fits the filter appears here. To make something pass, <a href="#/try">publish or call</a>.<//>`}
      <//>
      ${shown && html`<${Side} title=${`${shown.data.block}.${shown.data.method}`} onClose=${close}><${SightDetail} event=${shown} /><//>`}
    </div>
  <//>`;
}
