// Begins the dashboard.
import { html, render } from "./dom.js";
import { takeToken } from "./api.js";
import { start } from "./live.js";
import { Shell } from "./shell.js";

takeToken();
start();
const root = document.getElementById("root");
root.replaceChildren();
render(html`<${Shell} />`, root);
