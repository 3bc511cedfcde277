// Begins the dashboard.
import { html, render } from "./dom.js";
import { takeToken } from "./api.js";
import { start } from "./live.js";
import { Shell } from "./shell.js";

takeToken();
// Who opens the printed address in a tab that has the page already changes only what stands behind the `#`.
addEventListener("hashchange", () => takeToken() && location.reload());
start();
const root = document.getElementById("root");
root.replaceChildren();
render(html`<${Shell} />`, root);
