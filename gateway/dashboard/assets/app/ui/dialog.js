// Questions before what cannot be taken back, and short notices of what was done.
import { html, useEffect, useReducer, useRef, newId } from "../dom.js";
import { Button, Icon } from "./parts.js";

/** A window over the page; closed by Escape, its button, or a click beside it. */
export function Dialog({ title, onClose, children, actions, wide }) {
  const ref = useRef(null);
  const id = useRef(newId("dialog")).current;
  const began = useRef(false); // Whether the click began beside it: selecting text may end there.
  useEffect(() => {
    const before = document.activeElement;
    ref.current.showModal();
    places.push(id);
    redraw();
    return () => {
      places.splice(places.indexOf(id), 1);
      redraw();
      before?.focus?.();
    };
  }, []);
  return html`<dialog
    ref=${ref}
    class=${wide ? "dialog wide" : "dialog"}
    aria-labelledby=${id}
    onClose=${onClose}
    onCancel=${onClose}
    onPointerDown=${(event) => { began.current = event.target === ref.current; }}
    onClick=${(event) => began.current && event.target === ref.current && onClose()}
  >
    <div class="dialog-in">
      <header class="dialog-head">
        <h2 id=${id}>${title}</h2>
        <${Button} quiet icon="close" label="Close" onClick=${onClose} />
      </header>
      <div class="dialog-body">${children}</div>
      ${actions && html`<footer class="dialog-foot">${actions}</footer>`}
    </div>
    <${Said} place=${id} />
  </dialog>`;
}

let question = null;
let notices = [];
let said = "";
const places = [null]; // Where notices appear: in the window on top, if any, as nothing below it is read out.
const drawn = new Set();
const redraw = () => drawn.forEach((draw) => draw());

function useRedraw() {
  const [, draw] = useReducer((turn) => turn + 1, 0);
  useEffect(() => {
    drawn.add(draw);
    return () => drawn.delete(draw);
  }, []);
}

function Said({ place }) {
  useRedraw();
  const here = places.at(-1) === place;
  return html`
    <div class="hidden" aria-live="polite">${here && said}</div>
    <div class="toasts" aria-live="polite" role="status">
      ${here && notices.map((each) => html`<p key=${each.key} class=${`toast ${each.kind}`}><${Icon} name=${each.kind === "bad" ? "bad" : each.kind} /> ${each.text}</p>`)}
    </div>`;
}

/** Ask yes or no: await confirm({title, text, action, danger}) is true for yes. */
export const confirm = (asked) =>
  new Promise((resolve) => {
    question?.resolve(false);
    question = { ...asked, resolve };
    redraw();
  });

function answer(is) {
  question?.resolve(is);
  question = null;
  redraw();
}

/** Show a notice for some seconds: kind is "ok", "bad" or "info". It is read out as well. */
export function toast(text, kind = "ok") {
  const notice = { text, kind, key: newId("toast") };
  notices = [...notices, notice].slice(-4);
  redraw();
  setTimeout(() => {
    notices = notices.filter((each) => each !== notice);
    redraw();
  }, kind === "bad" ? 12_000 : 5_000);
}

/** Have a screen reader say it, without showing it. */
export function announce(text) {
  said = text;
  redraw();
}

/** Where questions and notices appear; the shell has one. */
export function Notices() {
  useRedraw();
  return html`
    <${Said} place=${null} />
    ${question &&
    html`<${Dialog}
      title=${question.title}
      onClose=${() => answer(false)}
      actions=${html`<${Button} onClick=${() => answer(false)}>Cancel<//>
        <${Button} kind=${question.danger ? "danger" : "main"} onClick=${() => answer(true)}>${question.action ?? "Yes"}<//>`}
      ><p>${question.text}</p><//
    >`}
  `;
}
