// The field at the top: goes to an application, a topic, a component or an actor type by a part of its name.
import { html, useMemo, useState } from "./dom.js";
import { useMesh } from "./live.js";
import { go, links, to } from "./router.js";
import { Icon } from "./ui.js";

const SHOWN = 12;

function places(mesh) {
  if (!mesh) return [];
  return [
    ...mesh.apps.map((each) => ({ kind: "app", name: each.id, address: links.app(each.id) })),
    ...mesh.topics.map((each) => ({ kind: "topic", name: `${each.component}/${each.topic}`, address: links.topic(each.component, each.topic) })),
    ...mesh.components.map((each) => ({ kind: "component", name: each.name, note: each.type, address: links.component(each.name) })),
    ...[...new Set(mesh.apps.flatMap((each) => each.actors.map(({ type }) => type)))].map((type) => ({ kind: "actor", name: type, address: to(["actors"], { type }) })),
  ];
}

export function Search() {
  const mesh = useMesh();
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const [open, setOpen] = useState(false);
  const all = useMemo(() => places(mesh), [mesh]);
  const found = useMemo(() => {
    const sought = text.trim().toLowerCase();
    if (!sought) return [];
    const places = all.map((each) => [each.name.toLowerCase().indexOf(sought), each]).filter(([place]) => place >= 0);
    // What begins so comes first.
    return [...places.filter(([place]) => place === 0), ...places.filter(([place]) => place > 0)].slice(0, SHOWN).map(([, each]) => each);
  }, [all, text]);
  const choose = (each) => {
    setText("");
    setOpen(false);
    document.getElementById("search").blur();
    go(each.address);
  };
  const key = (event) => {
    if (event.key === "Escape") {
      setText("");
      event.target.blur();
    } else if (event.key === "Enter" && found[at]) choose(found[at]);
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      setAt((at + (event.key === "ArrowDown" ? 1 : found.length - 1)) % Math.max(1, found.length));
    }
  };
  const shown = open && text.trim() !== "";
  return html`<div class="search" role="search">
    <${Icon} name="search" />
    <input
      id="search" type="text" role="combobox" aria-label="Search the mesh" placeholder="Search the mesh" autocomplete="off" spellcheck="false"
      aria-expanded=${shown ? "true" : "false"} aria-controls="search-list" aria-autocomplete="list"
      aria-activedescendant=${shown && found[at] ? `search-${at}` : undefined}
      value=${text}
      onInput=${(event) => { setText(event.target.value); setAt(0); setOpen(true); }}
      onFocus=${() => setOpen(true)}
      onBlur=${() => setOpen(false)}
      onKeyDown=${key}
    />
    <kbd aria-hidden="true">/</kbd>
    <ul id="search-list" class=${shown ? "search-list" : "search-list hidden-list"} role="listbox" aria-label="Found">
      ${shown &&
      found.map(
        (each, place) => html`<li key=${each.address} id=${`search-${place}`} role="option" aria-selected=${place === at ? "true" : "false"} onMouseDown=${(event) => { event.preventDefault(); choose(each); }}>
          <span class=${`dot ${each.kind}`} aria-hidden="true"></span><span class="thing-name">${each.name}</span><span class="dim">${each.note ?? each.kind}</span>
        </li>`,
      )}
      ${shown && !found.length && html`<li class="dim" role="option" aria-disabled="true" aria-selected="false">Nothing is called “${text}”</li>`}
    </ul>
  </div>`;
}
