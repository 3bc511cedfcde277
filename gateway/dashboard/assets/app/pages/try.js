// Publish an event or call a method, to see what comes of it.
import { html, useEffect, useState } from "../dom.js";
import { InvokeForm, PublishForm } from "../forms.js";
import { useMesh } from "../live.js";
import { setQuery } from "../router.js";
import { Loading, Page as Frame, Tabs } from "../ui.js";

const TABS = [{ id: "publish", label: "Publish" }, { id: "invoke", label: "Call" }];

export default function Page({ query }) {
  const mesh = useMesh();
  const [at, setAt] = useState(query.get("do") === "invoke" ? "invoke" : "publish");
  useEffect(() => setQuery({ do: at }), [at]);
  return html`<${Frame} title="Try it out" lead="Publish an event or call an application, as the application of your choice.">
    ${mesh
      ? html`<div class="card"><${Tabs} label="What to do" tabs=${TABS} at=${at} onChange=${setAt}>
          ${at === "publish"
            ? html`<${PublishForm} key="publish" component=${query.get("component") ?? ""} data=${query.get("data") ?? undefined} />`
            : html`<${InvokeForm} key="invoke" app=${query.get("app") ?? ""} path=${query.get("path") ?? ""} verb=${query.get("verb") ?? undefined} />`}
        <//></div>`
      : html`<${Loading} />`}
  <//>`;
}
